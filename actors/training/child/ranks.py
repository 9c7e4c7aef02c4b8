"""The launcher of several processes that train together: one in its own group, each dies with it, and it with any.

It needs no torch. They find each other by a file in the job's folder, so that no port has to be free.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from ....bus.lifeline import launch_command

RENDEZVOUS_VARIABLE = "AYLLU_TRAINING_RENDEZVOUS"
RENDEZVOUS = "rendezvous-"
"""How the names of such files begin; each launcher has its own."""


def main() -> int:
    """Run the processes; returns the status of the first that failed, else 0."""
    processes, folder = int(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix=RENDEZVOUS, dir=folder) as place:
        started = [_start(rank, processes, folder, place) for rank in range(processes)]
        try:
            return _wait(started)
        finally:
            for process in started:
                process.kill()
                process.wait()


def _start(rank: int, processes: int, folder: Path, place: str) -> subprocess.Popen[bytes]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
    environment = {
        **os.environ,
        **{name: str(value) for name, value in (ranks | {"LOCAL_WORLD_SIZE": processes}).items()},
        RENDEZVOUS_VARIABLE: str(Path(place) / "store"),
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # The host's name need not be resolvable.
    child = [sys.executable, "-m", "ayllu.actors.training.child", str(folder)]
    return subprocess.Popen(launch_command(child), env=environment, stdin=subprocess.PIPE)


def _wait(started: list[subprocess.Popen[bytes]]) -> int:
    """Wait until one has failed or all are done: what one has left, the others would wait for."""
    running = {process.pid: process for process in started}
    while running:
        pid, status = os.wait()
        if (process := running.pop(pid, None)) is None:
            continue
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            return process.returncode if process.returncode > 0 else 1
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
