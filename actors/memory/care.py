"""What a replica does beside: it builds graphs, makes snapshots, and removes what nobody needs."""

from __future__ import annotations

import logging
import time

import anyio

from ...schemas import BusError, Unavailable
from .replica import Replica
from .snapshots import STALE_SECONDS, Snapshots

log = logging.getLogger(__name__)

SLICE_SECONDS = 0.02
"""How long the index may keep a bank's readers waiting at a time."""
KEEP_SECONDS = 30.0
"""How often the replica looks whether it is up to date and whether a snapshot is worth it."""
KEEP_CHANGES = 2000
"""After how many changes a snapshot is worth it; one is also made at the end."""
SWEEP_SECONDS = 1800.0
"""An object that nothing refers to for so long is of a request that failed."""


class Care:
    """The care of one replica.

    Args:
        replica: the replica.
        snapshots: where its snapshot is kept.
    """

    def __init__(self, replica: Replica, snapshots: Snapshots) -> None:
        self._replica = replica
        self._snapshots = snapshots
        self._keeping = anyio.Lock()
        self._kept_changes = 0
        self._unused: set[str] = set()
        self._swept_at = time.monotonic()

    async def build(self) -> None:
        """Move new vectors into the graphs, a slice at a time, until cancelled."""
        replica = self._replica
        while True:
            changed = replica.changed
            more = False
            for bank in list(replica.banks.values()):
                async with bank.lock.writing():
                    if not bank.dropped:
                        more |= await replica.write(bank.index.maintain, SLICE_SECONDS)
            if not more:
                await changed.wait()

    async def keep(self) -> None:
        """Make snapshots from time to time, until cancelled.

        Raises:
            Unavailable: the log could not be followed for so long that markers in it may have gone: start anew.
        """
        replica = self._replica
        while True:
            await anyio.sleep(KEEP_SECONDS)
            try:
                await replica.current()
                await self._sweep()
            except (BusError, Unavailable) as error:
                log.warning("memory banks do not follow the log: %s", error)
                if time.time() - replica.current_at > STALE_SECONDS:
                    raise Unavailable("the banks are too old and must be read anew") from error
                continue
            if replica.changes - self._kept_changes >= KEEP_CHANGES:
                await self.snapshot()

    async def snapshot(self) -> None:
        """Make a snapshot of what is applied now; without one, more of the log is read at the next start."""
        async with self._keeping:
            try:
                await self._snapshot()
            except OSError as error:
                log.warning("no snapshot of the memory banks could be made: %s", error)

    async def _snapshot(self) -> None:
        replica = self._replica
        sequence, changes = replica.applied, replica.changes
        for bank in list(replica.banks.values()):
            async with bank.lock.reading():
                if not bank.dropped:
                    await anyio.to_thread.run_sync(self._snapshots.keep, bank)
        # Banks may be newer than the sequence: what is applied again changes nothing.
        await anyio.to_thread.run_sync(self._snapshots.commit, replica.log_id, sequence)
        self._kept_changes = changes

    async def _sweep(self) -> None:
        """Remove objects that no document referred to half an hour ago, nor does now."""
        if time.monotonic() - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = time.monotonic()
        replica = self._replica
        unused = set(await replica.objects.names())
        await replica.current()
        for bank in list(replica.banks.values()):
            async with bank.lock.reading():
                if not bank.dropped:
                    unused -= await anyio.to_thread.run_sync(bank.store.objects)
        for name in unused & self._unused:
            await replica.objects.delete(name)
        self._unused = unused - self._unused
