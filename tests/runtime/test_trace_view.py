"""Traces as lines for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ayllu.runtime.trace_view import HEAD, seconds, trace_lines
from ayllu.schemas import (
    CallTrace,
    Cause,
    ErrorInfo,
    ExecutionStepType,
    Spent,
    StepTrace,
    TokenUsage,
    TurnStatus,
    TurnTrace,
)

ZERO = datetime(2026, 11, 28, tzinfo=UTC)


def after(value: float) -> datetime:
    return ZERO + timedelta(seconds=value)


def child(turn: str, began: float, ended: float | None, **fields: object) -> TurnTrace:
    status = TurnStatus.running if ended is None else TurnStatus.completed
    return TurnTrace(
        "clerk",
        turn,
        status,
        begun_at=after(began),
        ended_at=None if ended is None else after(ended),
        spent=Spent(steps=1, tokens=7),
        **fields,  # type: ignore[arg-type]
    )


def trace(ended: float | None = 10) -> TurnTrace:
    used = TokenUsage(prompt_tokens=1000, completion_tokens=234)
    calls = [
        CallTrace(
            "ask",
            after(2),
            after(8),
            "ok",
            [child("c1", 3, 7, queued_seconds=1.0), child("c2", 3, None, attempts=2)],
            left_out=3,
        ),
        CallTrace("pay"),
        CallTrace("ring", after(2)),
        CallTrace("sing", after(2), after(3), "failed"),
    ]
    return TurnTrace(
        "support",
        "t",
        TurnStatus.running if ended is None else TurnStatus.completed,
        begun_at=ZERO,
        ended_at=None if ended is None else after(ended),
        usage=used,
        spent=Spent(steps=3, tokens=1241),
        steps=[
            StepTrace("a", ExecutionStepType.model_inference, ZERO, after(2), used),
            StepTrace("b", ExecutionStepType.tool_execution, after(2), None, calls=calls),
        ],
    )


def lines(shown: TurnTrace, now: float = 10) -> list[str]:
    return [line.plain.rstrip() for line in trace_lines(shown, after(now))]


@pytest.mark.requirement("trace-command")
def test_a_tree_with_times_bars_and_tokens() -> None:
    assert lines(trace()) == [
        HEAD.rstrip(),
        "     0 ms  10.00 s  ████████████████████   1,241  support / t  completed",
        "     0 ms   2.00 s  ████················   1,234  ├─ model",
        "   2.00 s   8.00 s  ····████████████████          └─ tools  running",
        "   2.00 s   6.00 s  ····████████████····             ├─ ask  ok, 3 more turns that are not shown",
        "   3.00 s   4.00 s  ······████████······       7     │  ├─ clerk / c1  completed, waited 1.00 s",
        "   3.00 s   7.00 s  ······██████████████       7     │  └─ clerk / c2  running, 2 executors",
        f"{'':50}   ├─ pay  waiting",
        "   2.00 s   8.00 s  ····████████████████             ├─ ring  running",
        "   2.00 s   1.00 s  ····██··············             └─ sing  failed",
    ]


@pytest.mark.requirement("trace-command")
def test_what_runs_goes_on_to_this_moment() -> None:
    assert lines(trace(None), 20)[1].startswith("     0 ms  20.00 s  ████████████████████ ")


@pytest.mark.requirement("trace-command")
def test_nothing_has_begun() -> None:
    [_, line] = lines(TurnTrace("support", "t", TurnStatus.queued))
    assert line.strip() == "support / t  queued"


@pytest.mark.requirement("trace-command")
def test_an_instant_has_a_bar_and_a_clock_that_went_back_does_no_harm() -> None:
    shown = TurnTrace(
        "a",
        "t",
        TurnStatus.failed,
        begun_at=ZERO,
        ended_at=ZERO,
        error=ErrorInfo("internal", "no\nway"),
        cause=Cause("nightly", "ayllu.v1.event.x", 1),
        steps=[StepTrace("s", ExecutionStepType.safety_filtering, after(-5), after(30))],
    )
    [_, turn, step] = lines(shown)
    assert turn.count("█") == 1
    assert turn.endswith("failed, no way, for nightly")
    assert "  0 ms  35.00 s" in step


@pytest.mark.requirement("trace-command")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-1, "0 ms"),
        (0.1254, "125 ms"),
        (0.9996, "1.00 s"),
        (99.5, "99.50 s"),
        (125, "2 m 05 s"),
        (3725, "1 h 02 m"),
    ],
)
def test_times(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.requirement("seeing-hostile")
def test_names_are_harmless() -> None:
    shown = TurnTrace(
        "a\x1b[31m",
        "t\nu",
        TurnStatus.running,
        begun_at=ZERO,
        error=ErrorInfo("internal", "\x07"),
        cause=Cause("\x1b]0;x\x07", "s", 1),
        steps=[
            StepTrace("s", ExecutionStepType.tool_execution, ZERO, calls=[CallTrace("x\r\x1b[2J")])
        ],
    )
    text = "".join(lines(shown))
    assert not [char for char in text if ord(char) < 32 or 127 <= ord(char) < 160]
    assert "[31m" in text
