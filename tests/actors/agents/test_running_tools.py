"""One call of a tool by an executor: tried again only where that does no harm, and bounded in time and length."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from support.agents import asked, running_agents
from support.weather import calling

from ayllu.actors.agents import tools as running
from ayllu.actors.agents.records import BoundTool
from ayllu.actors.agents.tools import TRIES, Answer, bind, run_tool
from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.tools.actor import ToolListActor, ToolsActor, offer_of
from ayllu.bus.bus import Bus, local_bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    Attachment,
    AylluError,
    Content,
    EngineError,
    InvalidRequest,
    NotFound,
    ToolCall,
    ToolDefinition,
    ToolList,
    ToolRequest,
    Tools,
    Unavailable,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("tool-limits")]


class Counting:
    """A tool that does what it is told, and counts how often."""

    description = "Counts."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string"}},
        "additionalProperties": False,
    }

    def __init__(self, work: Callable[[int], Content], **limits: Any) -> None:
        self.name = "count"
        self.idempotent: bool = limits.get("idempotent", False)
        self.seconds: float = limits.get("seconds", 5.0)
        self.max_output: int = limits.get("max_output", 100)
        self.requests: list[ToolRequest] = []
        self._work = work

    async def run(self, request: ToolRequest) -> Content:
        self.requests.append(request)
        if len(self.requests) == 1 and self.seconds < 1:
            await anyio.sleep_forever()
        return self._work(len(self.requests))


def failing(times: int, error: AylluError) -> Callable[[int], Content]:
    def work(number: int) -> Content:
        if number <= times:
            raise error
        return f"run {number}"

    return work


@asynccontextmanager
async def serving(tool: Counting) -> AsyncIterator[tuple[Bus, BoundTool]]:
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, ToolsActor([tool]), ToolListActor(bus))
        with anyio.fail_after(20):
            yield bus, bind(offer_of(tool), None)
        tasks.cancel_scope.cancel()


CALL = ToolCall("count", {"code": "x"})


@pytest.mark.parametrize(
    ("idempotent", "error", "times", "runs", "says"),
    [
        (True, Unavailable("away"), 2, 3, "run 3"),
        (True, Unavailable("away"), TRIES, TRIES, "The tool failed: away"),
        (False, Unavailable("away"), 1, 1, "The tool failed: away"),
        (True, EngineError("broken"), 1, 1, "The tool failed: broken"),
    ],
    ids=["again", "not for ever", "not idempotent", "not retryable"],
)
async def test_what_is_tried_again(
    idempotent: bool, error: AylluError, times: int, runs: int, says: str
) -> None:
    tool = Counting(failing(times, error), idempotent=idempotent)
    async with serving(tool) as (bus, bound):
        answer = await run_tool(bus, bound, CALL, "key")
    assert answer.response.content == says
    assert len(tool.requests) == runs


async def test_what_took_too_long_is_not_tried_again() -> None:
    tool = Counting(failing(0, Unavailable("")), idempotent=True, seconds=0.1)
    async with serving(tool) as (bus, bound):
        answer = await run_tool(bus, bound, CALL, "key")
    assert answer.response.content == "The tool failed: it took longer than 0.1 s"
    assert (answer.outcome, len(tool.requests)) == ("failed", 1)


async def test_text_is_bounded_and_attachments_apart() -> None:
    picture = Attachment("data:image/png;base64," + "A" * 4000, "image/png")
    tool = Counting(lambda number: ["a plot", picture] if number == 1 else "x" * 101)
    async with serving(tool) as (bus, bound):
        answer = await run_tool(bus, bound, CALL, "key")
        assert answer.response.content == ["a plot", picture]
        answer = await run_tool(bus, bound, CALL, "key")
    assert "101 bytes" in str(answer.response.content)
    assert answer.outcome == "failed"


async def test_what_an_actor_says_too_much_is_not_believed() -> None:
    """The executor counts again: the actor may be anybody's."""
    tool = Counting(lambda _: "x" * 90)
    async with serving(tool) as (bus, bound):
        narrow = msgspec.structs.replace(bound, max_output=10)
        answer = await run_tool(bus, narrow, CALL, "key")
    assert "90 bytes, more than the 10" in str(answer.response.content)


async def test_a_tool_that_nobody_serves_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Counting(lambda _: "here")
    bound = bind(offer_of(tool), None)
    answers: list[Answer] = []
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as both:

                async def ask() -> None:
                    answers.append(await run_tool(bus, bound, CALL, "key"))

                both.start_soon(ask)
                await anyio.wait_all_tasks_blocked()
                await tasks.start(serve, bus, ToolsActor([tool]))
            assert answers[0].response.content == "here"
        tasks.cancel_scope.cancel()
    monkeypatch.setattr(running, "ABSENCE_SECONDS", 0.2)
    async with local_bus() as bus:
        answer = await run_tool(bus, bound, CALL, "key")
    assert answer.response.content == "The tool failed: nobody runs it at the moment"


async def test_earlier_calls_of_a_turn_are_told() -> None:
    """Those that were answered, in their order; not those that failed."""
    tool = Counting(failing(1, EngineError("no")))
    codes = iter("abc")

    def script(prompt: Prompt, _: Generation) -> list[str]:
        code = next(codes, None)
        arguments = f'{{"name": "count", "arguments": {{"code": "{code}"}}}}'
        return [calling(arguments)] if code is not None else ["done"]

    async with local_bus() as bus:
        async with running_agents(bus, ToolsActor([tool]), script=script) as agents:
            await agents.create(
                "al", available_tools=[ToolDefinition("count")], executable_tools={"count"}
            )
            with anyio.fail_after(20):
                await agents.system.execute(asked("al", "Go.", turn_id="t"))
    assert [request.arguments["code"] for request in tool.requests] == ["a", "b", "c"]
    assert [request.earlier for request in tool.requests] == [[], [], [{"code": "b"}]]


async def test_the_api_lists_tools_and_refuses_what_it_must() -> None:
    tool = Counting(lambda _: "here")
    async with serving(tool) as (bus, _):
        offers = [offer async for offer in client(ToolList, bus).list()]
        assert [offer.name for offer in offers] == ["count"]
        api = client(Tools, bus)
        assert (await api.call(ToolRequest("count"))).content == "here"
        with pytest.raises(InvalidRequest, match="code"):
            await api.call(ToolRequest("count", {"code": 3}))
        with pytest.raises(NotFound, match="offered are: count"):
            await api.call(ToolRequest("other"))


@pytest.mark.parametrize("wrong", ["name", "schema"])
async def test_tools_that_cannot_be_served(wrong: str) -> None:
    tools = [Counting(lambda _: "") for _ in range(2 if wrong == "name" else 1)]
    if wrong == "schema":
        tools[0].parameters = {"type": 3}
    with pytest.raises(InvalidRequest):
        ToolsActor(tools)
