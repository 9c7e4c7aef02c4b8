"""The start of a sandbox: what is in it, and the process of bubblewrap that holds it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import inside
from .outcome import Limits
from .seccomp import seccomp_program

NOBODY = 65534
"""The user whom root becomes: the kernel sets no limit to root's processes, not even in a user namespace."""
_INSIDE = "/inside.py"
_USER = "1000"
_SYSTEM = (
    "/usr/bin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
)
"""What a Python needs of the system, and no more of it: `/usr` has other things too, in containers even programs' own."""
_ALIASES = ("/bin", "/lib", "/lib32", "/lib64")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that can be run in a sandbox.

    Attributes:
        program: the file that is run.
        library: the folder of its standard library.
    """

    program: Path
    library: Path

    def arguments(self) -> Iterator[str]:
        """Yield what makes it visible, with its standard library and nothing that was installed into it."""
        if not self.program.is_relative_to("/usr/bin"):
            for path in (str(self.program), str(self.library.parent)):
                yield from ("--ro-bind", path, path)
        for packages in (
            self.library / "site-packages",
            self.library / "dist-packages",
            self.library.parent / "python3" / "dist-packages",
        ):
            if packages.is_dir():
                yield from ("--tmpfs", str(packages), "--remount-ro", str(packages))


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What sandboxes are made of.

    Attributes:
        bwrap: the program of bubblewrap.
        preloaded: libraries that it needs and that the system need not have.
        python: the Python that runs the code.
    """

    bwrap: Path
    preloaded: tuple[Path, ...]
    python: Interpreter


def own_interpreter() -> Interpreter:
    """Return the Python that runs us, without its virtual environment."""
    return Interpreter(Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib")))


def system_interpreters() -> Iterator[Interpreter]:
    """Yield the Pythons of the system; that of our own version comes first."""
    for name in (f"python{sys.version_info.major}.{sys.version_info.minor}", "python3"):
        program = Path("/usr/bin", name)
        if program.exists():
            program = program.resolve()
            for folder in ("/usr/lib", "/usr/lib64"):
                library = Path(folder, program.name)
                if (library / "asyncio").is_dir():  # Some systems come with half a library.
                    yield Interpreter(program, library)


@dataclass(frozen=True, slots=True)
class Launched:
    """A sandbox that was started.

    Attributes:
        process: the process of bubblewrap, which holds it.
        handle: a descriptor of that process.
        stdin: a pipe into the sandbox.
        stdout: a pipe out of it.
        stderr: another one.
        info: where bubblewrap says which process is the first one in it.
        report: where that one reports.
    """

    process: subprocess.Popen[bytes]
    handle: int
    stdin: IO[bytes]
    stdout: int
    stderr: int
    info: int
    report: int


@contextmanager
def launched(sandbox: Sandbox, limits: Limits) -> Iterator[Launched]:
    """Start a sandbox; the process must be waited for before the block ends, which closes what leads to it.

    Linux ends the sandbox with the thread that started it.

    Raises:
        OSError: it cannot be started.
        subprocess.SubprocessError: the same.
    """
    with ExitStack() as stack:
        ours, theirs = stack.enter_context(ExitStack()), stack.enter_context(ExitStack())

        def pipe() -> tuple[int, int]:
            reading, writing = os.pipe()
            ours.callback(os.close, reading)
            theirs.callback(os.close, writing)
            return reading, writing

        def opened(path: Path) -> int:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            theirs.callback(os.close, fd)
            return fd

        def holding(content: bytes) -> int:
            fd = os.memfd_create("ayllu-sandbox")
            theirs.callback(os.close, fd)
            os.write(fd, content)
            os.lseek(fd, 0, os.SEEK_SET)
            return fd

        info, info_writing = pipe()
        report, report_writing = pipe()
        # By descriptors, because they may lie where only root may look: root itself stays outside.
        bwrap = opened(sandbox.bwrap)
        libraries = [opened(path) for path in sandbox.preloaded]
        program = holding(_PROGRAM)
        calls = holding(seccomp_program())
        preload = ":".join(f"/proc/self/fd/{fd}" for fd in libraries)
        root = os.geteuid() == 0
        process = subprocess.Popen(
            [
                str(sandbox.bwrap),
                *_ISOLATION,
                *("--info-fd", str(info_writing)),
                *("--seccomp", str(calls)),
                *_file_system(sandbox.python, limits),
                *("--ro-bind-data", str(program), _INSIDE),
                *("--remount-ro", "/"),
                "--",
                *(str(sandbox.python.program), "-I", "-S", _INSIDE),
                *_limits(report_writing, limits),
            ],
            executable=f"/proc/self/fd/{bwrap}",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"LD_PRELOAD": preload} if preload else {},
            cwd="/",
            pass_fds=(info_writing, report_writing, bwrap, *libraries, program, calls),
            start_new_session=True,
            user=NOBODY if root else None,
            group=NOBODY if root else None,
            extra_groups=() if root else None,
        )
        theirs.close()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for stream in (process.stdin, process.stdout, process.stderr):
            ours.callback(stream.close)
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        ours.callback(os.close, handle)
        out, err = process.stdout.fileno(), process.stderr.fileno()
        yield Launched(process, handle, process.stdin, out, err, info, report)


_ISOLATION: Sequence[str] = (
    *("--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session"),
    *("--as-pid-1", "--cap-drop", "ALL", "--clearenv", "--hostname", "sandbox"),
    *("--uid", _USER, "--gid", _USER),
)
_PROGRAM = Path(inside.__file__).read_bytes()


def _file_system(python: Interpreter, limits: Limits) -> Iterator[str]:
    """Yield the arguments that make what can be seen."""
    for path in _SYSTEM:
        yield from ("--ro-bind-try", path, path)
    for path in _ALIASES:
        if Path(path).is_symlink():
            yield from ("--symlink", str(Path(path).readlink()), path)
        else:
            yield from ("--ro-bind-try", path, path)
    yield from python.arguments()
    yield from ("--proc", "/proc", "--dir", "/dev")
    # Not by `--dev`: that is a folder in memory, which may be written to without bounds.
    for path in _DEVICES:
        yield from ("--dev-bind", path, path)
    yield from ("--symlink", "/proc/self/fd", "/dev/fd")
    # One file system for all that may be written: one bound.
    folder, work, other = inside.FOLDER, f"{inside.FOLDER}/{inside.WORK}", f"{inside.FOLDER}/tmp"  # noqa: S108
    yield from ("--size", str(limits.disk_bytes), "--tmpfs", folder, "--dir", work, "--dir", other)
    yield from ("--symlink", other, "/tmp", "--symlink", other, "/dev/shm")  # noqa: S108
    yield from ("--chdir", work)


def _limits(report: int, limits: Limits) -> Iterator[str]:
    """Yield the arguments of the first process."""
    for number in (
        report,
        limits.cpu_seconds,
        limits.memory_bytes,
        limits.processes,
        limits.disk_bytes,
        limits.disk_files,
        limits.file_bytes,
    ):
        yield str(number)
