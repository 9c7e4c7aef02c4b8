"""What is kept of loops: KV improvements, one `LoopState` a loop, changed only by whoever runs it."""

from __future__ import annotations

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...schemas import BusError, Conflict, decode, encode
from ..jobs.holding import Fenced
from .state import LoopState

BUCKET = "improvements"
CHANGES = 100
"""How often a state is written while others write the same one."""


class LoopRecords:
    """The states of all loops. Opened by `open_loop_records`."""

    def __init__(self, values: KeyValue) -> None:
        self._values = values

    async def state(self, job: str) -> LoopState:
        """Return the state of a loop; an empty one before it has begun."""
        entry = await self._values.get(job)
        return LoopState() if entry is None else decode(entry.value, LoopState)

    async def keep(self, job: str, state: LoopState) -> LoopState:
        """Keep a state; again is no harm.

        Raises:
            Fenced: a later attempt has written.
            BusError: no answer; it may have been kept.
        """
        for _ in range(CHANGES):
            entry = await self._values.get(job)
            known = LoopState() if entry is None else decode(entry.value, LoopState)
            if known.attempt > state.attempt:
                raise Fenced(f"{job} has another runner")
            if known == state:
                return state
            try:
                if entry is None:
                    await self._values.create(job, encode(state))
                else:
                    await self._values.update(job, encode(state), revision=entry.revision)
            except Conflict:
                continue
            return state
        raise BusError(f"the loop {job!r} is changed by too many")


async def open_loop_records(bus: Bus) -> LoopRecords:
    """Return the states of the loops of a deployment; what keeps them is made where it is missing."""
    return LoopRecords(await bus.storage.key_value(BUCKET))
