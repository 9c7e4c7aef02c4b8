"""An executor of turns as a process of its own, to be killed: `python -m support.executor_process BUS_URL`."""

from __future__ import annotations

import sys

import anyio

from ayllu.actors.agents.executor import Executor
from ayllu.bus import connect


async def main(url: str) -> None:
    async with connect(url) as bus, anyio.create_task_group() as tasks:
        await tasks.start(Executor(bus).run)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
