"""``ayllu approvals``: calls of tools that wait for a person's decision."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio.to_thread

from ..client import Stack, connect
from ..schemas import (
    Approval,
    ApprovalDecision,
    ApproveRequest,
    AylluError,
    Conflict,
    decode,
    encode,
)
from .call import read_payload
from .terminal import one_line

Decide = Callable[[Approval], Awaitable[None]]
"""Decides about a call, or leaves it to others."""


async def run_approvals(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu approvals`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    action = options.action or "list"
    request = None if action == "list" else _request(action, options)
    async with connect(url, token=token) as stack:
        if request is None:
            await _list(stack, options)
        else:
            approval = await stack.agentic_system.turn.approve(request)
            sys.stdout.write(f"{approval.decision}\n")


def _request(action: str, options: argparse.Namespace) -> ApproveRequest:
    """Return what is asked for; errors in it need no gateway."""
    decision = ApprovalDecision(action)
    given = getattr(options, "arguments", None)
    arguments = None if given is None else decode(read_payload(given), dict[str, Any])
    reason = getattr(options, "reason", "")
    return ApproveRequest(options.agent, options.turn, options.call, decision, reason, arguments)


async def _list(stack: Stack, options: argparse.Namespace) -> None:
    async for approval in stack.agentic_system.turn.approvals(options.agent):
        if options.json:
            sys.stdout.write(encode(approval).decode() + "\n")
            continue
        left = (approval.expires_at - datetime.now(UTC)).total_seconds()
        call = f"{approval.tool_call.tool_name} {encode(approval.tool_call.arguments).decode()}"
        parts = (approval.agent_uuid, approval.turn_id, approval.call_id)
        names = "\t".join(map(one_line, parts))  # Ids are any text, of anybody's.
        sys.stdout.write(f"{names}\t{max(0, left):.0f} s\t{one_line(call)}\n")


def asking(stack: Stack) -> Decide | None:
    """Return what asks whoever sits at the terminal; None where nobody does."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None

    async def ask(approval: Approval) -> None:
        turn = await stack.agentic_system.turn.get(approval.agent_uuid, approval.turn_id)
        if approval.call_id not in [one.call_id for one in turn.approvals]:
            return  # It was decided long ago: the turn is followed from its beginning.
        line = await anyio.to_thread.run_sync(_read_answer, abandon_on_cancel=True)
        if line is None:
            return
        approved = line.strip().lower() in ("y", "yes")
        request = ApproveRequest(
            approval.agent_uuid,
            approval.turn_id,
            approval.call_id,
            ApprovalDecision.approve if approved else ApprovalDecision.deny,
            "" if approved else _reason(line),
        )
        try:
            await stack.agentic_system.turn.approve(request)
        except Conflict as error:
            sys.stderr.write(f"{error.message}\n")  # Somebody else was faster.
        except AylluError as error:
            sys.stderr.write(f"{error.code}: {error.message}\n")

    return ask


def _reason(line: str) -> str:
    words = line.strip()
    return "" if words.lower() in ("n", "no") else words


def _read_answer() -> str | None:
    """Ask for a decision; None where it is left open."""
    try:
        line = input("  run it? [y/n, or why not; empty leaves it open] ")
    except EOFError:
        return None
    return line if line.strip() else None
