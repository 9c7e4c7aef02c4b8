"""Opening a replica: its log, its folder, its state, its tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

import anyio

from ...bus.bus import Bus
from ...schemas import BusError, Conflict, decode, encode
from ...schemas.tasks import background_tasks
from .care import Care
from .log import IDENTITY_SUBJECT, LOG, STREAM, Identity
from .replica import Replica
from .snapshots import Snapshots, own_folder

OBJECTS, OBJECTS_BYTES = "banks", 8 << 30
LAST_SNAPSHOT_SECONDS = 10.0
"""How long the snapshot at the end may take; without it, more of the log is read at the next start."""


@asynccontextmanager
async def open_replica(bus: Bus, data_dir: Path) -> AsyncIterator[tuple[Replica, Care]]:
    """Open a replica that has read the log, and its care; at its end a snapshot is made.

    Args:
        bus: the bus.
        data_dir: where replicas of this machine have their folders.

    Raises:
        BusError: the log cannot be read.
        Unavailable: the folders are taken.
    """
    with own_folder(data_dir) as folder:
        await bus.storage.streams.ensure(LOG)
        objects = await bus.storage.objects(OBJECTS, max_bytes=OBJECTS_BYTES)
        snapshots = Snapshots(folder)
        replica = Replica(bus, snapshots, await _identity(bus), objects)
        care = Care(replica, snapshots)
        try:
            await replica.restore()
            await replica.catch_up()
            async with background_tasks() as tasks:
                for task in (partial(replica.follow, replica.applied), care.build, care.keep):
                    tasks.start_soon(task)
                yield replica, care
        except anyio.get_cancelled_exc_class():
            await _last_snapshot(care)
            raise
        else:
            await _last_snapshot(care)
        finally:
            replica.close()


async def _last_snapshot(care: Care) -> None:
    with anyio.move_on_after(LAST_SNAPSHOT_SECONDS, shield=True):
        await care.snapshot()


async def _identity(bus: Bus) -> str:
    """Return which log this is; the first who asks gives it a name."""
    streams = bus.storage.streams
    name = uuid4().hex
    with suppress(Conflict):
        await streams.append(
            IDENTITY_SUBJECT, encode(Identity(name)), msg_id=f"log {name}", expected_last=0
        )
    entry = await streams.last(STREAM, IDENTITY_SUBJECT)
    if entry is None:
        raise BusError("the log of memory banks has no name")
    return decode(entry.payload, Identity).id
