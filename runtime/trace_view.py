"""A trace of a turn as lines: when each part of it ran, how long, for how many tokens, and the tree of it. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.text import Text

from ..schemas import CallTrace, StepTrace, TokenUsage, TurnStatus, TurnTrace
from .terminal import one_line
from .turn_view import TITLES, shortened

BAR = 20
"""How wide a bar is, in characters."""
HEAD = f"{'start':>9}{'took':>9}  {'':<{BAR}}{'tokens':>8}"
STYLES = {
    TurnStatus.queued: "dim",
    TurnStatus.running: "cyan",
    TurnStatus.waiting: "yellow",
    TurnStatus.completed: "green",
    TurnStatus.cancelled: "yellow",
    TurnStatus.failed: "red",
}


@dataclass(frozen=True, slots=True)
class Node:
    """A part of a trace.

    Attributes:
        label: what it is.
        status: what became of it.
        style: of the status, on a terminal.
        began: when it began; None where it has not.
        ended: when it ended; None while it runs.
        tokens: what it took; None where that is not known.
        below: its parts.
    """

    label: str
    status: str
    style: str
    began: datetime | None
    ended: datetime | None
    tokens: int | None
    below: Sequence[Node] = ()


def trace_lines(trace: TurnTrace, now: datetime) -> list[Text]:
    """Return a trace as lines.

    Args:
        trace: the trace.
        now: until when what runs has run.
    """
    root = _of_turn(trace)
    zero = root.began or now
    span = max(((root.ended or now) - zero).total_seconds(), 1e-6)
    lines = [Text(HEAD, style="dim")]
    for stem, node in _walk(root):
        style = {"style": node.style}
        times = _times(node, zero, now)
        tokens = "" if node.tokens is None else f"{node.tokens:,}"
        line = Text(f"{times[0]:>9}{times[1]:>9}  ")
        line.append(_bar(node, zero, span, now), **style)
        line.append(f"{tokens:>8}  {stem}{node.label}")
        lines.append(line.append(f"  {node.status}" if node.status else "", **style))
    return lines


def _walk(node: Node, stem: str = "", under: str = "") -> Iterator[tuple[str, Node]]:
    yield stem, node
    for number, below in enumerate(node.below, 1):
        last = number == len(node.below)
        yield from _walk(
            below, under + ("└─ " if last else "├─ "), under + ("   " if last else "│  ")
        )


def _of_turn(trace: TurnTrace) -> Node:
    said = [str(trace.status)]
    if trace.error is not None:
        said.append(shortened(one_line(trace.error.message)))
    if trace.queued_seconds:
        said.append(f"waited {seconds(trace.queued_seconds)}")
    if trace.attempts > 1:
        said.append(f"{trace.attempts} executors")
    if trace.cause is not None:
        said.append(f"for {one_line(trace.cause.trigger)}")
    return Node(
        f"{one_line(trace.agent_uuid)} / {one_line(trace.turn_id)}",
        ", ".join(said),
        STYLES[trace.status],
        trace.begun_at,
        trace.ended_at,
        max(trace.spent.tokens, _tokens(trace.usage) or 0) if trace.begun_at else None,
        [_of_step(step) for step in trace.steps],
    )


def _of_step(step: StepTrace) -> Node:
    return Node(
        TITLES[step.step_type],
        "" if step.ended_at else "running",
        "" if step.ended_at else "cyan",
        step.began_at,
        step.ended_at,
        _tokens(step.usage),
        [_of_call(call) for call in step.calls],
    )


def _of_call(call: CallTrace) -> Node:
    status = call.outcome or ("running" if call.began_at else "waiting")
    left = f", {call.left_out} more turns that are not shown" if call.left_out else ""
    styles = {"ok": "green", "running": "cyan", "waiting": "yellow"}
    return Node(
        one_line(call.tool_name),
        status + left,
        styles.get(status, "red"),
        call.began_at,
        call.ended_at,
        None,
        [_of_turn(child) for child in call.children],
    )


def _tokens(usage: TokenUsage | None) -> int | None:
    return None if usage is None else usage.prompt_tokens + usage.completion_tokens


def _times(node: Node, zero: datetime, now: datetime) -> tuple[str, str]:
    if node.began is None:
        return "", ""
    took = ((node.ended or now) - node.began).total_seconds()
    return seconds((node.began - zero).total_seconds()), seconds(took)


def seconds(value: float) -> str:
    """Return a time in seconds as people read it."""
    value = max(0.0, value)
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 100:
        return f"{value:.2f} s"
    minutes, left = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} m" if hours else f"{minutes} m {left:02} s"


def _bar(node: Node, zero: datetime, span: float, now: datetime) -> str:
    """Return when in the whole time something ran."""
    if node.began is None:
        return " " * BAR
    first, last = (
        min(BAR, max(0, round(BAR * (at - zero).total_seconds() / span)))
        for at in (node.began, node.ended or now)
    )
    first = min(first, BAR - 1)
    return "·" * first + "█" * max(1, last - first) + "·" * (BAR - max(first + 1, last))
