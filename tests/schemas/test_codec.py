"""What is written is read again; what does not fit is refused, with the path of the field."""

from __future__ import annotations

import base64
import json
from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect as mi

from ayllu import schemas as s
from ayllu.schemas.webmethod import NoParameters, encode_input
from ayllu.schemas.wire import convert, decoder

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=3,
)
URL = st.builds(
    str.__add__, st.sampled_from(["https://", "http://", "file://", "data:"]), st.text(max_size=8)
)


def integers(found: mi.IntType) -> st.SearchStrategy[int]:
    """Return all integers within bounds, or of 64 bits; ours have no exclusive lower bound."""
    assert found.gt is None
    top = found.le if found.lt is None else found.lt - 1
    return st.integers(
        -(2**63) if found.ge is None else found.ge, 2**63 - 1 if top is None else top
    )


def floats(found: mi.FloatType) -> st.SearchStrategy[float]:
    """Return all finite numbers within bounds."""
    return st.floats(
        min_value=found.ge if found.gt is None else found.gt,
        max_value=found.le if found.lt is None else found.lt,
        exclude_min=found.gt is not None,
        exclude_max=found.lt is not None,
        allow_nan=False,
        allow_infinity=False,
    )


def texts(found: mi.StrType) -> st.SearchStrategy[str]:
    """Return texts within bounds, or of a pattern; what follows the beginning of a URL is anything."""
    if found.pattern is None:
        return st.text(min_size=found.min_length or 0, max_size=8)
    if found.pattern.endswith("$"):
        # `$` also stands before a last newline: for msgspec as for `re`.
        return st.from_regex(found.pattern)
    return URL


def values(found: mi.Type) -> st.SearchStrategy[Any]:  # noqa: PLR0911, PLR0912 - one case a kind
    """Return all values of a wire type, small ones."""
    match found:
        case mi.Metadata(type=inner):
            return values(inner)
        case mi.AnyType():
            return JSON
        case mi.NoneType():
            return st.none()
        case mi.BoolType():
            return st.booleans()
        case mi.IntType():
            return integers(found)
        case mi.FloatType():
            return floats(found)
        case mi.StrType():
            return texts(found)
        case mi.BytesType():
            return st.binary(max_size=8)
        case mi.DateTimeType():
            return st.datetimes(timezones=st.just(UTC))
        case mi.EnumType():
            return st.sampled_from(found.cls)
        case mi.ListType():
            least = found.min_length or 0
            return st.lists(values(found.item_type), min_size=least, max_size=2)
        case mi.VarTupleType():
            least = found.min_length or 0
            return st.lists(values(found.item_type), min_size=least, max_size=2).map(tuple)
        case mi.LiteralType():
            return st.sampled_from(found.values)
        case mi.SetType():
            return st.sets(values(found.item_type), max_size=2)
        case mi.DictType():
            return st.dictionaries(values(found.key_type), values(found.value_type), max_size=2)
        case mi.UnionType():
            return st.one_of([values(option) for option in found.types])
        case mi.StructType():
            # Deferred, since a struct may hold others of its kind.
            return st.deferred(lambda: struct_values(found))
    raise NotImplementedError(found)


def struct_values(found: mi.StructType) -> st.SearchStrategy[Any]:
    """Return all values of a struct."""
    required = {field.name: values(field.type) for field in found.fields if field.required}
    optional = {field.name: values(field.type) for field in found.fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional).map(
        lambda fields: found.cls(**fields)
    )


OPERATIONS = list(s.OPERATIONS.values())
TYPES = {
    getattr(type_, "__name__", str(type_)): type_
    for operation in OPERATIONS
    for type_ in (operation.input, operation.output)
    if type_ is not None
}
STRATEGIES = {name: values(mi.type_info(type_)) for name, type_ in TYPES.items()}


@pytest.mark.requirement("codec-round-trip")
@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_value_is_read_as_it_was_written(name: str, data: st.DataObject) -> None:
    value = data.draw(STRATEGIES[name])
    text = s.encode(value)
    assert s.decode(text, TYPES[name]) == value
    assert decoder(TYPES[name]) is decoder(TYPES[name])


REQUESTS = {operation.input.__name__: operation.input for operation in OPERATIONS}


@pytest.mark.requirement("spec-unknown-fields")
@pytest.mark.parametrize("name", REQUESTS)
def test_a_misspelt_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(s.InvalidRequest, match="misspelt"):
        s.decode(b'{"misspelt": 1}', REQUESTS[name])


@pytest.mark.requirement("spec-unknown-fields")
def test_a_misspelt_option_deep_inside_is_refused_with_its_path() -> None:
    request = {
        "model": "m",
        "dialog": {"message": {"role": "user", "content": "x"}},
        "sampling_params": {"temprature": 1},
    }
    with pytest.raises(s.InvalidRequest, match=r"temprature.*\$\.sampling_params"):
        s.decode(json.dumps(request), s.ChatCompletionRequest)


@pytest.mark.requirement("spec-unknown-fields")
def test_a_reply_may_have_more_fields_than_its_reader_knows() -> None:
    text = b'{"content": "x", "of_a_newer_server": 1}'
    assert s.decode(text, s.CompletionResponse) == s.CompletionResponse(content="x")


