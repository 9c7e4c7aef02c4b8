"""The first process in the sandbox: it lays the files out, runs the code, watches over it and reports.

It is a program of its own that needs nothing but the standard library, and is kept quick to start. As process 1 of its
namespace it cannot be killed from within, it inherits the orphans, and with it all others end. It lives under the same
limits as the code and may do nothing that the code may not: to get hold of it would be of no use.

It says `READY` on its pipe; then what is to be run comes on standard input as records: the files, the code among them,
and an `END`; what follows on standard input is the code's own. When the code has ended by itself, the report follows on
the pipe: the files that it left, the paths of what is left out, the count of these, and how it went with the status.
"""

# ruff: noqa: PTH118, PTH123, PTH208, PTH103, PTH120 - pathlib is slow to import

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import struct
import sys
from contextlib import suppress

TYPE_CHECKING = False  # `typing` is slow to import.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY = b"R"
FILE, LEFT_OUT, END = b"F", b"L", b"."
EXITED, MEMORY, DISK = b"E", b"M", b"D"
"""The last record of a report says how the code ended."""
RECORD = struct.Struct("=cIq")
"""The kind of a record, the length of its name, and a number: the size of its content, a count, or a status."""
FOLDER = "/sandbox"
WORK = "work"
CODE = "main.py"
MAX_LEFT_OUT = 20
MAX_NAMES = 256 << 10
"""Bytes that the paths of a report have together."""
CHUNK = 64 << 10
MAX_OPEN = 64
"""Files that a process may have open. What waits in sockets is memory of no process: it is bounded by their number."""
PERIOD = 0.05
"""Seconds between two looks at memory and files."""

_PR_SET_DUMPABLE = 4


class _Limits:
    """The limits, as the command line tells them."""

    def __init__(self, arguments: list[str]) -> None:
        (
            self.cpu_seconds,
            self.memory_bytes,
            self.processes,
            self.disk_bytes,
            self.disk_files,
            self.file_bytes,
        ) = map(int, arguments)


def _limit(limits: _Limits) -> None:
    """Set what the kernel watches itself, for this process and those that come from it."""
    # If the machine runs out of memory, then the sandbox is what has to go.
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    # Without it, the code could write into the memory of this process: they are of one user.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")
    for name, soft, hard in (
        (resource.RLIMIT_AS, limits.memory_bytes, limits.memory_bytes),
        # The first signal can be told from others; who ignores it is killed.
        (resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 1),
        # This process is counted too. The kernel counts in the sandbox's own user namespace.
        (resource.RLIMIT_NPROC, limits.processes + 1, limits.processes + 1),
        (resource.RLIMIT_FSIZE, limits.disk_bytes, limits.disk_bytes),
        (resource.RLIMIT_NOFILE, MAX_OPEN, MAX_OPEN),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        resource.setrlimit(name, (soft, hard))


def _read(count: int) -> bytes:
    """Read exactly so much of standard input: what follows is not ours."""
    data = b""
    while len(data) < count:
        chunk = os.read(0, min(count - len(data), CHUNK))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _lay_out() -> set[str]:
    """Write the files that come, and return their paths."""
    names: set[str] = set()
    while True:
        kind, length, size = RECORD.unpack(_read(RECORD.size))
        if kind == END:
            return names
        name = _read(length).decode()
        names.add(name)
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "xb") as file:
            while size:
                chunk = _read(min(size, CHUNK))
                file.write(chunk)
                size -= len(chunk)
        os.utime(name, (0, 0))  # By this it is known later, as long as nobody writes to it.


def _start() -> int:
    """Start the code, and return its process."""
    environment = {
        "HOME": f"{FOLDER}/{WORK}",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",  # What is written before it is killed is not lost.
    }
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-s", f"{FOLDER}/{WORK}/{CODE}"],
        environment,
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
    )


