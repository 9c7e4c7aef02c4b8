"""Child processes: what they may know, and their end."""

from __future__ import annotations

import os
from contextlib import suppress

import anyio
from anyio.abc import Process


def foreign_environment() -> dict[str, str]:
    """Return our environment without what is ours, credentials of the bus among it: for programs that need none of it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AYLLU_")}


async def stop_process(process: Process, *, patience: float) -> None:
    """End a process that may have ended already: SIGTERM, and after ``patience`` seconds SIGKILL.

    It is done under a shield, so that a cancelled owner leaves no process behind.
    """
    with anyio.CancelScope(shield=True):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(patience):
                await process.wait()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.aclose()
