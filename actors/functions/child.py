"""The child's side: what every process that runs a function does, whatever the function is for."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BufferedRWPair
from typing import Any

from ...bus.lifeline import die_with_parent
from ...schemas import AylluError, EngineError, ErrorInfo, InvalidRequest


@contextmanager
def worker_connection() -> Iterator[BufferedRWPair]:
    """Return the connection to the worker that started this process, ``MODULE SOCKET_FD PARENT_PID``; call it first of all."""
    fd, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    os.set_inheritable(fd, False)
    # What a function prints belongs to the log.
    os.dup2(2, 1)
    with socket.socket(fileno=fd) as connection, connection.makefile("rwb") as lines:
        yield lines


def function_at(path: str) -> Callable[..., Any]:
    """Return a function by its path, ``package.module:name``.

    Raises:
        InvalidRequest: there is none.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(import_module(module), name, None)
    except Exception as error:
        traceback.print_exc()
        raise InvalidRequest(
            f"the module {module} cannot be imported ({type(error).__name__}); the log says why"
        ) from error
    if not callable(function):
        raise InvalidRequest(f"the module {module} has no function {name}")
    return function  # type: ignore[no-any-return]


def failure_of(error: Exception) -> ErrorInfo:
    """Return what is told of an exception of the function; to be called where it is handled."""
    if isinstance(error, AylluError):
        return error.info
    # What an exception says may tell of files and secrets here: it stays in the log.
    traceback.print_exc()
    told = f"the function raised {type(error).__name__}; the log of its worker says why"
    return EngineError(told).info
