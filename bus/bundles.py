"""Data frames that become ready together and go to the same process travel in one message.

Under load most of what a token costs is the handling of one message in three processes. An actor with many streams to one
gateway makes an event of each in one turn of the loop, and these share a message: nothing waits but for the end of that
turn. A caller that understands bundles says so in its request; its inboxes are ``<prefix>.<name>``, and a bundle goes to
``<prefix>.0.b``, one line a frame: name, space, event.

One task publishes; whoever must be sure that a frame is on its way waits for it, and may be cancelled without loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import anyio
from anyio.abc import TaskStatus

from ..schemas import BusError
from .exchange import DATA
from .transport import Transport

log = logging.getLogger(__name__)

BUNDLE = "b"
BUNDLES = "2"
"""The value of the exchange header of a caller that understands bundles."""
BUNDLE_NAME = "0"
"""In the place of a call's name; calls are counted from 1."""
BUNDLED_BYTES = 64 << 10
"""When so much waits, whoever adds to it waits too; larger events go alone."""


class Inbox:
    """Where a caller hears of one call, ``<prefix>.<name>``.

    Attributes:
        subject: the inbox.
        prefix: what all inboxes of that caller share.
        label: what stands before an event of this call in a bundle.
    """

    __slots__ = ("label", "prefix", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.prefix, _, name = subject.rpartition(".")
        self.label = f"{name} ".encode()


Frames = dict[str, list[tuple[Inbox, bytes]]]


class Bundles:
    """What waits for the end of this turn of the loop, by the prefix of its inbox."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._limit = min(BUNDLED_BYTES, transport.max_payload // 4)
        self._waiting: Frames = {}
        self._size = 0
        self._ready = anyio.Event()
        self._sent = anyio.Event()  # when what waits now is on its way
        self._sending: anyio.Event | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Publish what is added, until cancelled."""
        task_status.started()
        while True:
            await self._ready.wait()
            frames, self._waiting, self._size = self._waiting, {}, 0
            self._sending, self._sent = self._sent, anyio.Event()
            self._ready = anyio.Event()
            try:
                await self._publish(frames)
            except BusError as error:
                # Each caller learns from the counts that frames are missing.
                log.warning("data frames were not sent: %s", error)
            finally:
                self._sending.set()
                self._sending = None

    async def _publish(self, frames: Frames) -> None:
        for prefix, waiting in frames.items():
            if len(waiting) == 1:
                inbox, event = waiting[0]
                await self._transport.publish(f"{inbox.subject}.{DATA}", event)
            else:
                lines = [inbox.label + event for inbox, event in waiting]
                await self._transport.publish(f"{prefix}.{BUNDLE_NAME}.{BUNDLE}", b"\n".join(lines))

    def put(self, inbox: Inbox, event: bytes) -> bool:
        """Send an event to an inbox at the end of this turn of the loop; false where it must wait, or go alone."""
        # An event with a line's end is raw JSON of somebody else, and no line.
        if self._size > self._limit or len(event) > self._limit or b"\n" in event:
            return False
        if not self._waiting:
            self._ready.set()
        waiting = self._waiting.get(inbox.prefix)
        if waiting is None:
            waiting = self._waiting[inbox.prefix] = []
        waiting.append((inbox, event))
        self._size += len(event)
        return True

    async def add(self, inbox: Inbox, event: bytes) -> None:
        """Send an event to an inbox: at the end of this turn of the loop, or alone and now.

        Raises:
            BusError: it went alone, and the bus is gone.
        """
        while not self.put(inbox, event):
            await self.flush()
            if len(event) > self._limit or b"\n" in event:
                await self._transport.publish(f"{inbox.subject}.{DATA}", event)
                return

    async def flush(self) -> None:
        """Wait until what was added is on its way, so that what is sent next comes after it."""
        if self._waiting:
            await self._sent.wait()
        elif self._sending is not None:
            await self._sending.wait()


def unbundled(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the event of each frame of a bundle."""
    for line in payload.split(b"\n"):
        name, _, event = line.partition(b" ")
        yield name.decode("ascii", "replace"), event
