"""A worker of triggers as a process of its own: to be killed.

python -m support.trigger_process BUS_URL ACK_WAIT
"""

from __future__ import annotations

import sys

import anyio

from ayllu.actors.triggers.shelf import open_shelf
from ayllu.actors.triggers.worker import TriggerWorker
from ayllu.bus import connect


async def main(url: str, ack_wait: float) -> None:
    async with connect(url) as bus, anyio.create_task_group() as tasks:
        await tasks.start(TriggerWorker(await open_shelf(bus), ack_wait=ack_wait).run)
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], float(sys.argv[2]))
