"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ayllu.bus.server import find_program

PACKAGES = (
    "ayllu",
    "anyio",
    "msgspec",
    "nats-py",
    "starlette",
    "uvicorn",
    "uvloop",
    "websockets",
    "xllamacpp",
)


def machine() -> dict[str, Any]:
    """Return what the machine is, and how busy it is at the moment."""
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _field("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of what takes part."""
    found = {name: version(name) for name in PACKAGES}
    words = subprocess.run(
        [find_program(), "--version"], capture_output=True, text=True, check=True
    )
    commit = _words("git", "rev-parse", "--short", "HEAD")
    return {
        "python": platform.python_version(),
        **found,
        "nats-server": words.stdout.strip().rpartition(" v")[2],
        "commit": commit + ("+" if _words("git", "status", "--porcelain", "-uno") else ""),
    }


def load() -> list[float]:
    """Return the average number of processes that wanted to run, over one, five and fifteen minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _field(file: str, name: str) -> str:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _words(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except OSError:
        return ""
    return done.stdout.strip()
