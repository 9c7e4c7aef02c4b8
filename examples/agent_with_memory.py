"""An agent with a memory bank, and with a tool that is an own actor: in this process, called over the bus.

Run `ayllu up` first, and give both addresses: the gateway's, and the bus's from the file `bus.url` of its data directory:
`python examples/agent_with_memory.py http://127.0.0.1:8321 "$(cat .ayllu/bus.url)"`.
"""

import sys
from typing import Protocol

import anyio

from ayllu.bus import connect as connect_to_bus
from ayllu.bus import serve
from ayllu.client import Stack, connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    ExecutionStepType,
    MemoryBankDocument,
    NotFound,
    ToolDefinition,
    webmethod,
)

NOTES = {
    "opening": "The museum of Cusco is open from nine to five.",
    "tickets": "A ticket of the museum of Cusco costs ten soles.",
}


class Weather(Protocol):
    """Knows the weather."""

    # Whoever asks twice gets the same answer: the call may be made again if an executor dies over it.
    @webmethod(route="/weather/today", tool=True, idempotent=True)
    async def today(self, city: str) -> str:
        """Return today's weather in a city."""
        ...


class WeatherActor(Weather):
    async def today(self, city: str) -> str:
        return f"It is sunny in {city}."


async def create(stack: Stack) -> None:
    """Make the bank and the agent anew."""
    try:
        await stack.agentic_system.delete("guide")
        await stack.memory_banks.drop("museum")
    except NotFound:
        pass
    documents = [
        MemoryBankDocument(uuid, text.encode(), {}, "text/plain") for uuid, text in NOTES.items()
    ]
    await stack.memory_banks.create("museum", "Notes on the museum", documents)
    tool = ToolDefinition(
        tool_name="weather.today",
        description="Return today's weather in a city.",
        parameters={"city": {"type": "string"}},
    )
    await stack.agentic_system.create(
        AgenticSystemCreateRequest(
            uuid="guide",
            instructions="You are a helpful assistant.",
            model="smollm2",
            memory_bank_uuids=["museum"],
            available_tools=[tool],
            executable_tools={"weather.today"},
            tool_choice="weather.today",  # So small a model would rarely call it by itself.
            max_tokens=48,
        )
    )


async def ask(stack: Stack, question: str) -> None:
    """Let the agent take a turn, and print what it does."""
    async with stack.agent("guide").turn(question) as turn:
        async for told in turn:
            event = told.event
            if event is None:
                continue
            if event.retrieved_document is not None:
                print(f"found: {event.retrieved_document.content.decode()}")
            if event.tool_call is not None:
                print(f"calls: {event.tool_call.tool_name} {event.tool_call.arguments}")
            if event.tool_response_delta is not None:
                print(f"answer: {event.tool_response_delta.content}")
            if event.step_type is ExecutionStepType.model_inference:
                print(event.response_text_delta or "", end="", flush=True)
    print(f"\n{turn.result.status}, {len(turn.result.steps)} steps")


async def main(url: str, bus_url: str) -> None:
    async with (
        connect_to_bus(bus_url, name="weather") as bus,
        anyio.create_task_group() as tasks,
        connect(url) as stack,
    ):
        await tasks.start(serve, bus, WeatherActor())
        await create(stack)
        await ask(stack, "How is the weather in Cusco?")
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
