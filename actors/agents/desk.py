"""What an executor has before it while it works for one agent."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

from ...bus.bus import Bus
from ...bus.claims import Claims
from ...bus.durable import Delivery
from ...schemas import InvalidRequest, decode
from ..attachments.settings import AttachmentsConfig
from ..leases import Lease
from .asking import Start
from .entries import Fenced, deltas_made, read_command, unpacked
from .hub import Hub
from .records import AgentRecord, Command
from .streams import AGENTS, agent_of, command_subject

AGENT_BUCKET = "agents"
LEASE_BUCKET = "agent_leases"
MADE_SECONDS = 5.0


class Office:
    """What the desks of one executor share.

    Args:
        bus: the bus.
        claims: keeps what is too large for a stream.
        hub: tells readers of this process.
        name: the executor's.
        attachments: what attachments may cost, and from where they may come.
        start: lets the executor begin in a lane, if it may.
        is_roomy: whether a turn that waits may keep its slot for a moment.
    """

    def __init__(
        self,
        bus: Bus,
        claims: Claims,
        hub: Hub,
        name: str,
        attachments: AttachmentsConfig,
        *,
        start: Start,
        is_roomy: Callable[[], bool],
    ) -> None:
        self.attachments = attachments
        self.start = start
        self.is_roomy = is_roomy
        self.bus = bus
        self.claims = claims
        self.hub = hub
        self.name = name
        self._made = ("", 0.0)

    async def deltas_made(self) -> str:
        """Return which stream of deltas there is; an old answer only makes a reader begin anew that need not."""
        made, asked = self._made
        now = time.monotonic()
        if not made or now - asked > MADE_SECONDS:
            made = await deltas_made(self.bus)
            self._made = (made, now)
        return made


class Desk:
    """The work in one lane.

    Attributes:
        office: what it shares with others.
        lane: where turns are taken.
        agent: whose turns they are.
        lease: keeps other executors away.
        look: set when there may be a new command.
        deliveries: the wake-up that is acknowledged when all is done.
        record: the agent, as it was last read.
    """

    def __init__(self, office: Office, lane: str) -> None:
        self.office = office
        self.lane = lane
        self.agent = agent_of(lane)
        self.lease: Lease | None = None
        self.look = anyio.Event()
        self.deliveries: list[Delivery] = []
        self.record: AgentRecord | None = None

    def keep(self, delivery: Delivery) -> bool:
        """Look for a new command; keep the wake-up unless there is one.

        One that is not acknowledged brings the agent to another executor if this one ends; more would only cost.
        """
        self.look.set()
        if self.deliveries:
            return False
        self.deliveries.append(delivery)
        return True

    def check(self) -> None:
        """Raise `Fenced` if another executor may work for the agent by now."""
        if self.lease is None or not self.lease.valid:
            raise Fenced(f"the lease on {self.lane!r} is over")

    async def later(self, after: int) -> tuple[list[Command], int]:
        """Return the commands after a sequence, and the last one's sequence."""
        found: list[Command] = []
        subject = command_subject(self.lane)
        streams = self.office.bus.storage.streams
        while entry := await streams.first(AGENTS.name, subject, after=after):
            after = entry.sequence
            try:
                found.append(await read_command(self.office.claims, entry))
            except InvalidRequest:
                continue  # It becomes a dead letter when its time comes.
        return found, after

    async def agent_record(self, created: float) -> AgentRecord | None:
        """Return the agent that was created then, or who has its name now; None where there is none."""
        if self.record is None or self.record.created != created or not created:
            bucket = await self.office.bus.storage.key_value(AGENT_BUCKET)
            entry = await bucket.get(self.agent)
            self.record = None
            if entry is not None:
                payload = await unpacked(self.office.claims, entry.value)
                self.record = decode(payload, AgentRecord)
        return self.record
