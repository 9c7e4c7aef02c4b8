"""The program of a trainer's child: `python -m ayllu.actors.training.child JOB_FOLDER`, one or several processes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

from ....bus.lifeline import die_with_parent
from ....schemas import AylluError, TooLarge
from ..protocol import SOCKET_VARIABLE, read_run
from .saving import disk_failed
from .session import Session, StorageFailed

CRASHED = 1


def main() -> int:
    """Do what the job's folder says; return the exit status."""
    if len(sys.argv) != 2 or SOCKET_VARIABLE not in os.environ:
        print(f"usage: {SOCKET_VARIABLE}=SOCKET child JOB_FOLDER", file=sys.stderr)  # noqa: T201
        return 2
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if several and sys.platform == "linux":
        # The launcher of several gives each a group of its own, which is not ended with the launcher's.
        die_with_parent()
    # It recommends a package for one of its kernels whenever it is imported, also to those who never use it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    folder = Path(sys.argv[1]).resolve()
    session = Session(os.environ[SOCKET_VARIABLE], int(os.environ.get("RANK", "0")))
    try:
        from .running import run

        run(folder, read_run(folder), session)
    except Exception as error:
        known = _known(error)
        if known is None and not session.stopping:
            raise
        if known is not error:
            traceback.print_exc()
        if known is not None:
            session.fail(known)
        # Where several train, the launcher ends the others when one has failed.
        return CRASHED if several else 0
    return 0


def _known(error: BaseException) -> AylluError | None:
    """Return an error as one of ours, if another attempt would end in the same way."""
    if isinstance(error, AylluError):
        return error
    if isinstance(error, OSError):
        return StorageFailed(f"the disk: {error}") if disk_failed(error) else None
    if _out_of_memory(error):
        return TooLarge(
            "the memory does not suffice: a smaller batch_size or max_length, enable_activation_checkpointing, or qlora "
            f"take less ({str(error).partition('. ')[0]})"
        )
    return None


def _out_of_memory(error: BaseException) -> bool:
    # Torch is not imported for it; its allocator on CPUs has no error of its own.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


if __name__ == "__main__":
    # Not by way of the interpreter's end: libraries' threads may be in the midst of something there.
    status = CRASHED
    try:
        status = main()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
