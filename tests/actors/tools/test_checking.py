"""Arguments are checked against schemas that may be anybody's: rightly, and at a bounded cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ayllu.actors.tools.checking import MAX_TOLD, check_schema, problem_with
from ayllu.schemas import InvalidRequest

pytestmark = pytest.mark.requirement("tool-arguments")

LAUGHS = {
    f"d{number}": {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}] * 2} for number in range(60)
} | {"d60": {"type": "object"}}
"""Sixty lines that mean two to the sixtieth."""


@pytest.mark.parametrize(
    ("schema", "arguments", "says"),
    [
        ({"allOf": [{"$ref": "#"}]}, {}, "too much"),
        ({"$ref": "https://example.com/s"}, {}, "cannot be followed"),
        ({"$defs": LAUGHS, "$ref": "#/$defs/d0"}, {}, "too much"),
        (
            {"properties": {"a": {"uniqueItems": True}}},
            {"a": [{"x": number} for number in range(5000)]},
            "too much",
        ),
        (
            {"properties": {"a": {"pattern": "^(a+)+$"}}},
            {"a": "a" * 50_000 + "b"},
            "does not match",
        ),
        (
            {"properties": {"a": {"items": {"required": [str(one) for one in range(1000)]}}}},
            {"a": [{}] * 4000},
            "too much",
        ),
        (
            {"properties": {"a": {"anyOf": [{"pattern": f"x{one}"} for one in range(1000)]}}},
            {"a": "y" * 1_000_000},
            "too much",
        ),
        ({"properties": {"a": {"multipleOf": 0.1}}}, {"a": 10**400}, "cannot be checked"),
        (
            {"default": {"minimum": "x"}, "properties": {"a": {"$ref": "#/default"}}},
            {"a": 1},
            "cannot be checked",
        ),
        ({"patternProperties": {"^(a+)+$": False}}, {"a" * 50_000: 1}, "does not allow"),
    ],
    ids=[
        "itself",
        "elsewhere",
        "laughs",
        "unique",
        "pattern",
        "required",
        "any",
        "number",
        "reference",
        "names",
    ],
)
def test_hostile_schemas_cost_little_and_are_no_crash(
    schema: dict[str, Any], arguments: dict[str, Any], says: str
) -> None:
    problem = problem_with(schema, arguments)
    assert problem is not None
    assert says in problem or len(problem) >= MAX_TOLD
    assert len(problem) < 2 * MAX_TOLD + len(next(iter(arguments), ""))


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


def test_the_answer_does_not_depend_on_the_stack() -> None:
    """Arguments and schemas as deep as they may be are checked wherever the caller stands."""
    tree = {"properties": {"x": {"$ref": "#"}}}
    deep: dict[str, Any] = {}
    found = set()
    for _ in range(60):
        deep = {"x": deep}
        found.add(problem_with(tree, deep) == called_from(400, tree, deep))
    assert found == {True}
    assert "too much" in str(problem_with(tree, deep))


def called_from(frames: int, schema: dict[str, Any], arguments: dict[str, Any]) -> str | None:
    """Return what is wrong, asked from far down the stack."""
    if frames:
        return called_from(frames - 1, schema, arguments)
    return problem_with(schema, arguments)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": 3}, "no JSON schema"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "RE2"),
        ({"patternProperties": {"(?=x)": {}}}, "RE2"),
        ({"anyOf": [{"unevaluatedProperties": False}]}, "cannot be checked"),
        (nested(600), "deeper than"),
    ],
)
def test_what_cannot_be_checked_is_refused(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        check_schema(schema, "x")


def test_much_that_is_simple_is_checked() -> None:
    schema = {"properties": {"a": {"items": {"type": "number"}}, "b": {"minLength": 1}}}
    assert problem_with(schema, {"a": list(range(20_000)), "b": "x" * 1_000_000}) is None


def test_names_and_values_are_no_keywords() -> None:
    names = {"pattern": {"type": "string"}, "unevaluatedProperties": {"default": {"pattern": "("}}}
    check_schema({"properties": names}, "x")


SCHEMAS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "string", "array", "integer"]),
        "properties": st.dictionaries(
            st.sampled_from("ab"), st.sampled_from([{"type": "integer"}, {"pattern": "^x+$"}, {}])
        ),
        "patternProperties": st.sampled_from([{"^a": {"type": "integer"}}, {"b$": False}, {}]),
        "additionalProperties": st.sampled_from([True, False, {"type": "string"}]),
        "required": st.sampled_from([[], ["a"], ["a", "b"]]),
        "uniqueItems": st.booleans(),
    },
)
VALUES = st.recursive(
    st.integers(0, 3) | st.sampled_from(["x", "xx", "y"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "ab", "c"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(SCHEMAS, st.dictionaries(st.sampled_from(["a", "b", "ab", "c"]), VALUES, max_size=3))
def test_it_agrees_with_the_library(schema: dict[str, Any], arguments: dict[str, Any]) -> None:
    expected = Draft202012Validator(schema).is_valid(arguments)
    assert (problem_with(schema, arguments) is None) == expected
