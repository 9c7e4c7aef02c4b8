"""``--import MODULE[:NAME]``: the own actors of a worker, found in the modules of their authors."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from anyio.abc import TaskStatus

from ..actors.own import check_constructor, made
from ..actors.supervision import Start
from ..bus.bus import Bus
from ..bus.description import operations_of_class
from ..bus.service import Drain, serve
from ..schemas import OPERATIONS, InvalidRequest
from ..schemas.own_operations import problem_with

log = logging.getLogger(__name__)

_SERVICE_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class OwnActor:
    """A class of actors that was asked for.

    Attributes:
        name: its service's, which tells it from others in logs.
        type: the class.
    """

    name: str
    type: type


def import_actors(specs: Sequence[str]) -> list[OwnActor]:
    """Import modules, and return the classes of actors that they define, or those that are named.

    Args:
        specs: ``MODULE`` or ``MODULE:NAME``; the current directory is looked through first, as with ``python -m``.

    Raises:
        InvalidRequest: something of it cannot be served; the message says what, and where.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: dict[type, OwnActor] = {}
    owners: dict[str, type] = {}
    for spec in specs:
        for actor in _classes(spec):
            if actor in found:
                continue
            try:
                found[actor] = _checked(actor, owners)
            except TypeError as error:
                raise InvalidRequest(f"--import {spec}: {error}") from error
    return list(found.values())


def _classes(spec: str) -> list[type]:
    module_name, _, name = spec.partition(":")
    module = _import(spec, module_name)
    if name:
        actor = getattr(module, name, None)
        if not isinstance(actor, type):
            raise InvalidRequest(f"--import {spec}: the module has no class {name}")
        return [actor]
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and _is_actor(value)
    ]
    if not found:
        raise InvalidRequest(
            f"--import {spec}: it defines no actor, which is a class that inherits from a Protocol with @webmethod"
        )
    return found


def _is_actor(value: type) -> bool:
    """Tell whether a class is an actor: no Protocol itself, not private, and it inherits from a Protocol with operations."""
    return (
        not getattr(value, "_is_protocol", False)
        and not inspect.isabstract(value)
        and not value.__name__.startswith("_")
        and any(
            hasattr(function, "__webmethod__")
            for base in value.__mro__
            for function in vars(base).values()
        )
    )


def _import(spec: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (ModuleNotFoundError, ValueError, TypeError) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else name
        if missing is not None and (name == missing or name.startswith(f"{missing}.")):
            raise InvalidRequest(
                f"--import {spec}: there is no module {name}; Python looks in {Path.cwd()} and where PYTHONPATH says"
            ) from error
        failure: BaseException = error
    except (Exception, SystemExit) as error:
        failure = error
    log.error("the module %s cannot be imported", name, exc_info=failure)
    raise InvalidRequest(
        f"--import {spec}: the module cannot be imported: {type(failure).__name__}: {failure}"
    ) from failure


def _checked(actor: type, owners: dict[str, type]) -> OwnActor:
    """Return a class as an actor that can be served beside the others.

    Raises:
        TypeError: it cannot; the message says why.
    """
    for operation in operations_of_class(actor):
        known = OPERATIONS.get(operation.name)
        if known is not None:
            raise TypeError(f"{actor.__name__}: {operation.name} is an operation of ayllu's own")
        problem = problem_with(operation.name, operation.api)
        if problem:
            raise TypeError(f"{actor.__name__}: {problem}")
        other = owners.setdefault(operation.name, actor)
        if other is not actor:
            raise TypeError(f"{other.__name__} and {actor.__name__} both have {operation.name}")
    check_constructor(actor)
    name = getattr(actor, "service_name", actor.__name__)
    if not isinstance(name, str) or not _SERVICE_NAME.fullmatch(name):
        raise TypeError(f"{actor.__name__}: the service_name has letters, digits, - and _ only")
    return OwnActor(name, actor)


def own_start(own: OwnActor, bus: Bus, drain: Drain) -> Start:
    """Return what runs an actor; each time it is started, it is made anew."""

    async def start(*, task_status: TaskStatus[Any]) -> None:
        async with made(own.type, bus) as actor:
            await serve(bus, actor, drain=drain, task_status=task_status)

    return start
