"""One of the processes that make data together, to be killed: the scripted model, the double of a reward model, or who generates.

python -m support.data_process BUS_URL FOLDER model|rewards|data
"""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
from support.synthetic import PACE, DoubleRewards, answer, run_worker

from ayllu.actors.engines.scripted import ScriptedEngine
from ayllu.actors.inference import InferenceActor
from ayllu.bus import connect
from ayllu.bus.service import serve


async def main(url: str, folder: Path, role: str) -> None:
    async with connect(url) as bus, ScriptedEngine(answer(PACE)) as engine:
        async with anyio.create_task_group() as tasks:
            if role == "data":
                await tasks.start(run_worker, bus, folder, 4)
            elif role == "rewards":
                await tasks.start(serve, bus, DoubleRewards(PACE))
            else:
                await tasks.start(serve, bus, InferenceActor(engine, name="scripted"))
            sys.stdout.write("ready\n")
            sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]), sys.argv[3])
