"""A research team: a chief lets several researchers work at once, and writes down what they found.

Run `ayllu up` first, then `python examples/research_team.py http://127.0.0.1:8321`. The events of all turns below stand in the
chief's own stream; one limit holds for the whole team.
"""

import sys
from contextlib import suppress

import anyio

from ayllu.client import Stack, connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    Conflict,
    Delegation,
    Limits,
    SubAgent,
    TurnEvent,
)

FIELDS = {"geographer": "geography", "historian": "history", "cook": "food"}
QUESTION = "Tell me about Peru."


async def create(stack: Stack, request: AgenticSystemCreateRequest) -> None:
    with suppress(Conflict):  # It is there from an earlier run.
        await stack.agentic_system.create(request)


async def found_team(stack: Stack) -> None:
    for name, field in FIELDS.items():
        instructions = f"You know about {field}. Answer with one short fact."
        await create(
            stack,
            AgenticSystemCreateRequest(name, instructions, model="smollm2", max_tokens=48),
        )
    ask = SubAgent(
        tool_name="research",
        agents=list(FIELDS),
        kind=Delegation.fan_out,
        description="Ask researchers, each for one fact.",
        at_once=2,
        limits=Limits(steps=2, seconds=60),
    )
    await create(
        stack,
        AgenticSystemCreateRequest(
            uuid="chief",
            instructions="You write about countries. Ask each researcher one question about the country, then write one sentence.",
            model="smollm2",
            sub_agents=[ask],
            tool_choice="research",  # The first step asks; a larger model decides for itself.
            max_tokens=160,
        ),
    )


def told(event: TurnEvent) -> None:
    """Print what happens, the researchers' turns under their names."""
    name, one = "chief", event
    while one.child is not None:
        name, one = one.child.agent_uuid, one.child.event
    if one.event is not None and one.event.child_turn is not None:
        print(f"{name} asks {one.event.child_turn.agent_uuid}")
    if one.turn is not None and one.turn.response_message is not None:
        print(f"{name}: {one.turn.response_message.content}")


async def main(url: str) -> None:
    async with connect(url) as stack:
        await found_team(stack)
        limits = Limits(steps=20, tokens=20_000, seconds=300)
        async with stack.agent("chief").turn(QUESTION, limits=limits) as turn:
            async for event in turn:
                told(event)
        result = turn.result
        print(f"chief: {result.response_message.content if result.response_message else ''}")
        print(
            f"{len(result.children)} turns below, {result.spent.steps} steps, {result.spent.tokens} tokens"
        )


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
