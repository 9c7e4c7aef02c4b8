"""Server-sent events, https://html.spec.whatwg.org/multipage/server-sent-events.html, from bytes cut anywhere. Pure."""

from __future__ import annotations

from ....schemas import EngineError

MAX_EVENT_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


class EventParser:
    """Finds the data of events; their other fields say nothing in OpenAI's protocol.

    However the bytes are cut into pieces, the events are the same. An event that lacks its blank line at the end of the
    stream is none.

    Args:
        max_bytes: of one event; what is larger is no event of a token.
    """

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_bytes
        self._line: list[bytes] = []  # the beginning of a line
        self._data: list[bytes] = []  # the data lines of an event
        self._size = 0  # of both
        self._after_return = False  # a line end may be cut in two
        self._begun = False

    def feed(self, received: bytes) -> list[bytes]:
        """Take what came next, and return the data of the events that are whole now.

        Raises:
            EngineError: an event is too large.
        """
        found: list[bytes] = []
        if not received:
            return found
        if self._after_return and received.startswith(b"\n"):
            received = received[1:]
        self._after_return = received.endswith(b"\r")
        for line in received.splitlines(keepends=True):
            if not line.endswith((b"\n", b"\r")):
                self._keep(self._line, line)
                break
            if self._line:
                line = b"".join([*self._line, line])  # noqa: PLW2901
                self._size -= sum(len(part) + 1 for part in self._line)
                self._line.clear()
            self._take(line.rstrip(b"\r\n"), found)
        return found

    def _take(self, line: bytes, found: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                found.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data.clear()
            self._size = 0
        elif line.startswith(b"data:"):
            self._keep(self._data, line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"data":
            self._keep(self._data, b"")

    def _keep(self, where: list[bytes], part: bytes) -> None:
        self._size += len(part) + 1  # the many parts of nothing are something, too
        if self._size > self._max:
            raise EngineError(f"the server sends an event of more than {self._max} bytes")
        where.append(part)
