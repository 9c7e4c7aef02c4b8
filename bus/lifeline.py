"""Child processes that die with their parent, even when it is killed with -9.

Linux does it itself: the kernel signals the child when the thread that started it ends, and that wish survives `exec`.
Elsewhere the parent holds a pipe to the child's standard input, and its end tells of the parent's death.

This module is also a program that needs nothing but the standard library: the launcher of programs that are not ours.
It runs them in its own place (Linux) or watches over them (elsewhere).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int | None = None) -> None:
    """Let this process be killed when the one that started it ends; call it first of all.

    The process is killed, not asked to end: it must be able to bear that at any time. On Linux its parent is the thread
    that started it; elsewhere the parent must have given it a pipe as standard input, which is read here.

    Args:
        parent: the process id of the parent, if it is known: then a parent that ended before this call is noticed too.
    """
    if sys.platform == "linux":
        _signal_at_parents_death(signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        _at_end_of_input(lambda: os.kill(os.getpid(), signal.SIGKILL))


def launch_command(command: Sequence[str], *, keep_fds: Sequence[int] = ()) -> list[str]:
    """Return the command that runs another one so that it dies with this process.

    Start it with a pipe as standard input and hold that open. File descriptors in ``keep_fds``, which must be passed to
    the launcher, are passed on to the program.
    """
    fds = [f"--keep-fd={fd}" for fd in keep_fds]
    return [sys.executable, "-I", __file__, f"--parent={os.getpid()}", *fds, "--", *command]


def _signal_at_parents_death(number: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def _at_end_of_input(action: Callable[[], None]) -> None:
    def watch() -> None:
        # The descriptor itself: the buffered reader's lock would be held at exit.
        while os.read(0, 4096):
            pass
        action()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _watch_over(command: Sequence[str], keep_fds: Sequence[int]) -> int:
    """Run a program, hand on requests to end, kill it when the parent ends; return its exit status."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=keep_fds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    _at_end_of_input(child.kill)
    return child.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the launcher; on Linux it does not return, because the program takes its place."""
    parser = argparse.ArgumentParser(description="Run a program that dies with its parent.")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--keep-fd", type=int, action="append", default=[])
    parser.add_argument("--watch", action="store_true", help="the way of systems without prctl")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    os.umask(
        0o077
    )  # What such a program writes is its owner's only. (uvloop cannot set it from outside.)
    if sys.platform != "linux" or options.watch:
        return _watch_over(options.command, options.keep_fd)
    die_with_parent(options.parent)
    for fd in options.keep_fd:
        os.set_inheritable(fd, True)
    return os.execv(options.command[0], options.command)  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    sys.exit(main())
