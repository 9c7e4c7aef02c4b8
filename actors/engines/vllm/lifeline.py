"""What vLLM calls in each process that it starts: a plugin of its group ``vllm.general_plugins`` (pyproject.toml)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

VARIABLE = "AYLLU_VLLM"
"""Set where a worker of ours is the parent: other programs that run vLLM in this environment are left alone."""


def watch_parent() -> None:
    """Let this process be killed when the one that started it is gone: vLLM's engine core would stay for ever.

    The kernel's own signal cannot be used, as it is sent when the parent's thread ends, and loading has a thread of its own.
    """
    parent = multiprocessing.parent_process()
    if parent is None or VARIABLE not in os.environ:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