@pytest.mark.requirement("errors-name-the-path")
@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"content": 1}, r"\$\.content"),
        ({"model": ""}, r"\$\.model"),
        ({"max_tokens": -1}, r"\$\.max_tokens"),
        ({"max_tokens": "1"}, r"\$\.max_tokens"),
        ({"stream": 1}, r"\$\.stream"),
        ({"sampling_params": {"strategy": "beam"}}, r"\$\.sampling_params\.strategy"),
        ({"sampling_params": {"temperature": -0.1}}, r"\$\.sampling_params\.temperature"),
        ({"sampling_params": {"top_p": 0}}, r"\$\.sampling_params\.top_p"),
        ({"sampling_params": {"seed": -1}}, r"\$\.sampling_params\.seed"),
        ({"content": {"url": "ftp://x", "mime_type": "y"}}, r"\$\.content\.url"),
        ({"content": ["a", {"url": "https://x"}]}, r"mime_type.*\$\.content\[1\]"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(s.InvalidRequest, match=path):
        s.decode(json.dumps({"content": "x", "model": "m", **fields}), s.CompletionRequest)


@pytest.mark.requirement("errors-name-the-path")
def test_a_missing_field_is_named() -> None:
    with pytest.raises(s.InvalidRequest, match="model"):
        s.decode(b'{"content": "x"}', s.CompletionRequest)


@pytest.mark.requirement("hostile-json")
@pytest.mark.parametrize("text", [b"", b"{", b"nul", b"\xff", b'{"content": "\xff"}', b"{} {}"])
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(s.InvalidRequest):
        s.decode(text, s.CompletionRequest)


@pytest.mark.requirement("hostile-json")
@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_deep_nesting_is_refused(opening: str) -> None:
    closing = "}" if opening.startswith("{") else "]"
    deep = opening * 200_000 + "1" + closing * 200_000
    text = '{"tool_name": "x", "arguments": {"a": ' + deep + "}}"
    with pytest.raises(s.InvalidRequest):
        s.decode(text, s.ToolCall)


@pytest.mark.requirement("spec-types")
def test_a_documents_content_is_base64() -> None:
    document = s.MemoryBankDocument(
        uuid="d", content=b"\x00\xffllama", metadata={}, mime_type="text/plain"
    )
    wire = json.loads(s.encode(document))
    assert base64.b64decode(wire["content"], validate=True) == b"\x00\xffllama"
    with pytest.raises(s.InvalidRequest, match=r"\$\.content"):
        s.decode(json.dumps({**wire, "content": "not base64!"}), s.MemoryBankDocument)


@pytest.mark.requirement("spec-types")
@pytest.mark.parametrize(
    ("step", "type_"),
    [
        ({"text": "hi"}, s.ModelInferenceStep),
        ({"tool_calls": [], "tool_responses": []}, s.ToolExecutionStep),
        ({}, s.SafetyFilteringStep),
        ({"documents": [], "scores": []}, s.MemoryRetrievalStep),
    ],
)
def test_a_step_is_read_by_its_type(step: dict[str, Any], type_: type[msgspec.Struct]) -> None:
    tag = type_.__struct_config__.tag
    wire = {"step_type": tag, "uuid": "u", **step}
    message = {"role": "assistant", "content": "hi"}
    turn = {"user_messages": [], "steps": [wire], "response_message": message}
    read = s.decode(json.dumps(turn), s.AgenticSystemTurn)
    assert isinstance(read.steps[0], type_)
    assert json.loads(s.encode(read.steps[0])) == wire
    wrong = {**turn, "steps": [{**wire, "step_type": "thinking"}]}
    with pytest.raises(s.InvalidRequest, match=r"\$\.steps\[0\]"):
        s.decode(json.dumps(wrong), s.AgenticSystemTurn)


@pytest.mark.requirement("notes-defaults-omitted")
def test_defaults_are_left_out_and_null_is_not_absent() -> None:
    assert s.encode(s.CompletionRequest(content="x", model="m")) == b'{"content":"x","model":"m"}'
    wire = b'{"agent_uuid": "a", "messages": [], "turn_history": '
    absent = s.decode(b'{"agent_uuid": "a", "messages": []}', s.AgenticSystemExecuteRequest)
    null = s.decode(wire + b"null}", s.AgenticSystemExecuteRequest)
    empty = s.decode(wire + b"[]}", s.AgenticSystemExecuteRequest)
    assert absent.turn_history is None
    assert null == absent
    assert empty.turn_history == []
    assert b'"turn_history":[]' in s.encode(empty)


@pytest.mark.requirement("spec-open-models")
@pytest.mark.parametrize("model", ["llama3_8b_chat", "smollm2", "org/any-model:v1 ü"])
def test_any_name_of_a_model_is_accepted(model: str) -> None:
    assert s.decode(json.dumps({"content": "", "model": model}), s.CompletionRequest).model == model


@pytest.mark.requirement("codec-round-trip")
def test_plain_values_are_converted() -> None:
    loose = convert({"iters": "3", "path": "file:///x"}, s.Checkpoint, strict=False)
    assert loose == s.Checkpoint(iters=3, path="file:///x")
    with pytest.raises(s.InvalidRequest, match=r"\$\.iters"):
        convert({"iters": "3", "path": "file:///x"}, s.Checkpoint)


@pytest.mark.requirement("errors-name-the-path")
def test_a_python_call_is_checked_before_it_is_sent() -> None:
    operation = s.OPERATIONS["completion"]
    good = s.CompletionRequest(content="x", model="m")
    assert encode_input(operation, good) == s.encode(good)
    with pytest.raises(s.InvalidRequest, match=r"\$\.max_tokens"):
        encode_input(operation, s.CompletionRequest(content="x", model="m", max_tokens=-1))
    with pytest.raises(s.InvalidRequest, match="completion"):
        encode_input(operation, s.CompletionRequest(content=object(), model="m"))  # type: ignore[arg-type]


def test_an_empty_payload_is_an_empty_request() -> None:
    assert s.OPERATIONS["models"].read(b"") == NoParameters()
