"""``ayllu groups``: conversations of agents and humans from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread

from ..client import GroupClient, Stack, connect
from ..schemas import (
    AylluError,
    GroupCreateRequest,
    GroupEvent,
    GroupEventKind,
    GroupPass,
    InvalidRequest,
    MemberKind,
    encode,
)
from .agent_commands import write_json
from .chat import read_line
from .request_files import read_request
from .terminal import harmless, one_line
from .turn_view import Write, shortened, terminal_writer

Action = Callable[[Stack, argparse.Namespace], Coroutine[Any, Any, None]]


async def run_groups(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu groups`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    if options.action == "create":
        # Errors in it need no gateway.
        options.request = read_request(options.file, GroupCreateRequest, uuid=options.uuid)
    async with connect(url, token=token) as stack:
        await _ACTIONS[options.action](stack, options)


async def _list(stack: Stack, options: argparse.Namespace) -> None:
    async for group in stack.groups.list():
        if options.json:
            sys.stdout.write(encode(group).decode() + "\n")
            continue
        names = ", ".join(one_line(member.name) for member in group.config.members)
        why = f" ({group.end})" if group.end is not None else ""
        topic = one_line(shortened(group.config.topic))
        sys.stdout.write(f"{one_line(group.uuid)}\t{group.status}{why}\t{names}\t{topic}\n")


async def _show(stack: Stack, options: argparse.Namespace) -> None:
    write_json(await stack.groups.get(options.group))


async def _create(stack: Stack, options: argparse.Namespace) -> None:
    made = await stack.groups.create(options.request)
    sys.stdout.write(f"{made.uuid}\n")


async def _close(stack: Stack, options: argparse.Namespace) -> None:
    group = await stack.groups.close(options.group, options.reason)
    sys.stdout.write(f"{group.status}\n")


async def _delete(stack: Stack, options: argparse.Namespace) -> None:
    await stack.groups.delete(options.group)


async def _follow(stack: Stack, options: argparse.Namespace) -> None:
    view = GroupView(terminal_writer())
    async with stack.group(options.group).events(options.index) as events:
        async for event in events:
            view.take(event)


async def _join(stack: Stack, options: argparse.Namespace) -> None:
    """Show a conversation to its end, and say what is typed meanwhile; where the input ends, it is followed on."""
    group = await stack.groups.get(options.group)
    member = next((one for one in group.config.members if one.name == options.member), None)
    if member is None or member.kind is not MemberKind.human:
        humans = [one.name for one in group.config.members if one.kind is MemberKind.human]
        raise InvalidRequest(f"--as: one of the humans: {', '.join(humans) or 'there are none'}")
    view = GroupView(terminal_writer(), options.member, group.index)
    client = stack.group(options.group)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_speak, client, view)
        async with client.events(options.index) as events:
            async for event in events:
                view.take(event)
        # A thread that waits for a line is left to itself.
        tasks.cancel_scope.cancel()


async def _speak(client: GroupClient, view: GroupView) -> None:
    """Say each line that is typed, in its turn: one that comes early waits until it may be said."""
    while (line := await anyio.to_thread.run_sync(read_line, abandon_on_cancel=True)) is not None:
        if not line.strip():
            continue
        await view.may_speak()
        try:
            view.spoken = (await client.post(view.member, line)).number
        except AylluError as error:
            sys.stderr.write(f"{error.code}: {harmless(error.message)}\n")


class GroupView:
    """Shows a conversation as it goes on.

    Args:
        write: writes to the terminal.
        member: who looks at it, if a member does: what it says from now on is not shown to it again.
        live: the index of the first event that is new.

    Attributes:
        spoken: the number of the last remark that the member has made.
    """

    def __init__(self, write: Write, member: str = "", live: int = 0) -> None:
        self.member = member
        self.spoken = 0
        self._write = write
        self._live = live
        self._shown = 0
        self._floor = False
        self._changed = anyio.Event()

    async def may_speak(self) -> None:
        """Wait until the member may speak, by the events that were shown."""
        while not self._floor or self._shown < self.spoken:
            self._changed = anyio.Event()
            await self._changed.wait()

    def take(self, event: GroupEvent) -> None:
        """Show one event."""
        _SHOW.get(event.kind, GroupView._nothing)(self, event)
        if event.remark is not None:
            self._shown = event.remark.number
        if event.kind is GroupEventKind.waiting:
            # What stood there before this member came may be over.
            self._floor = event.member in (None, self.member) and event.index + 1 >= self._live
        elif event.remark is not None or (event.passed is not None and event.turn_id is None):
            self._floor = False
        self._changed.set()

    def _nothing(self, _: GroupEvent) -> None:
        """Of some events people need not know."""

    def _created(self, event: GroupEvent) -> None:
        if event.config is not None:
            self._line(f"[{event.config.topic}]", "dim")

    def _speaking(self, event: GroupEvent) -> None:
        self._line(f"[{event.member} thinks: {event.agent_uuid} {event.turn_id}]", "dim")

    def _waiting(self, event: GroupEvent) -> None:
        who = event.member or "anybody"
        until = f" until {event.until:%H:%M:%S} UTC" if event.until is not None else ""
        self._line(f"[{who} may speak{until}]", "yellow")

    def _remark(self, event: GroupEvent) -> None:
        if event.remark is None:
            return
        if event.remark.member == self.member and event.index >= self._live:
            return
        self._write(f"{event.remark.member}: ", "bold")
        self._line(event.remark.text, "")

    def _passed(self, event: GroupEvent) -> None:
        why = {
            GroupPass.nothing: "has nothing to say",
            GroupPass.late: "did not speak in time",
            GroupPass.failed: "failed",
            None: "does not speak",
        }[event.passed]
        error = f": {event.error.message}" if event.error is not None else ""
        self._line(f"[{event.member or 'nobody'} {why}{error}]", "yellow")

    def _chosen(self, event: GroupEvent) -> None:
        if event.reason:
            self._line(f"[{event.reason}]", "yellow")

    def _ended(self, event: GroupEvent) -> None:
        why = f": {event.reason}" if event.reason else ""
        self._line(f"[the end: {event.end}{why}]", "dim")

    def _line(self, text: str, style: str) -> None:
        self._write(f"{text}\n", style)


_SHOW = {
    GroupEventKind.created: GroupView._created,
    GroupEventKind.speaking: GroupView._speaking,
    GroupEventKind.waiting: GroupView._waiting,
    GroupEventKind.remark: GroupView._remark,
    GroupEventKind.passed: GroupView._passed,
    GroupEventKind.chosen: GroupView._chosen,
    GroupEventKind.ended: GroupView._ended,
}
_ACTIONS: dict[str, Action] = {
    "list": _list,
    "show": _show,
    "create": _create,
    "join": _join,
    "follow": _follow,
    "close": _close,
    "delete": _delete,
}
