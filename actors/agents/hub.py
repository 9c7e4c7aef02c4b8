"""What an executor tells readers of its own process, without the way over the bus: the records that are stored, and deltas.

A reader that is slower than its executor, or whose executor lets go of the turn, goes on with the streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .records import Delta, JournalRecord

AHEAD = 1024
"""How much a reader may be behind."""

Told = JournalRecord | Delta


class Hub:
    """The readers of one process, by agent and turn."""

    def __init__(self) -> None:
        self._readers: dict[tuple[str, str], list[MemoryObjectSendStream[Told]]] = {}

    @contextmanager
    def reading(self, agent: str, turn: str) -> Iterator[MemoryObjectReceiveStream[Told]]:
        """Hear of a turn, from its beginning on if it has not begun; the end of the stream is not the end of the turn."""
        send, receive = anyio.create_memory_object_stream[Told](AHEAD)
        readers = self._readers.setdefault((agent, turn), [])
        readers.append(send)
        try:
            with send, receive:
                yield receive
        finally:
            self._forget((agent, turn), send)

    def tell(self, agent: str, turn: str, told: Told) -> None:
        """Tell readers; one that is too slow is told no more."""
        for send in list(self._readers.get((agent, turn), ())):
            try:
                send.send_nowait(told)
            except (anyio.WouldBlock, anyio.BrokenResourceError):
                self._forget((agent, turn), send)

    def let_go(self, agent: str, turn: str | None = None) -> None:
        """Tell no more of a turn, or of any turn of an agent."""
        for key in [key for key in self._readers if key == (agent, turn or key[1])]:
            for send in list(self._readers.get(key, ())):
                self._forget(key, send)

    def _forget(self, key: tuple[str, str], send: MemoryObjectSendStream[Told]) -> None:
        send.close()
        readers = self._readers.get(key, [])
        if send in readers:
            readers.remove(send)
        if not readers:
            self._readers.pop(key, None)
