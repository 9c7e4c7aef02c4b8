"""A runner of groups as a process of its own, to be killed: `python -m support.group_runner_process BUS_URL`."""

from __future__ import annotations

import sys

import anyio

from ayllu.actors.groups.runner import Runner
from ayllu.bus import connect


async def main(url: str) -> None:
    async with connect(url) as bus, anyio.create_task_group() as tasks:
        await tasks.start(Runner(bus).run)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
