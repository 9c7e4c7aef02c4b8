"""Runs a program, and kills all of its process group when whoever started this is gone, even by kill -9.

It needs nothing but the standard library: `python -I guard.py --lifeline FD -- PROGRAM ARGUMENT...`. The lifeline is the
reading end of a pipe whose other end the starter holds open. Servers are often started by another program (`npx`, `uvx`),
which a signal to the child alone would leave behind.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program until it ends, or the lifeline does; whatever of its process group is left then is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        child = subprocess.Popen(options.command)
    except OSError as error:
        sys.stderr.write(f"{options.command[0]} cannot be started: {error.strerror}\n")
        return 127
    # Only the program's own end is its output's end: the pipes are its alone.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    threading.Thread(target=_watch, args=(options.lifeline,), daemon=True).start()
    status = child.wait()
    sys.stderr.write(f"the program ended with status {status}\n")
    sys.stderr.flush()
    os.killpg(0, signal.SIGKILL)
    return status


def _watch(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
