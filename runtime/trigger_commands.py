"""``ayllu triggers``: agents that are started by events, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from ..client import connect
from ..schemas import (
    InvalidRequest,
    Trigger,
    TriggerCreateRequest,
    TriggerPreviewRequest,
    Triggers,
    decode,
    encode,
)
from .agent_commands import write_json
from .call import read_payload
from .request_files import read_request
from .terminal import one_line
from .turn_view import shortened

Action = Callable[[Triggers, argparse.Namespace], Coroutine[Any, Any, None]]


async def run_triggers(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu triggers`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    # Errors in files need no gateway.
    if options.action == "create":
        # Errors in it need no gateway.
        options.request = read_request(options.file, TriggerCreateRequest, name=options.name)
    elif options.action == "try":
        options.request = _preview_request(options)
    async with connect(url, token=token) as stack:
        await _ACTIONS[options.action or "list"](stack.api(Triggers), options)


def _preview_request(options: argparse.Namespace) -> TriggerPreviewRequest:
    event = decode(read_payload(options.event), Any)
    if not isinstance(event, dict):
        raise InvalidRequest("an event is a JSON object")
    return TriggerPreviewRequest(options.name, event, options.subject)


async def _list(triggers: Triggers, options: argparse.Namespace) -> None:
    async for trigger in triggers.list():
        if options.json:
            sys.stdout.write(encode(trigger).decode() + "\n")
        else:
            sys.stdout.write(_line(trigger) + "\n")


def _line(trigger: Trigger) -> str:
    due = trigger.next_at
    when = f"next {due.isoformat(timespec='seconds')}" if due is not None else trigger.subject
    told = f"{trigger.fired} fired, {trigger.skipped} skipped, {trigger.refused} refused"
    if trigger.last_error:
        told += f": {shortened(trigger.last_error)}"
    columns = (trigger.name, trigger.config.agent_id, when, told)
    return "\t".join(map(one_line, columns))


async def _show(triggers: Triggers, options: argparse.Namespace) -> None:
    write_json(await triggers.get(options.name))


async def _create(triggers: Triggers, options: argparse.Namespace) -> None:
    created = await triggers.create(options.request)
    sys.stdout.write(f"{created.name}\n")


async def _try(triggers: Triggers, options: argparse.Namespace) -> None:
    write_json(await triggers.preview(options.request))


async def _delete(triggers: Triggers, options: argparse.Namespace) -> None:
    await triggers.delete(options.name)


_ACTIONS: dict[str, Action] = {
    "list": _list,
    "show": _show,
    "create": _create,
    "try": _try,
    "delete": _delete,
}
