"""What a turn does, in a terminal: its steps, tokens, tool calls and their answers, documents; plain where there is none."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

from rich.console import Console

from ..client import FollowedTurn
from ..schemas import (
    AgenticSystemExecuteResponseEventType,
    AgenticSystemExecuteResponseStreamChunk,
    Approval,
    ChildEvent,
    ExecutionStepType,
    MemoryBankDocument,
    ToolCall,
    ToolResponse,
    TurnEvent,
    encode,
)
from .approval_commands import Decide
from .terminal import harmless

SHOWN = 200
"""How many characters of an answer or a document people see."""
TITLES = {
    ExecutionStepType.model_inference: "model",
    ExecutionStepType.tool_execution: "tools",
    ExecutionStepType.safety_filtering: "safety",
    ExecutionStepType.memory_retrieval: "memory",
}
Write = Callable[[str, str], None]
"""Writes a text in a style."""


def terminal_writer() -> Write:
    """Return what writes to stdout: in colours on a terminal, where control characters are made harmless."""
    if not sys.stdout.isatty():

        def write_plain(text: str, _: str) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        return write_plain
    console = Console(highlight=False)

    def write(text: str, style: str) -> None:
        shown = harmless(text)
        console.print(shown, end="", style=style, markup=False, emoji=False, soft_wrap=True)

    return write


class TurnView:
    """Shows a turn as it goes on.

    Args:
        write: writes to the terminal.
        decide: asks somebody about calls that wait; without it, it is told how they are decided.
    """

    def __init__(self, write: Write, decide: Decide | None = None) -> None:
        self._write = write
        self._decide = decide
        self._within_line = False
        self._number = 0
        self._below: dict[str, TurnView] = {}

    async def show(self, turn: FollowedTurn) -> None:
        """Show a turn to its end.

        Raises:
            AylluError: what it ended in.
        """
        try:
            async for event in turn:
                self.take(event)
                waits = event.event.approval if event.event is not None else None
                if self._decide is not None and waits is not None and waits.decision is None:
                    await self._decide(waits)
        finally:
            self.end_line()

    def take(self, event: TurnEvent) -> None:
        """Show one event."""
        if event.event is not None:
            self._take(event.event)
        elif event.child is not None:
            self._nest(event.child)
        elif event.turn is not None:
            self._line(
                "the bus has lost what was shown of the present step; it stands so:", "yellow"
            )
            self._number = len(event.turn.steps) + 1
            self._text(event.turn.partial_text)

    def _nest(self, child: ChildEvent) -> None:
        """Show an event of a turn that this one has started: its lines are indented, and begin with its agent's name."""
        event = child.event
        if event.turn is not None and event.recovered:
            below = self._below.pop(child.turn_id, None)
            if below is not None:
                below.end_line()
            status = event.turn.status
            why = f": {event.turn.error.message}" if event.turn.error is not None else ""
            self._line(f"  | {child.agent_uuid} {status}{why}", "dim")
            return
        below = self._below.get(child.turn_id)
        if below is None:
            below = self._below[child.turn_id] = TurnView(_Below(self._line, child.agent_uuid))
        below.take(event)

    def _take(self, chunk: AgenticSystemExecuteResponseStreamChunk) -> None:
        if chunk.event_type is AgenticSystemExecuteResponseEventType.step_start:
            self._number += 1
            self._line(f"[{self._number} {TITLES[chunk.step_type]}]", "dim")
        if chunk.response_text_delta:
            self._text(chunk.response_text_delta)
        if chunk.tool_call is not None:
            self._call(chunk.tool_call)
        if chunk.child_turn is not None:
            child = chunk.child_turn
            self._line(f"  + {child.tool_name}: turn {child.turn_id} of {child.agent_uuid}", "cyan")
        if chunk.approval is not None:
            self._approval(chunk.approval)
        if chunk.tool_response_delta is not None:
            self._answer(chunk.tool_response_delta)
        if chunk.retrieved_document is not None:
            self._document(chunk.retrieved_document)
        if chunk.violation is not None:
            self._line(f"  ! {chunk.violation.violation_type}: {chunk.violation.details}", "red")

    def _approval(self, approval: Approval) -> None:
        call, names = approval.tool_call, (approval.agent_uuid, approval.turn_id, approval.call_id)
        if approval.decision is None:
            what = f"{call.tool_name} {encode(call.arguments).decode()}"
            self._line(f"  ? {what} waits for approval", "yellow")
            if self._decide is None:
                self._line(f"    ayllu approvals approve {shlex.join(names)}", "dim")
            return
        how = " with other arguments" if approval.changed else ""
        why = f": {approval.reason}" if approval.reason else ""
        past = {"approve": "approved", "deny": "denied"}[approval.decision]
        self._line(f"  = {call.tool_name} was {past}{how}{why}", "yellow")

    def _call(self, call: ToolCall) -> None:
        self._line(f"  -> {call.tool_name} {encode(call.arguments).decode()}", "cyan")

    def _answer(self, response: ToolResponse) -> None:
        content = response.content
        text = content if isinstance(content, str) else encode(content).decode()
        self._line(f"  <- {response.tool_name}: {shortened(text)}", "green")

    def _document(self, document: MemoryBankDocument) -> None:
        text = document.content.decode(errors="replace")
        self._line(f"  {document.uuid}: {shortened(text)}", "magenta")

    def _text(self, text: str) -> None:
        if text:
            self._write(text, "")
            self._within_line = not text.endswith("\n")

    def _line(self, text: str, style: str) -> None:
        self.end_line()
        self._write(f"{text}\n", style)

    def end_line(self) -> None:
        """Let what comes next begin on a line of its own."""
        if self._within_line:
            self._write("\n", "")
            self._within_line = False


class _Below:
    """Writes what a turn below does, a line at a time: several may run at once.

    Args:
        line: writes a line.
        name: that it begins with.
    """

    def __init__(self, line: Write, name: str) -> None:
        self._line = line
        self._name = name
        self._text = ""

    def __call__(self, text: str, style: str) -> None:
        *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            if line:
                self._line(f"  | {self._name} {line}", style)


def shortened(text: str) -> str:
    """Return a text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
