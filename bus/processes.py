"""Ending child processes."""

from __future__ import annotations

from contextlib import suppress

import anyio
from anyio.abc import Process


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
