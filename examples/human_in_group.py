"""You and two agents talk, one after the other; what the agents say is shown as they think of it. Run `ayllu up` first."""

import sys
from contextlib import suppress

import anyio
import anyio.to_thread

from ayllu.client import Stack, connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    GroupCreateRequest,
    GroupEvent,
    GroupEventKind,
    GroupMember,
    MemberKind,
    NotFound,
    SamplingParams,
    SamplingStrategy,
)

AGENTS = {
    "Cook": "You are a cook. You suggest what to eat, in one short sentence.",
    "Guest": "You are hungry and curious. You ask one short question about the food.",
}

SAMPLING = SamplingParams(strategy=SamplingStrategy.top_p, temperature=0.7)


async def create(stack: Stack, model: str) -> None:
    """Make the agents and the group anew."""
    for name, instructions in AGENTS.items():
        with suppress(NotFound):
            await stack.agentic_system.delete(name)
        await stack.agentic_system.create(
            AgenticSystemCreateRequest(
                uuid=name,
                instructions=instructions,
                model=model,
                max_tokens=32,
                sampling_params=SAMPLING,
            )
        )
    with suppress(NotFound):
        await stack.groups.delete("lunch")
    members = [GroupMember(name=name, agent_id=name) for name in AGENTS]
    await stack.groups.create(
        GroupCreateRequest(
            uuid="lunch",
            topic="What we have for lunch.",
            members=[*members, GroupMember(name="You", kind=MemberKind.human)],
            max_remarks=6,
            human_seconds=300.0,
        )
    )


async def show_tokens(stack: Stack, event: GroupEvent) -> None:
    """Follow the turn in which an agent speaks."""
    print(f"{event.member}: ", end="")
    async with stack.agent(str(event.agent_uuid)).follow(str(event.turn_id)) as turn:
        async for told in turn:
            if told.event is not None:
                print(told.event.response_text_delta or "", end="", flush=True)
    print()


async def main(url: str, model: str) -> None:
    async with connect(url) as stack:
        await create(stack, model)
        group = stack.group("lunch")
        async with group.events() as events:
            async for event in events:
                if event.kind is GroupEventKind.speaking:
                    await show_tokens(stack, event)
                elif event.kind is GroupEventKind.waiting:
                    text = await anyio.to_thread.run_sync(input, "You: ")
                    await group.post("You", text or "Hm.")
                elif event.end is not None:
                    print(f"[{event.end}]")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    anyio.run(main, given.get(1, "http://127.0.0.1:8321"), given.get(2, "smollm2"))
