"""``ayllu models``: what is served, and what was trained and is served since, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from ..client import Stack, connect
from ..schemas import InvalidRequest, ModelVersion, RegisteredModel, RegisterModelRequest, encode

Action = Callable[[Stack, argparse.Namespace], Coroutine[Any, Any, None]]


async def run_models(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu models`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    action = options.action or "list"
    if action == "register":
        options.request = request_of(options)  # Errors in it need no gateway.
    async with connect(url, token=token) as stack:
        await _ACTIONS[action](stack, options)


def request_of(options: argparse.Namespace) -> RegisterModelRequest:
    """Return what the command line asks to serve.

    Raises:
        InvalidRequest: it says too much or too little.
    """
    if options.path is None:
        return RegisterModelRequest(
            name=options.name, job_uuid=options.job, iters=options.iters, base=options.base
        )
    if options.iters is not None:
        raise InvalidRequest("--iters chooses among the checkpoints of a --job")
    # Links are the server's to follow: where they lead decides whether it may read there.
    url = options.path.expanduser().absolute().as_uri()
    return RegisterModelRequest(name=options.name, url=url, base=options.base)


async def _list(stack: Stack, options: argparse.Namespace) -> None:
    served = [model async for model in stack.models()]
    registered = [model async for model in stack.models.registered()]
    if options.json:
        listed = {"served": served, "registered": registered}
        sys.stdout.write(encode(listed).decode() + "\n")
        return
    for model in served:
        names = ", ".join([model.name, *model.aliases])
        told = f"version {model.version}" if model.version else model.kind
        if model.base:
            told += f" of {model.base}"
        sys.stdout.write(f"{names}\t{model.engine}\t{model.context} tokens\t{told}\n")
    if registered:
        sys.stdout.write("\nregistered (* is served):\n")
    for one in registered:
        _write_versions(one)


def _write_versions(model: RegisteredModel) -> None:
    for version in model.versions:
        mark = "*" if version.version == model.current else " "
        since = version.registered_at
        when = since.isoformat(timespec="seconds") if since else "-"
        told = f"{version.kind} on {version.base}" if version.base else version.kind
        sys.stdout.write(
            f"{mark} {model.name}\t{version.version}\t{told}\t{_origin(version)}\t{when}\n"
        )


def _origin(version: ModelVersion) -> str:
    if version.job_uuid is None:
        return version.url
    return f"job {version.job_uuid}, iteration {version.iters}"


async def _register(stack: Stack, options: argparse.Namespace) -> None:
    _write_versions(await stack.models.register(options.request))


async def _rollback(stack: Stack, options: argparse.Namespace) -> None:
    _write_versions(await stack.models.rollback(options.name, options.version))


async def _unregister(stack: Stack, options: argparse.Namespace) -> None:
    await stack.models.unregister(options.name)


_ACTIONS: dict[str, Action] = {
    "list": _list,
    "register": _register,
    "rollback": _rollback,
    "unregister": _unregister,
}
