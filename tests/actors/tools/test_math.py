"""Arithmetic: what Python says, nothing else, and soon."""

from __future__ import annotations

import builtins
import math
import statistics
import time
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.actors.tools.actor import ToolsActor
from ayllu.actors.tools.arithmetic import CONSTANTS, FUNCTIONS, MAX_BITS
from ayllu.actors.tools.math import MAX_LENGTH, Math, evaluate
from ayllu.schemas import InvalidRequest, ToolRequest

PYTHON: dict[str, Any] = {
    **{name: getattr(math, name) for name in dir(math) if not name.startswith("_")},
    **{
        name: getattr(builtins, name)
        for name in ("abs", "bool", "float", "int", "max", "min", "pow", "round", "sum")
    },
    "__builtins__": {},
}

numbers = st.one_of(
    st.integers(-(10**6), 10**6), st.floats(-1e6, 1e6, allow_nan=False), st.booleans()
).map(lambda value: f"({value!r})")


def combined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = ["+", "-", "*", "/", "//", "%", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
    several = ["max", "min", "gcd", "lcm", "hypot"]
    single = [
        *("abs", "sqrt", "sin", "cos", "floor", "ceil", "trunc", "exp", "log", "isqrt", "round"),
        *("int", "float", "bool", "degrees", "cbrt", "atan", "factorial"),
    ]
    return st.one_of(
        st.builds(
            lambda left, operator, right: f"({left} {operator} {right})",
            parts,
            st.sampled_from(operators),
            parts,
        ),
        st.builds(lambda base, exponent: f"({base} ** {exponent})", parts, st.integers(-3, 6)),
        st.builds(lambda sign, part: f"({sign} {part})", st.sampled_from(["-", "+", "not"]), parts),
        st.builds(lambda name, part: f"{name}({part})", st.sampled_from(single), parts),
        st.builds(
            lambda name, one, other: f"{name}({one}, {other})",
            st.sampled_from(several),
            parts,
            parts,
        ),
        st.builds(lambda a, b, c: f"({a} if {b} else {c})", parts, parts, parts),
        st.builds(lambda many: f"sum([{', '.join(many)}])", st.lists(parts, max_size=4)),
    )


@pytest.mark.requirement("tool-math")
@settings(max_examples=500)
@given(st.recursive(numbers, combined, max_leaves=8))
def test_it_says_what_python_says(expression: str) -> None:
    if len(expression) > MAX_LENGTH or ("factorial" in expression and "** " in expression):
        return
    try:
        said = evaluate(expression)
    except InvalidRequest as error:
        if "digits" in error.message or "factorial" in expression:
            return  # Python would calculate it.
        with pytest.raises((ArithmeticError, ValueError, TypeError)):
            refuse_complex(eval(expression, PYTHON))
    else:
        assert said == repr(eval(expression, PYTHON))


def refuse_complex(value: object) -> None:
    if isinstance(value, complex):
        raise ValueError("no real number")


@pytest.mark.requirement("tool-math")
@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2**200", str(2**200)),
        (" 1 +\t2 ", "3"),
        ("0.1 + 0.2", "0.30000000000000004"),
        ("10**3000 // 10**2999", "10"),
        ("factorial(100) / factorial(98)", "9900.0"),
        ("comb(52, 5)", "2598960"),
        ("perm(5)", "120"),
        ("perm(10, 3)", "720"),
        ("mean([1, 2, 4])", repr(statistics.mean([1, 2, 4]))),
        ("median(3, 1, 2)", "2"),
        ("median([4, 1, 2, 3])", "2.5"),
        ("prod([2, 3, 4.0])", "24.0"),
        ("lcm(4, 6, 10)", "60"),
        ("round(2.567, 2)", "2.57"),
        ("round(1234, -2)", "1200"),
        ("pow(3, 200, 7)", str(pow(3, 200, 7))),
        ("pow(3, -1, 7)", "5"),
        ("1 << 10 | 3", "1027"),
        ("~5 & 0xff", "250"),
        ("xor(5, 3)", "6"),
        ("2 * pi * e", repr(2 * math.pi * math.e)),
        ("1e999", "inf"),
        ("inf - inf", "nan"),
        ("[1, 2.5, (3, True)]", "[1, 2.5, [3, True]]"),
        ("1 < 2 < 3", "True"),
        ("2 if 1 > 0 else 1/0", "2"),
        ("0 and 1/0", "0"),
        ("1_000_000", "1000000"),
    ],
)
def test_what_it_can(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.requirement("tool-math-bounded")
@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "10**10**10",
        "(-7)**10**9",
        "9.9**9**9**9",
        "2**-(10**900)",
        "factorial(10**9)",
        "factorial(factorial(20))",
        "comb(10**9, 5 * 10**8)",
        "perm(10**6)",
        "perm(10**6, 10**5)",
        "1 << 10**12",
        "10**3900 * 10**3900",
        "sum([10**3900] + [1])",
        "round(1, -10**9)",
        "round(10**300, -10**18)",
        "pow(3, 10**300, 10**300)",
        "pow(2, 10**10)",
        "ldexp(1, 10**30)",
        "gamma(10**9)",
        "exp(10**9)",
        "lcm(" + ", ".join(f"10**500 + {n}" for n in range(40)) + ")",
        "prod([" + "10**99, " * 60 + "])",
        "'a' * 10**9",
        "[0] * 10**9",
        "[[0] * 10**5 for a in [0] * 10**5]",
        "[x for x in [y for y in range(10**9)]]",
        "sum(range(10**12))",
        "max(*[1] * 10**9)",
        "(" * 150 + "1" + ")" * 150 + " + " + "-" * 600 + "1",
        "(" * 450 + "1" + ")" * 450,
        "-" * 999 + "1",
        "+".join("1" * 490),
        "1" * 1001,
        "[" * 400,
        "lambda: 0",
        "(lambda f: f(f))(lambda f: f(f))",
    ],
)
def test_what_is_hostile_ends_at_once(expression: str) -> None:
    begun = time.thread_time()
    with pytest.raises(InvalidRequest) as found:
        evaluate(expression)
    assert time.thread_time() - begun < 0.5
    assert len(found.value.message) < 1500


