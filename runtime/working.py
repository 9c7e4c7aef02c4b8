"""A worker process: actors of some kinds, against a bus, until SIGTERM."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from socket import socket

import anyio

from ..bus.bus import connect
from ..bus.service import Drain
from .config import Config
from .importing import OwnActor
from .worker import READY_LINE, Setting, announce, run_actors

log = logging.getLogger(__name__)

GARBAGE_OBJECTS = 10_000
"""How many more objects there are than before when a worker looks for garbage."""
CUT_SECONDS = 2.0
"""How long it may take to tell callers that their calls end, after a second signal."""


async def run_worker(
    kinds: Sequence[str],
    bus_url: str,
    config: Config,
    data_dir: Path,
    listener: socket | None = None,
    *,
    drain_seconds: float | None = None,
    own: Sequence[OwnActor] = (),
) -> None:
    """Run a worker until SIGTERM or SIGINT; prints `READY_LINE` when it is ready.

    Running calls of models and own actors then go on for ``drain_seconds`` (by default as configured, ``serving.drain_seconds``); a second
    signal ends them.

    Raises:
        AylluError: the bus cannot be reached, or an actor cannot be started.
    """
    name = " ".join(["ayllu", *kinds, *(actor.name for actor in own)])
    # What the modules made stays to the end, and what a call makes is seldom a cycle: looking for garbage after every
    # 700 objects took a twentieth of an actor's time.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, 10, 10)
    drain = Drain(config.serving.drain_seconds if drain_seconds is None else drain_seconds)
    async with connect(bus_url, name=name) as bus, anyio.create_task_group() as ending:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as tasks:
                setting = Setting(bus, config, data_dir, listener, drain, own)
                await tasks.start(run_actors, kinds, setting)
                announce(READY_LINE)
                number = await anext(aiter(signals))
                log.info("%s: stopping at %s", name, signal.Signals(number).name)
                tasks.cancel_scope.cancel()
                ending.start_soon(_hurry, signals, drain)
            ending.cancel_scope.cancel()


async def _hurry(signals: AsyncIterator[signal.Signals], drain: Drain) -> None:
    """At the next signal, let running calls end at once, and then the process, whatever it does."""
    async for number in signals:
        log.warning("ending at once at %s", number.name)
        drain.cut.set()
        await anyio.sleep(CUT_SECONDS)
        os._exit(1)
