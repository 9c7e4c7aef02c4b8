"""Python functions as tools: their schemas, what they are given and return, and what goes wrong in them."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import tool_functions
from support.mcp_servers import called, running_tools
from support.processes import descendants
from support.tool_functions import PICTURE

from ayllu.actors.tools.actor import ToolsActor
from ayllu.actors.tools.functions.docstrings import parameters_of
from ayllu.actors.tools.functions.own import function_tool
from ayllu.actors.tools.functions.settings import FunctionSettings
from ayllu.actors.tools.functions.tool import FunctionTool
from ayllu.actors.tools.settings import ToolsConfig, check_tools
from ayllu.bus import Bus, local_bus, serve
from ayllu.bus.client import offered_tools
from ayllu.schemas import (
    AylluError,
    Content,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    TooLarge,
)
from ayllu.schemas.wire import convert

pytestmark = pytest.mark.asyncio
MODULE = "support.tool_functions"


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@asynccontextmanager
async def served(*names: str, **settings: Any) -> AsyncIterator[Bus]:
    functions = [FunctionSettings(f"{MODULE}:{name}", **settings) for name in names]
    async with local_bus() as bus:
        async with running_tools(bus, ToolsConfig(builtin=[], functions=functions)):
            yield bus


@asynccontextmanager
async def own(*names: str, **settings: Any) -> AsyncIterator[Bus]:
    """Serve functions in this process."""
    tools = [function_tool(getattr(tool_functions, name), **settings) for name in names]
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, ToolsActor(tools))
        yield bus
        tasks.cancel_scope.cancel()


Served = Callable[..., Any]
both = pytest.mark.parametrize("served", [served, own], ids=["children", "own process"])


def children() -> set[int]:
    return {pid for pid, line in descendants(os.getpid()).items() if "functions.child" in line}


@both
@pytest.mark.requirement("function-schema")
async def test_the_schema_is_the_signature_and_the_docstring(served: Served) -> None:
    async with served("height", idempotent=True, max_output=1000) as bus:
        offer = (await offered_tools(bus))["height"]
    assert (offer.description, offer.idempotent) == ("Return how high a place lies.", True)
    assert offer.max_output == 1000
    properties = offer.parameters["properties"]
    assert offer.parameters["required"] == ["place"]
    assert offer.parameters["additionalProperties"] is False
    assert properties["place"]["description"] == "Where, by its name."
    assert properties["unit"] == {
        "description": "Of the answer.",
        "default": "m",
        "enum": ["ft", "m"],
    }
    assert offer.parameters["$defs"]["Place"]["required"] == ["name"]


@both
@pytest.mark.requirement("function-calls")
async def test_arguments_are_converted_strictly(served: Served) -> None:
    place = {"name": "Cusco", "height": 3399}
    async with served("height") as bus:
        assert await called(bus, "height", place=place) == "Cusco: 3399 m"
        assert await called(bus, "height", place=place, unit="ft", times=2) == "Cusco: 6798 ft"
        wrongs: list[dict[str, Any]] = [
            {"place": "Cusco"},
            {"place": {}},
            {"place": place, "unit": "km"},
            {"place": place, "times": "2"},
            {"place": place, "times": 2.5},
            {"place": place, "more": 1},
            {},
        ]
        for wrong in wrongs:
            with pytest.raises(InvalidRequest):
                await called(bus, "height", **wrong)


@both
@pytest.mark.requirement("function-calls")
@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("picture", PICTURE),
        ("both", ["Look:", PICTURE]),
        ("list", '["a","b"]'),
        ("number", "3"),
        ("nothing", "null"),
    ],
)
async def test_what_functions_return(served: Served, what: str, content: Content) -> None:
    async with served("answer") as bus:
        assert await called(bus, "answer", what=what) == content


@both
@pytest.mark.requirement("function-contained")
async def test_what_goes_wrong_is_said_without_what_is_nobodys_business(served: Served) -> None:
    async with served("does", "answer") as bus:
        with pytest.raises(InvalidRequest, match="no such city"):
            await called(bus, "does", what="refuse")
        with pytest.raises(EngineError, match="raised ValueError; the log") as raised:
            await called(bus, "does", what="raise")
        assert "secret" not in str(raised.value)
        with pytest.raises(EngineError, match="returned a object"):
            await called(bus, "answer", what="thing")
        with pytest.raises(TooLarge):
            await called(bus, "answer", what="much")
        assert await called(bus, "does", what="print") == "print"


@pytest.mark.requirement("function-contained")
@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("exit", EngineError, "ended its process"),
        ("die", EngineError, "ended its process"),
        ("hang", DeadlineExceeded, "longer than 0.5 s"),
        ("eat", EngineError, "raised MemoryError"),
    ],
)
async def test_what_takes_the_process_down_takes_no_other(
    what: str, error: type[AylluError], said: str
) -> None:
    async with served("does", "answer", seconds=0.5, memory_mib=256) as bus:
        with pytest.raises(error, match=said):
            await called(bus, "does", what=what)
        assert await called(bus, "does", what="well") == "well"
        assert await called(bus, "answer", what="number") == "3"
    assert not children()


@pytest.mark.requirement("function-contained")
async def test_more_than_can_be_said_is_refused_by_the_child() -> None:
    async with served("answer") as bus:
        pid = await called(bus, "answer", what="pid")
        with pytest.raises(TooLarge):
            await called(bus, "answer", what="more")
        assert await called(bus, "answer", what="pid") == pid


@pytest.mark.requirement("function-contained")
async def test_a_cancelled_call_ends_its_process_and_no_other() -> None:
    async with served("slowly", at_once=2) as bus:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(called_later, bus)
                with anyio.move_on_after(0.5):
                    await called(bus, "slowly", seconds=1000)
            assert json.loads(str(await called(bus, "slowly", seconds=0))) == {"slept": 0}
            assert len(children()) <= 2
    assert not children()


async def called_later(bus: Bus) -> None:
    assert json.loads(str(await called(bus, "slowly", seconds=0.6))) == {"slept": 0.6}


@pytest.mark.requirement("function-contained")
async def test_calls_run_at_once_up_to_a_limit() -> None:
    async with served("slowly", at_once=2) as bus:
        await called(bus, "slowly", seconds=0)
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(called_briefly, bus)
        assert anyio.current_time() - began >= 0.4
        assert len(children()) == 2


async def called_briefly(bus: Bus) -> None:
    await called(bus, "slowly", seconds=0.2)


@pytest.mark.requirement("function-schema")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bare", "the parameter x of support.tool_functions:bare has no annotation"),
        ("many", r"support.tool_functions:many takes any number of arguments \(\*things\)"),
        (
            "thing",
            "the parameter y of support.tool_functions:thing has a type that JSON cannot say",
        ),
        ("silent", "support.tool_functions:silent has no docstring"),
        ("Place", "is no function, but a type"),
        ("missing", "has no function missing"),
    ],
)
async def test_what_can_be_no_tool_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        async with FunctionTool(FunctionSettings(f"{MODULE}:{name}")):
            pytest.fail("it can be run")
    if hasattr(tool_functions, name):
        with pytest.raises(InvalidRequest, match=said):
            function_tool(getattr(tool_functions, name))
    assert not children()


@pytest.mark.requirement("function-schema")
async def test_a_configured_description_and_name_go_before_the_functions() -> None:
    async with served("silent", name="quiet", description="Say nothing.") as bus:
        assert (await offered_tools(bus))["quiet"].description == "Say nothing."


@pytest.mark.requirement("function-settings")
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"function": "no_colon"}], "function"),
        ([{"function": "a:b; import os"}], "function"),
        ([{"function": "a:math"}], "'math' is taken"),
        ([{"function": "a:f"}, {"function": "b:f"}], "'f' is taken"),
        ([{"function": "a:f", "name": "a.b"}], "name"),
        ([{"function": "a:f", "seconds": 0}], "seconds"),
        ([{"function": "a:f", "at_once": 0}], "at_once"),
        ([{"function": "a:f", "shell": True}], "shell"),
    ],
)
async def test_wrong_settings_are_refused(entries: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check_tools(convert({"functions": entries}, ToolsConfig))


@pytest.mark.requirement("function-schema")
async def test_docstrings_of_all_shapes() -> None:
    def documented() -> None:
        """One.

        Args:
            a: First: with a colon.
            *b (int, optional): Second,
                and on.

                And further.

            c:
                On a line of its own.

        Returns:
            d: nothing.
        """

    assert parameters_of(documented) == {
        "a": "First: with a colon.",
        "b": "Second, and on. And further.",
        "c": "On a line of its own.",
    }
    assert parameters_of(lambda: None) == {}