@pytest.mark.requirement("tool-math-bounded")
@pytest.mark.parametrize(
    "expression",
    [
        "+".join(["3**8000"] * 90),
        "*".join(["3**80"] * 90),
        "+".join(["isqrt(7**4000)"] * 55),
        "+".join(["factorial(1400)"] * 55),
        "+".join(["comb(9000, 1200)"] * 50),
        "+".join(["pow(3,9**250,7**200)"] * 47),
        "gcd(" + ", ".join(f"7**4000+{n}" for n in range(70)) + ")",
        "[" + ", ".join(["7**1000"] * 15) + "]",
    ],
)
def test_the_most_that_is_allowed_is_quick(expression: str) -> None:
    begun = time.thread_time()
    evaluate(expression)
    assert time.thread_time() - begun < 1


@pytest.mark.requirement("tool-math")
@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("__import__('os').system('id')", "no such function"),
        ("().__class__.__bases__", "Attribute"),
        ("open('/etc/passwd')", "no such function"),
        ("eval('1')", "no such function"),
        ("abs.__self__", "Attribute"),
        ("[1][0]", "Subscript"),
        ("{1: 2}", "Dict"),
        ("f'{1}'", "JoinedStr"),
        ("'text'", "no text"),
        ("b'text'", "no text"),
        ("3j", "no text and no others"),
        ("None", "no text"),
        ("...", "no text"),
        ("1 in [1]", "In is not"),
        ("round(1, ndigits=2)", "named arguments"),
        ("max(*[1, 2])", "Starred"),
        ("(x := 5)", "NamedExpr"),
        ("x + 1", "there is no 'x'"),
        ("abs", "call it"),
        ("abs + 1", "call it"),
        ("max(abs, 1)", "call it"),
        ("sqrt(1, 2)", "it has no value"),
        ("sqrt(-1)", "it has no value"),
        ("(-8)**0.5", "no real number"),
        ("5 / 0", "divides by zero"),
        ("int(nan)", "it has no value"),
        ("int(inf)", "larger than a float"),
        ("min([])", "it has no value"),
        ("mean([])", "not defined"),
        ("median([])", "not defined"),
        ("gcd(1.5, 2)", "no whole number"),
        ("1.5 << 2", "no whole number"),
        ("[1] + [2]", "lists can only"),
        ("max([1], [2])", "lists can only"),
        ("2^8", "write **"),
        ("", "no expression"),
        ("1 +", "no expression"),
        ("1; 2", "no expression"),
        ("import os", "no expression"),
        ("\0", "no expression"),
        ("\ud800", "no expression"),
    ],
)
def test_what_it_does_not(expression: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        evaluate(expression)
    assert why in found.value.message
    assert "Traceback" not in found.value.message


@pytest.mark.asyncio
@pytest.mark.requirement("tool-math", "tool-math-bounded")
async def test_it_is_a_tool() -> None:
    actor = ToolsActor([Math()])

    async def ask(**arguments: Any) -> object:
        return (await actor.call(ToolRequest("math", arguments))).content

    # Several at once, in threads.
    found: list[object] = []

    async def one(number: int) -> None:
        found.append(await ask(expression=f"{number} * 2**{number}"))

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(one, number)
    assert set(found) == {str(number * 2**number) for number in range(50)}
    for wrong in ({}, {"expression": 5}, {"expression": "1", "x": 1}, {"expression": "1" * 1001}):
        with pytest.raises(InvalidRequest):
            await ask(**wrong)
    assert all(name in Math.description for name in (*FUNCTIONS, *CONSTANTS))
    # The longest number that may come can be written.
    assert len(str(2**MAX_BITS - 1)) < 4300
