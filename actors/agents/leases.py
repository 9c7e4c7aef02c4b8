"""Leases: at most one executor works for an agent. They keep order; what keeps writers apart is the fence of the journal."""

from __future__ import annotations

import logging

import anyio

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...schemas import BusError, Conflict

log = logging.getLogger(__name__)

BUCKET = "agent_leases"
LEASE_SECONDS = 5.0
"""How long an executor that died or hangs keeps others from its agents, at most."""
MARGIN_SECONDS = 0.5
RENEW_SECONDS = 1.0


class Lease:
    """A lease on an agent."""

    def __init__(
        self, leases: KeyValue, agent: str, owner: bytes, revision: int, asked: float
    ) -> None:
        self._leases = leases
        self._agent = agent
        self._owner = owner
        self._revision = revision
        self._until = asked + LEASE_SECONDS - MARGIN_SECONDS

    @property
    def valid(self) -> bool:
        """Whether nobody else can have the lease; false too when this process was stopped for too long."""
        return anyio.current_time() < self._until

    async def keep(self) -> None:
        """Renew the lease until it is lost; returns then."""
        while self.valid:
            await anyio.sleep(RENEW_SECONDS)
            asked = anyio.current_time()
            try:
                with anyio.fail_after(LEASE_SECONDS / 2):
                    self._revision = await self._leases.update(
                        self._agent, self._owner, revision=self._revision
                    )
            except Conflict:
                return
            except (BusError, TimeoutError) as error:
                log.info("the lease on %r could not be renewed: %s", self._agent, error)
            else:
                self._until = asked + LEASE_SECONDS - MARGIN_SECONDS

    async def release(self) -> None:
        """Let others work for the agent."""
        with anyio.move_on_after(2, shield=True):
            try:
                await self._leases.delete(self._agent, revision=self._revision)
            except (Conflict, BusError) as error:
                log.debug("a lease was not released: %s", error)


async def take_lease(leases: KeyValue, agent: str, owner: str) -> Lease | None:
    """Return a lease on an agent, or None while another executor has it.

    Raises:
        BusError: no answer.
    """
    asked = anyio.current_time()
    try:
        revision = await leases.create(agent, owner.encode())
    except Conflict:
        return None
    return Lease(leases, agent, owner.encode(), revision, asked)


async def lease_bucket(bus: Bus) -> KeyValue:
    """Return the bucket of leases."""
    return await bus.storage.key_value(BUCKET, ttl=LEASE_SECONDS)
