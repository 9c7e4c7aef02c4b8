"""A writer and a critic take turns until the critic approves, or six remarks were made. Run `ayllu up` first."""

import sys
from contextlib import suppress

import anyio

from ayllu.client import Stack, connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    GroupCreateRequest,
    GroupMember,
    NotFound,
    SamplingParams,
    SamplingStrategy,
)

WRITER = "You write one short sentence about the topic. If somebody criticised it, you write a better one."
CRITIC = "You are a critic. If the last sentence is good, answer APPROVED. Else say what is wrong with it."

SAMPLING = SamplingParams(strategy=SamplingStrategy.top_p, temperature=0.7)


async def create(stack: Stack, model: str) -> None:
    """Make the agents and the group anew."""
    for agent, instructions in (("writer", WRITER), ("critic", CRITIC)):
        with suppress(NotFound):
            await stack.agentic_system.delete(agent)
        await stack.agentic_system.create(
            AgenticSystemCreateRequest(
                uuid=agent,
                instructions=instructions,
                model=model,
                max_tokens=48,
                sampling_params=SAMPLING,
            )
        )
    with suppress(NotFound):
        await stack.groups.delete("sentence")
    await stack.groups.create(
        GroupCreateRequest(
            uuid="sentence",
            topic="Why llamas are good company.",
            members=[
                GroupMember(name="Writer", agent_id="writer"),
                GroupMember(name="Critic", agent_id="critic"),
            ],
            until="APPROVED",
            until_by=["Critic"],
            max_remarks=6,
        )
    )


async def main(url: str, model: str) -> None:
    async with connect(url) as stack:
        await create(stack, model)
        async with stack.group("sentence").events() as events:
            async for event in events:
                if event.remark is not None:
                    print(f"{event.remark.member}: {event.remark.text}\n", flush=True)
                if event.end is not None:
                    print(f"[{event.end}]")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    anyio.run(main, given.get(1, "http://127.0.0.1:8321"), given.get(2, "smollm2"))