def _watch(code: int, limits: _Limits, entries: int) -> tuple[bytes, int]:
    """Wait until the code ends or is over a limit; return how it went, and its status."""
    while True:
        signal.sigtimedwait((signal.SIGCHLD,), PERIOD)
        # Not until there is none left: code may make them faster than they are fetched.
        for _ in range(limits.processes + 1):
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == code:
                return EXITED, os.waitstatus_to_exitcode(status)
            if process == 0:
                break
        # The second is the right one; it takes more time.
        if all(_memory(of) > limits.memory_bytes for of in (_resident, _proportional)):
            return MEMORY, 0
        if _entries() > entries + limits.disk_files:
            return DISK, 0


def _memory(of: Callable[[str], int]) -> int:
    """Return what all other processes use, in bytes."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with suppress(OSError):  # It may have ended.
                total += of(f"/proc/{name}")
    return total


def _resident(process: str) -> int:
    """Return the pages that a process has in memory; those that several share count for each of them."""
    with open(f"{process}/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _proportional(process: str) -> int:
    """Return its pages, in memory or swapped; those that several share count once for all of them."""
    try:
        with open(f"{process}/smaps_rollup", "rb") as file:
            lines = [line.split() for line in file]
    except PermissionError:  # A process may hide them.
        return _resident(process)
    return sum(int(line[1]) << 10 for line in lines if line[0] in (b"Pss:", b"SwapPss:"))


def _entries() -> int:
    """Return how many files and folders there are in the sandbox; the size of a tmpfs does not bound them."""
    room = os.statvfs(FOLDER)
    return room.f_files - room.f_ffree


def _end_all() -> None:
    """End all other processes: nothing changes from here on."""
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _report(pipe: int, given: set[str], limits: _Limits) -> None:
    """Tell of the files that the code left: their content, as far as it may be, and the names of others."""
    room, names, left_out = limits.file_bytes, MAX_NAMES, 0
    for path, status in _left():
        if path in given and status is not None and status.st_mtime_ns == 0:
            continue
        name = os.fsencode(path)
        if len(name) <= names and _is_text(name):
            if status is not None and status.st_size <= room and _send_file(pipe, path, name):
                room -= status.st_size
                names -= len(name)
                continue
            if left_out < MAX_LEFT_OUT:
                names -= len(name)
                _send(pipe, RECORD.pack(LEFT_OUT, len(name), 0) + name)
        left_out += 1
    _send(pipe, RECORD.pack(LEFT_OUT, 0, left_out))


def _left() -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield the paths of all that is no folder, with their status if they are plain files."""
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder or ".") as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:  # Too deep, or closed to us.
            yield folder, None
            continue
        for entry in entries:
            path = os.path.join(folder, entry.name)
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                yield path, None
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            else:
                yield path, status if stat.S_ISREG(status.st_mode) else None


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _send_file(pipe: int, path: str, name: bytes) -> bool:
    """Send a file, and return whether that was possible."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    size = os.fstat(file).st_size
    _send(pipe, RECORD.pack(FILE, len(name), size) + name)
    while chunk := os.read(file, CHUNK):
        _send(pipe, chunk)
    os.close(file)
    return True


def _send(pipe: int, data: bytes) -> None:
    while data:
        data = data[os.write(pipe, data) :]


def main(arguments: list[str]) -> None:
    """Run the code that comes, under the limits that the arguments tell."""
    pipe, limits = int(arguments[0]), _Limits(arguments[1:])
    # What was needed to start the sandbox must not be open in it: files of the host.
    os.closerange(3, pipe)
    os.closerange(pipe + 1, resource.RLIM_INFINITY & 0x7FFFFFFF)
    os.set_inheritable(pipe, False)
    # From within a namespace its first process gets only the signals that it handles: none. Python handles this one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    _limit(limits)
    entries = _entries()
    _send(pipe, READY)
    given = _lay_out()
    how, status = _watch(_start(), limits, entries)
    _end_all()
    if _entries() > entries + limits.disk_files:
        how, status = DISK, 0
    if how == EXITED:
        _report(pipe, given, limits)
    _send(pipe, RECORD.pack(how, 0, status))


if __name__ == "__main__":
    main(sys.argv[1:])
