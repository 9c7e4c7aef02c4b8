"""The register of agents: their definitions, and what is asked of them, on the bus."""

from __future__ import annotations

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...schemas import (
    InvalidRequest,
    NotFound,
    Turn,
    TurnStatus,
    decode,
)
from .asking import ask
from .desk import AGENT_BUCKET
from .entries import durable_claims, ensure_streams, turn_of, unpacked
from .executor import Executor
from .inbox import read_entry
from .reader import described, state_of
from .records import AgentRecord, Command, Execute
from .streams import (
    AGENTS,
    COMMANDS,
    agent_of,
    command_subject,
    inbox_subject,
    lane_of,
    lane_of_command,
)


class Register:
    """Agents and what is asked of them, on the bus. Opened by `open_register`."""

    def __init__(self, bus: Bus, agents: KeyValue) -> None:
        self.bus = bus
        self.claims = durable_claims(bus)
        self.agents = agents

    async def record(self, agent: str) -> AgentRecord:
        """Return an agent.

        Raises:
            NotFound: there is none of this name.
        """
        entry = await self.agents.get(agent)
        if entry is None:
            raise NotFound(f"there is no agent {agent!r}")
        return decode(await unpacked(self.claims, entry.value), AgentRecord)

    async def ask(
        self,
        lane: str,
        command: Command,
        msg_id: str,
        *,
        expires: float | None = None,
        idle: bool = False,
        executor: Executor | None = None,
    ) -> bool:
        """Store a command and wake an executor, perhaps one of this process; see `asking.ask`."""
        return await ask(
            self.bus,
            self.claims,
            lane,
            command,
            msg_id,
            expires=expires,
            idle=idle,
            start=executor.start if executor is not None else None,
        )

    async def lanes_beside(self, agent: str) -> list[str]:
        """Return the lanes of an agent's detached turns that have not ended."""
        found: set[str] = set()
        async with self.bus.storage.streams.replay(AGENTS.name, COMMANDS) as entries:
            async for entry in entries:
                lane = lane_of_command(entry.subject)
                if lane != agent and agent_of(lane) == agent:
                    found.add(lane)
        return sorted(found)

    async def queued(self, agent: str, turn: str) -> tuple[Execute, str] | None:
        """Return the command of a turn that has not begun, and the lane that it waits in."""
        own = lane_of(agent, turn)
        subjects = {
            command_subject(agent): agent,
            inbox_subject(agent): agent,
            command_subject(own): own,
        }
        for subject, lane in subjects.items():
            async with self.bus.storage.streams.replay(AGENTS.name, subject) as entries:
                async for entry in entries:
                    try:
                        command = await read_entry(self.claims, entry)
                    except InvalidRequest:
                        continue
                    if isinstance(command, Execute) and turn_of(entry, command) == turn:
                        return command, lane
        return None

    async def state(self, agent: str, turn: str) -> Turn:
        """Return a turn as far as it has come.

        Raises:
            NotFound: the agent has no such turn.
        """
        return (await self.found(agent, turn))[0]

    async def found(self, agent: str, turn: str) -> tuple[Turn, str]:
        """Return a turn as far as it has come, and its lane.

        Raises:
            NotFound: the agent has no such turn.
        """
        found = await state_of(self.bus, self.claims, agent, turn)
        if found is not None:
            detached = found.turn.opening.detached
            return described(agent, turn, found), lane_of(agent, turn) if detached else agent
        queued = await self.queued(agent, turn)
        if queued is None:
            raise NotFound(f"the agent {agent!r} has no turn {turn!r}")
        command, lane = queued
        state = Turn(
            agent_uuid=agent,
            turn_id=turn,
            status=TurnStatus.queued,
            epoch=0,
            index=0,
            user_messages=command.messages,
            cause=command.cause,
        )
        return state, lane


async def open_register(bus: Bus) -> Register:
    """Return the register of agents; its streams are made where they are missing."""
    await ensure_streams(bus)
    return Register(bus, await bus.storage.key_value(AGENT_BUCKET))
