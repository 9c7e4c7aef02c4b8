"""The register of agents: their definitions, and what is asked of them, on the bus."""

from __future__ import annotations

import anyio

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...schemas import (
    AylluError,
    InvalidRequest,
    NotFound,
    Turn,
    TurnStatus,
    decode,
)
from .desk import AGENT_BUCKET
from .entries import durable_claims, ensure_streams, packed, read_command, unpacked
from .executor import Executor
from .reader import described, state_of
from .records import (
    AGENTS,
    AgentRecord,
    Command,
    Execute,
    command_subject,
    signal_subject,
    wake_subject,
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
        agent: str,
        command: Command,
        msg_id: str,
        *,
        expires: float | None = None,
        idle: bool = False,
        executor: Executor | None = None,
    ) -> bool:
        """Store a command and wake an executor; it is done, whatever dies, once this has returned.

        Args:
            agent: whose it is.
            command: what is asked.
            msg_id: the same for each try.
            expires: seconds after which a turn is not begun any more.
            idle: only if nothing else is asked of the agent.
            executor: one that may begin at once.

        Returns:
            whether that executor has begun.

        Raises:
            Conflict: something else is asked of the agent.
        """
        streams = self.bus.storage.streams
        payload = await packed(self.claims, command)
        await streams.append(
            command_subject(agent),
            payload,
            msg_id=msg_id,
            expires=expires,
            expected_last=0 if idle else None,
        )
        begun = False

        async def begin() -> None:
            nonlocal begun
            begun = executor is not None and await executor.start(agent)
            if not begun:
                # One that works for the agent in another process looks for what there is to do.
                await self.bus.transport.publish(signal_subject(agent), b"")

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(begin)
                await streams.append(wake_subject(agent), b"", msg_id=f"wake {msg_id}")
        except* AylluError as group:
            raise group.exceptions[0] from None
        return begun

    async def queued(self, agent: str, turn: str) -> Execute | None:
        """Return the command of a turn that has not begun."""
        after = 0
        subject = command_subject(agent)
        while entry := await self.bus.storage.streams.first(AGENTS.name, subject, after=after):
            after = entry.sequence
            try:
                command = await read_command(self.claims, entry)
            except InvalidRequest:
                continue
            if isinstance(command, Execute) and command.turn == turn:
                return command
        return None

    async def state(self, agent: str, turn: str) -> Turn:
        """Return a turn as far as it has come.

        Raises:
            NotFound: the agent has no such turn.
        """
        found = await state_of(self.bus, self.claims, agent, turn)
        if found is not None:
            return described(agent, turn, found)
        queued = await self.queued(agent, turn)
        if queued is None:
            raise NotFound(f"the agent {agent!r} has no turn {turn!r}")
        return Turn(
            agent_uuid=agent,
            turn_id=turn,
            status=TurnStatus.queued,
            epoch=0,
            index=0,
            user_messages=queued.messages,
        )


async def open_register(bus: Bus) -> Register:
    """Return the register of agents; its streams are made where they are missing."""
    await ensure_streams(bus)
    return Register(bus, await bus.storage.key_value(AGENT_BUCKET))
