"""What untrusted code may use, and what became of it."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...schemas import InvalidRequest

MIN_MEMORY = 32 << 20
"""Less is not enough for Python itself."""

How = Literal["exited", "killed", "timeout", "cpu", "memory", "disk", "output"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What code may use; what goes beyond is refused to it, or ends it.

    Attributes:
        seconds: by the clock, from the start of the sandbox to its end.
        cpu_seconds: time on a processor, for each of its processes.
        memory_bytes: the address space of each process, and what all of them use together.
        processes: how many processes and threads there may be at once, the code's first one included.
        output_bytes: of standard output, and of standard error.
        disk_bytes: what its folders hold; they are memory too, beside `memory_bytes`.
        disk_files: how many files and folders they hold.
        file_bytes: what is returned of its files, all together.

    Raises:
        InvalidRequest: a limit leaves no room to run at all.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    processes: int = 16
    output_bytes: int = 64 << 10
    disk_bytes: int = 64 << 20
    disk_files: int = 4096
    file_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if self.memory_bytes < MIN_MEMORY:
            raise InvalidRequest(f"code needs at least {MIN_MEMORY >> 20} MiB of memory")
        if min(self.seconds, self.cpu_seconds, self.processes) <= 0:
            raise InvalidRequest("code needs some time, and a process")
        if min(self.output_bytes, self.disk_bytes, self.disk_files, self.file_bytes) < 0:
            raise InvalidRequest("a limit is not negative")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of code that ran.

    Nothing in it can be trusted more than the code: it writes what it likes and exits with the status that it likes.

    Attributes:
        how: it ended by itself (`exited`), a signal ended it (`killed`), or it went over the limit of that name.
        status: its exit status; negative where a signal ended it; None where it was ended for a limit.
        stdout: what it wrote, as text; bytes that are not UTF-8 are replaced.
        stderr: the same of standard error.
        cut: whether it wrote more than `Limits.output_bytes`.
        seconds: how long it ran.
        files: the files that it wrote to its work folder or changed there, by their paths in it. Code that was ended
            for a limit leaves none.
        left_out: paths of what it left there and is not among `files`: links, and what is too much. The first few.
        left_out_count: how many there are of these.
        limits: what it was allowed.
    """

    how: How
    status: int | None
    stdout: str
    stderr: str
    cut: bool
    seconds: float
    limits: Limits
    files: Mapping[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0

    @property
    def summary(self) -> str:
        """What happened, in plain words, for people and models."""
        text = self._end
        if self.left_out_count:
            names = ", ".join(self.left_out)
            text += f"; {self.left_out_count} of the files that it left are not returned: {names}"
            if self.left_out_count > len(self.left_out):
                text += ", ..."
        return text

    @property
    def _end(self) -> str:
        limits = self.limits
        if self.how == "exited":
            return f"it ended with exit status {self.status}"
        if self.how == "killed":
            return f"it was killed{_by_signal(self.status)}"
        over = {
            "timeout": f"it ran longer than {limits.seconds:g} seconds",
            "cpu": f"it used more than {limits.cpu_seconds} seconds of a processor's time",
            "memory": f"it used more than {_size(limits.memory_bytes)} of memory",
            "disk": f"it made more than {limits.disk_files} files",
            "output": f"it wrote more than {_size(limits.output_bytes)} of output",
        }
        return f"{over[self.how]} and was ended"


def _by_signal(status: int | None) -> str:
    if status is None or status >= 0:
        return ""
    try:
        return f" by {signal.Signals(-status).name}"
    except ValueError:
        return f" by signal {-status}"


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"
