"""A runner of loops as a process of its own: to be killed.

python -m support.improvement_process BUS_URL
"""

from __future__ import annotations

import sys

import anyio

from ayllu.actors.improvement.loop import loop_runner
from ayllu.actors.improvement.records import open_loop_records
from ayllu.actors.jobs.jobs import open_jobs
from ayllu.bus import connect


async def main(url: str) -> None:
    async with connect(url) as bus, anyio.create_task_group() as tasks:
        runner = loop_runner(await open_jobs(bus), await open_loop_records(bus))
        await tasks.start(runner.run)
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
