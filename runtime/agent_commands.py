"""``ayllu agents``, ``ayllu turns``, ``ayllu chat --agent``: agents from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from ..client import FollowedTurn, Stack, connect
from ..schemas import AgenticSystemCreateRequest, AylluError, encode
from .approval_commands import asking
from .chat import read_line
from .request_files import read_request
from .turn_view import TurnView, shortened, terminal_writer

Action = Callable[[Stack, argparse.Namespace], Coroutine[Any, Any, None]]


async def run_agents(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu agents`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    if options.action == "create":
        # Errors in it need no gateway.
        options.request = read_request(options.file, AgenticSystemCreateRequest, uuid=options.uuid)
    async with connect(url, token=token) as stack:
        await _AGENT_ACTIONS[options.action](stack, options)


async def _list_agents(stack: Stack, options: argparse.Namespace) -> None:
    async for agent in stack.agentic_system.list():
        if options.json:
            sys.stdout.write(encode(agent).decode() + "\n")
        else:
            told = shortened(agent.config.instructions)
            sys.stdout.write(f"{agent.agent_uuid}\t{agent.config.model}\t{told}\n")


async def _show_agent(stack: Stack, options: argparse.Namespace) -> None:
    write_json(await stack.agentic_system.get(options.agent))


async def _create_agent(stack: Stack, options: argparse.Namespace) -> None:
    created = await stack.agentic_system.create(options.request)
    sys.stdout.write(f"{created.agent_uuid}\n")


async def _delete_agent(stack: Stack, options: argparse.Namespace) -> None:
    await stack.agentic_system.delete(options.agent)


_AGENT_ACTIONS: dict[str, Action] = {
    "list": _list_agents,
    "show": _show_agent,
    "create": _create_agent,
    "delete": _delete_agent,
}


async def run_turns(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu turns`` was asked for.

    Raises:
        AylluError: what went wrong; for ``follow``, what the turn ended in.
    """
    async with connect(url, token=token) as stack:
        await _TURN_ACTIONS[options.action or "list"](stack, options)


async def _list_turns(stack: Stack, options: argparse.Namespace) -> None:
    async for turn in stack.agentic_system.turn.list(options.agent, options.limit):
        if options.json:
            sys.stdout.write(encode(turn).decode() + "\n")
            continue
        begun = turn.begun_at.isoformat(timespec="seconds") if turn.begun_at else "-"
        content = turn.user_messages[-1].content if turn.user_messages else ""
        asked = content if isinstance(content, str) else encode(content).decode()
        sys.stdout.write(f"{turn.turn_id}\t{turn.status}\t{begun}\t{shortened(asked)}\n")


async def _show_turn(stack: Stack, options: argparse.Namespace) -> None:
    write_json(await stack.agentic_system.turn.get(options.agent, options.turn))


async def _follow_turn(stack: Stack, options: argparse.Namespace) -> None:
    async with stack.agent(options.agent).follow(options.turn) as turn:
        await TurnView(terminal_writer(), asking(stack)).show(turn)


async def _cancel_turn(stack: Stack, options: argparse.Namespace) -> None:
    turn = await stack.agentic_system.turn.cancel(options.agent, options.turn, options.reason)
    sys.stdout.write(f"{turn.status}\n")


_TURN_ACTIONS: dict[str, Action] = {
    "list": _list_turns,
    "show": _show_turn,
    "follow": _follow_turn,
    "cancel": _cancel_turn,
}


def write_json(value: msgspec.Struct) -> None:
    """Print a value as JSON for people."""
    sys.stdout.write(msgspec.json.format(encode(value), indent=2).decode() + "\n")


async def chat_with_agent(url: str, token: str | None, agent: str, message: str | None) -> None:
    """Let an agent answer one message, or hold a conversation until the input ends; the server keeps its history.

    Raises:
        AylluError: the agent or the gateway is not there; in a conversation, the errors of single turns are printed.
    """
    async with connect(url, token=token) as stack:
        if message is not None:
            await _show_new_turn(stack, agent, message)
            return
        await stack.agentic_system.get(agent)
        sys.stderr.write(f"Talking to {agent}. End with Ctrl-D.\n")
        while (
            line := await anyio.to_thread.run_sync(read_line, abandon_on_cancel=True)
        ) is not None:
            if line.strip():
                try:
                    await _show_new_turn(stack, agent, line)
                except AylluError as error:
                    sys.stderr.write(f"{error.code}: {error.message}\n")


async def _show_new_turn(stack: Stack, agent: str, message: str) -> None:
    async with stack.agent(agent).turn(message) as turn:
        try:
            await TurnView(terminal_writer(), asking(stack)).show(turn)
        except anyio.get_cancelled_exc_class():
            if turn.index:
                sys.stderr.write(f"it goes on: ayllu turns {agent} follow {turn.turn_id}\n")
            raise
    _write_usage(turn)


def _write_usage(turn: FollowedTurn) -> None:
    usage, begun, ended = turn.result.usage, turn.result.begun_at, turn.result.ended_at
    if usage is not None and begun is not None and ended is not None and sys.stderr.isatty():
        seconds = (ended - begun).total_seconds()
        sys.stderr.write(
            f"[turn {turn.turn_id}: {len(turn.result.steps)} steps, {usage.completion_tokens} tokens, {seconds:.1f} s]\n"
        )
