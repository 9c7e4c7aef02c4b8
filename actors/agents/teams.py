"""Whom an agent may ask: its sub-agents are there, and none of them waits for it in turn."""

from __future__ import annotations

from collections.abc import Mapping

from ...bus.bus import Bus
from ...schemas import (
    AgenticSystemCreateRequest,
    AylluError,
    Delegation,
    InvalidRequest,
    NotFound,
    SubAgent,
    Unsupported,
    decode,
)
from .delegation import HAND_BACK, child_id, hands_off, lane_problem
from .desk import AGENT_BUCKET
from .entries import durable_claims, unpacked
from .records import AgentRecord

ANY = child_id("", 0, 0)
"""As long as all ids of turns below."""

Team = Mapping[str, list[str]]
"""Whom each agent may ask, as far as they can be reached from one."""


async def check_team(
    bus: Bus, config: AgenticSystemCreateRequest, problems: list[AylluError]
) -> None:
    """Note what is wrong with an agent's sub-agents.

    Args:
        bus: the bus.
        config: what the agent is created with.
        problems: what is wrong is added.
    """
    if not config.sub_agents:
        return
    problems += _wrong_names(config)
    problems += [problem for sub in config.sub_agents for problem in _wrong_kind(sub)]
    if config.output_shields and any(map(hands_off, config.sub_agents)):
        problems.append(
            Unsupported(
                "sub_agents: an agent with output_shields hands no conversation over, since its shields do not see what others "
                "answer; give them to the others, or ask them by `call`"
            )
        )
    wanted = [agent for sub in config.sub_agents for agent in sub.agents]
    team, missing = await _reachable(bus, wanted)
    problems += [NotFound(f"sub_agents: there is no agent {name!r}") for name in missing]
    chain = _chain(team, config.uuid, wanted)
    if chain is not None:
        problems.append(
            InvalidRequest(f"sub_agents: agents would wait for each other: {' -> '.join(chain)}")
        )


def _wrong_names(config: AgenticSystemCreateRequest) -> list[AylluError]:
    names = [sub.tool_name for sub in config.sub_agents]
    taken = {tool.tool_name for tool in config.available_tools} | {HAND_BACK}
    return [
        InvalidRequest(f"sub_agents: the tool name {name!r} stands for something else already")
        for number, name in enumerate(names)
        if name in taken or name in names[:number]
    ]


def _wrong_kind(sub: SubAgent) -> list[AylluError]:
    problems: list[AylluError] = []
    if sub.kind is not Delegation.fan_out and len(sub.agents) > 1:
        problems.append(
            InvalidRequest(f"sub_agents: {sub.tool_name!r}: several agents are for `fan_out` only")
        )
    if len(set(sub.agents)) < len(sub.agents):
        problems.append(InvalidRequest(f"sub_agents: {sub.tool_name!r}: an agent is named twice"))
    for agent in sub.agents:
        problem = lane_problem(agent, ANY)
        if problem is not None:
            problems.append(InvalidRequest(f"sub_agents: {problem.message}"))
    return problems


async def _reachable(bus: Bus, wanted: list[str]) -> tuple[Team, list[str]]:
    """Return whom the agents may ask that can be reached from some, and which of these do not exist."""
    bucket = await bus.storage.key_value(AGENT_BUCKET)
    claims = durable_claims(bus)
    team: dict[str, list[str]] = {}
    missing: list[str] = []
    open_ = list(dict.fromkeys(wanted))
    while open_:
        name = open_.pop()
        entry = await bucket.get(name)
        if entry is None:
            team[name] = []
            if name in wanted:
                missing.append(name)
            continue
        record = decode(await unpacked(claims, entry.value), AgentRecord)
        team[name] = [agent for sub in record.config.sub_agents for agent in sub.agents]
        open_ += [other for other in team[name] if other not in team and other not in open_]
    return team, sorted(missing)


def _chain(team: Team, name: str, wanted: list[str]) -> list[str] | None:
    """Return a chain of agents from one to itself, if there is one."""
    paths = [[name, other] for other in wanted]
    seen: set[str] = set()
    while paths:
        path = paths.pop()
        if path[-1] == name:
            return path
        if path[-1] not in seen:
            seen.add(path[-1])
            paths += [[*path, other] for other in team.get(path[-1], ())]
    return None
