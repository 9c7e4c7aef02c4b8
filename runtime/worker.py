"""A worker process: actors of some kinds, against a bus, until SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from socket import socket
from typing import Any

import anyio
from anyio.abc import TaskStatus

from ..actors.inference import InferenceActor
from ..actors.models import ModelsActor
from ..actors.registry import ModelSpec, build_engine
from ..actors.supervision import supervise
from ..bus.bus import Bus, connect
from ..bus.service import serve
from .config import Config
from .gateway import serve_gateway

log = logging.getLogger(__name__)

READY_LINE = "ready"
"""What a worker prints on stdout when all its actors are ready."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What actors of a worker are started with.

    Attributes:
        bus: the bus.
        config: the configuration of the deployment.
        listener: the socket of the gateway, if the worker has one.
    """

    bus: Bus
    config: Config
    listener: socket | None


class Kind:
    """A kind of actors that a worker can run: a name, one line of help, and the functions to supervise."""

    def __init__(
        self,
        help_: str,
        starts: Callable[[Setting], Sequence[tuple[str, Callable[..., Awaitable[None]]]]],
    ) -> None:
        self.help = help_
        self.starts = starts


def _inference(setting: Setting) -> list[tuple[str, Callable[..., Awaitable[None]]]]:
    def start_of(spec: ModelSpec) -> Callable[..., Awaitable[None]]:
        async def start(*, task_status: TaskStatus[Any]) -> None:
            engine = build_engine(spec)
            async with engine:
                actor = InferenceActor(engine, name=spec.name, aliases=spec.aliases)
                await serve(setting.bus, actor, task_status=task_status)

        return start

    return [(f"model {spec.name}", start_of(spec)) for spec in setting.config.served_models]


def _gateway(setting: Setting) -> list[tuple[str, Callable[..., Awaitable[None]]]]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        if setting.listener is None:
            raise RuntimeError("a gateway needs a listening socket")
        await serve_gateway(
            setting.bus, setting.config.gateway, setting.listener, task_status=task_status
        )

    async def start_models(*, task_status: TaskStatus[Any]) -> None:
        await serve(setting.bus, ModelsActor(setting.bus), task_status=task_status)

    return [("models", start_models), ("gateway", start)]


KINDS = {
    "gateway": Kind("HTTP and websocket clients' way in", _gateway),
    "inference": Kind("the configured models", _inference),
}


async def run_actors(
    kinds: Sequence[str],
    setting: Setting,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run actors of some kinds under supervision until cancelled; started when all are ready."""
    async with anyio.create_task_group() as supervisors:
        async with anyio.create_task_group() as starting:
            for kind in kinds:
                for name, start in KINDS[kind].starts(setting):

                    async def begin(name: str = name, start: Any = start) -> None:
                        await supervisors.start(_supervise, name, start)

                    starting.start_soon(begin)
        task_status.started()


async def _supervise(name: str, start: Any, *, task_status: TaskStatus[None]) -> None:
    await supervise(name, start, task_status=task_status)


async def run_worker(
    kinds: Sequence[str], bus_url: str, config: Config, listener: socket | None = None
) -> None:
    """Run a worker until SIGTERM or SIGINT; prints `READY_LINE` when it is ready.

    Raises:
        AylluError: the bus cannot be reached, or an actor cannot be started.
    """
    name = "ayllu " + " ".join(kinds)
    async with connect(bus_url, name=name) as bus, anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await tasks.start(run_actors, kinds, Setting(bus, config, listener))
            announce(READY_LINE)
            async for number in signals:
                log.info("%s: stopping at %s", name, signal.Signals(number).name)
                break
            tasks.cancel_scope.cancel()


def announce(line: str) -> None:
    """Print a line for whoever started this process."""
    # Whoever waited for it may be gone; the process goes on to its own end.
    with suppress(BrokenPipeError):
        sys.stdout.write(line + os.linesep)
        sys.stdout.flush()
