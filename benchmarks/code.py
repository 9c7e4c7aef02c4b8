"""What it costs to run code that is not trusted: calls of ``code_interpreter``, beside a plain Python that is started for each.

Nobody else is asked: this is the start and the end of the sandbox and of what runs the cells in it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import anyio

from ayllu.actors.sandbox import run_python
from ayllu.actors.tools.code_interpreter import CodeInterpreter
from ayllu.actors.tools.settings import CodeInterpreterSettings
from ayllu.schemas import ToolRequest

from .numbers import alternate, ratios, spread
from .topology import Place

CALLS = 20
SESSION = 10
CODE = "print(1 + 1)"


async def measure_code(_: Place, pairs: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure milliseconds a call, one after the other."""
    calls = 2 if tiny else CALLS
    tool = CodeInterpreter(CodeInterpreterSettings())
    earlier = [{"code": f"x{n} = {n}", "keep_state": True} for n in range(SESSION)]
    plain = ToolRequest(tool.name, {"code": CODE})
    session = ToolRequest(tool.name, {"code": CODE, "keep_state": True}, earlier)

    async def call(request: ToolRequest) -> None:
        if not str(await tool.run(request)).startswith("2\n"):
            raise RuntimeError("the code did not run")

    async def timed(what: Any) -> dict[str, float]:
        begun = time.perf_counter()
        for _ in range(calls):
            await what()
        return {"ms": (time.perf_counter() - begun) / calls * 1000}

    async def python() -> None:
        await anyio.run_process([sys.executable, "-I", "-c", CODE], stderr=subprocess.DEVNULL)

    values = await alternate(
        {
            "tool": lambda: timed(lambda: call(plain)),
            "session": lambda: timed(lambda: call(session)),
            "sandbox": lambda: timed(lambda: run_python(CODE)),
            "python": lambda: timed(python),
        },
        pairs,
    )
    times = {name: runs["ms"] for name, runs in values.items()}
    return {
        "calls": calls,
        "session": SESSION,
        "ms": {name: spread(found) for name, found in times.items()},
        "tool_to_python": ratios(times["tool"], times["python"]),
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    times = result["ms"]
    return [
        ("a call of code_interpreter, ms", str(times["tool"])),
        (f"one that goes on from {result['session']} others, ms", str(times["session"])),
        ("the sandbox alone, ms", str(times["sandbox"])),
        ("a plain Python, ms", str(times["python"])),
        ("code_interpreter / plain Python", str(result["tool_to_python"])),
    ]
