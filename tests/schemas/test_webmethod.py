"""The rules of `@webmethod`, and what an operation makes of calls and payloads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Optional, Protocol

import msgspec
import pytest

from ayllu import schemas as s
from ayllu.schemas.webmethod import NoParameters


class Note(s.Wire, frozen=True):
    """A note."""

    text: str
    model: str = ""


class Notes(Protocol):
    """Keep notes."""

    @s.webmethod(route="/notes/add", routed_by="model", timeout=5)
    async def add(self, request: Note) -> Note:
        """Add a note.

        More about it.
        """
        ...

    @s.webmethod(route="/notes/find", method="GET", operation_id="find_notes", api="Notebook")
    def find(
        self,
        text: str,
        limit: Annotated[int, msgspec.Meta(ge=1)] = 10,
        # The old spelling of an optional type must work too.
        author: Optional[str] = None,  # noqa: UP045
        *,
        tags: list[str] | None = None,
    ) -> AsyncIterator[Note]: ...

    @s.webmethod(route="/clear", method="DELETE")
    async def clear(self) -> None: ...

    def helper(self) -> None: ...


ADD, FIND, CLEAR = s.operations_of(Notes)


@pytest.mark.requirement("own-actors")
def test_an_own_protocol_is_compiled() -> None:
    assert [operation.name for operation in (ADD, FIND, CLEAR)] == [
        "notes.add",
        "notes.find",
        "clear",
    ]
    assert (ADD.summary, ADD.timeout, ADD.namespace) == ("Add a note.", 5, "notes")
    assert (ADD.api, ADD.operation_id, ADD.routed_by) == ("Notes", "notes_add", "model")
    assert (FIND.api, FIND.operation_id, FIND.kind, FIND.sse) == (
        "Notebook",
        "find_notes",
        "list",
        False,
    )
    assert (CLEAR.output, CLEAR.input, CLEAR.namespace) == (None, NoParameters, "")
    assert CLEAR.summary == ""


@pytest.mark.requirement("spec-query-and-body")
def test_scalars_are_in_the_query_and_the_composite_one_is_the_body() -> None:
    found = {parameter.name: parameter for parameter in FIND.parameters}
    assert {name: parameter.in_query for name, parameter in found.items()} == {
        "text": True,
        "limit": True,
        "author": True,
        "tags": False,
    }
    assert {name for name, parameter in found.items() if parameter.required} == {"text"}


def test_arguments_become_a_payload_and_the_payload_arguments() -> None:
    payload = FIND.input_from(("x",), {"tags": ["t"]})
    assert FIND.arguments(payload) == {"text": "x", "limit": 10, "author": None, "tags": ["t"]}
    assert FIND.read(s.encode(payload)) == payload
    with pytest.raises(s.InvalidRequest, match=r"\$\.limit"):
        FIND.read(b'{"text": "x", "limit": 0}')


def test_a_request_is_its_own_payload() -> None:
    note = Note(text="x", model="m")
    assert ADD.input_from((note,), {}) is note
    assert ADD.input_from((), {"request": note}) is note
    assert ADD.arguments(note) == {"request": note}
    assert ADD.model_of(note) == "m"
    assert FIND.model_of(note) is None


def test_nothing_is_an_empty_payload() -> None:
    assert CLEAR.input_from((), {}) == NoParameters()
    assert CLEAR.arguments(NoParameters()) == {}
    assert CLEAR.read(b"") == CLEAR.read("{}") == NoParameters()


@pytest.mark.parametrize(
    ("operation", "args", "kwargs"),
    [
        (FIND, ("x", 1, "a", [], "too many"), {}),
        (FIND, ("x",), {"text": "twice"}),
        (FIND, ("x",), {"unknown": 1}),
        (FIND, (), {}),
        (CLEAR, (1,), {}),
        (CLEAR, (), {"x": 1}),
        (ADD, (), {}),
        (ADD, (), {"note": Note(text="x")}),
        (ADD, (Note(text="x"),), {"model": "m"}),
        (ADD, ({"text": "x"},), {}),
    ],
)
def test_arguments_that_do_not_fit_are_a_type_error(
    operation: s.Operation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        operation.input_from(args, kwargs)


def _nothing_marked() -> type:
    class Wrong(Protocol):
        async def run(self) -> None: ...

    return Wrong


def _another_name() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run")
        async def start(self) -> None: ...

    return Wrong


def _no_reply_type() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run")
        async def run(self): ...  # type: ignore[no-untyped-def]

    return Wrong


def _stream_without_events() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run")
        async def stream_run(self) -> Note: ...

    return Wrong


def _assembles_without_stream() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run", assemble=list)
        def run(self) -> AsyncIterator[Note]: ...

    return Wrong


def _request_is_no_struct() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run")
        async def run(self, request: dict[str, Any]) -> None: ...

    return Wrong


def _streamed_tool() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run", tool=True)
        def run(self, name: str) -> AsyncIterator[Note]: ...

    return Wrong


def _two_bodies() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run")
        async def run(self, names: list[str], notes: list[Note]) -> None: ...

    return Wrong


def _routed_by_nothing() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run", routed_by="engine")
        async def run(self, request: Note) -> None: ...

    return Wrong


def _sse_without_stream() -> type:
    class Wrong(Protocol):
        @s.webmethod(route="/jobs/run", sse=True)
        async def run(self) -> Note: ...

    return Wrong


@pytest.mark.requirement("webmethod-rules")
@pytest.mark.parametrize(
    "make",
    [
        _nothing_marked,
        _another_name,
        _no_reply_type,
        _stream_without_events,
        _assembles_without_stream,
        _request_is_no_struct,
        _streamed_tool,
        _two_bodies,
        _routed_by_nothing,
        _sse_without_stream,
    ],
)
def test_a_broken_rule_is_told_at_import(make: Callable[[], type]) -> None:
    with pytest.raises(TypeError, match="Wrong"):
        s.operations_of(make())
