"""A trainer as a process of its own, whose jobs the double trains: to be killed.

python -m support.trainer_process BUS_URL FOLDER PLAN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
from support.jobs import workshop

from ayllu.actors.jobs.jobs import open_jobs
from ayllu.actors.training.trainer import new_trainer
from ayllu.bus import connect


async def main(url: str, folder: Path, plan: str) -> None:
    async with connect(url) as bus, anyio.create_task_group() as tasks:
        place = workshop(folder, json.loads(plan))
        await tasks.start(new_trainer(await open_jobs(bus), place, "cpu").run)
        sys.stdout.write("ready\n")
        sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
