"""Leases: at most one executor works for an agent, one trainer on a job. They keep order; what keeps writers apart is a fence."""

from __future__ import annotations

import logging

import anyio

from ..bus.bus import Bus
from ..bus.durable import KeyValue
from ..schemas import BusError, Conflict

log = logging.getLogger(__name__)

LEASE_SECONDS = 5.0
"""How long an owner that died or hangs keeps others from what it works on, at most."""
MARGIN_SECONDS = 0.5
RENEW_SECONDS = 1.0


class Lease:
    """A lease on something that has a name."""

    def __init__(
        self, leases: KeyValue, name: str, owner: bytes, revision: int, asked: float
    ) -> None:
        self._leases = leases
        self._name = name
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
                        self._name, self._owner, revision=self._revision
                    )
            except Conflict:
                if not await self._still_ours():
                    return
            except (BusError, TimeoutError) as error:
                log.info("the lease on %r could not be renewed: %s", self._name, error)
            else:
                self._until = asked + LEASE_SECONDS - MARGIN_SECONDS

    async def _still_ours(self) -> bool:
        """Tell whether it was our own renewal, whose answer was lost, that the lease has moved on by."""
        try:
            with anyio.fail_after(LEASE_SECONDS / 2):
                entry = await self._leases.get(self._name)
        except (BusError, TimeoutError):
            return True  # It cannot be told now; the next renewal will.
        if entry is None or entry.value != self._owner:
            return False
        self._revision = entry.revision
        return True

    async def release(self) -> None:
        """Let others have it."""
        with anyio.move_on_after(2, shield=True):
            try:
                await self._leases.delete(self._name, revision=self._revision)
            except (Conflict, BusError) as error:
                log.debug("a lease was not released: %s", error)


async def take_lease(leases: KeyValue, name: str, owner: str) -> Lease | None:
    """Return the lease on a name, or None while another owner has it.

    Raises:
        BusError: no answer.
    """
    asked = anyio.current_time()
    try:
        revision = await leases.create(name, owner.encode())
    except Conflict:
        return None
    return Lease(leases, name, owner.encode(), revision, asked)


async def lease_bucket(bus: Bus, bucket: str) -> KeyValue:
    """Return a bucket of leases."""
    return await bus.storage.key_value(bucket, ttl=LEASE_SECONDS)
