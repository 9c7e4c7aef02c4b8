"""What a loop has done: pure. Each function returns the state after a step, from the state before it and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from ...schemas import Evaluation, ImproveRequest, ModelVersion

NOTHING_ACCEPTED = "none of the answers was accepted: there was nothing to learn from"
NOT_JUDGED = "the loop ended before this round was judged"
STAGES_OF_ROUND = 4
"""Data, training, registration, evaluation."""


class Before(msgspec.Struct, frozen=True):
    """What the name of the improved model served before the loop; None is nothing."""

    served: ModelVersion | None


class Round(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a round has done; what is absent is still to be done.

    Attributes:
        number: counted from 1.
        generator: the model that generates.
        accepted: how many answers were accepted.
        trained: whether its training is done.
        version: what the result is registered as.
        evaluation: of the result, without the scores of single prompts: its job has them.
        gain: its mean score above that of the best model before.
        kept: whether the result is the best model so far; a round that knows this is over.
        note: why not.
        seconds: what those of its stages took that are no jobs.
    """

    number: int
    generator: str
    accepted: int | None = None
    trained: bool = False
    version: int | None = None
    evaluation: Evaluation | None = None
    gain: float | None = None
    kept: bool | None = None
    note: str = ""
    seconds: dict[str, float] = {}


class LoopState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A loop, as it is kept.

    Attributes:
        attempt: the attempt of the job that wrote it; an earlier one may write no more.
        before: what is served again where nothing was kept.
        baseline: of the base.
        helped: of the base with help.
        rounds: those that have begun.
    """

    attempt: int = 0
    before: Before | None = None
    baseline: Evaluation | None = None
    helped: Evaluation | None = None
    rounds: list[Round] = []


@dataclass(frozen=True, slots=True)
class Best:
    """The best model so far: its name, its evaluation, and the round that made it; 0 is the base."""

    model: str
    evaluation: Evaluation
    round: int


def best_of(request: ImproveRequest, state: LoopState) -> Best | None:
    """Return the best model so far; there is none before the base was evaluated."""
    for done in reversed(state.rounds):
        if done.kept and done.evaluation is not None:
            return Best(request.name, done.evaluation, done.number)
    if state.baseline is None:
        return None
    return Best(request.model, state.baseline, 0)


def looked_up(state: LoopState, served: ModelVersion | None) -> LoopState:
    """Return the state once it is known what the name serves."""
    return replace(state, before=Before(served))


def evaluated_base(
    request: ImproveRequest, state: LoopState, evaluation: Evaluation, *, helped: bool
) -> LoopState:
    """Return the state once the base was evaluated, with help or without."""
    state = replace(state, helped=evaluation) if helped else replace(state, baseline=evaluation)
    return _opened(request, state)


def generated(request: ImproveRequest, state: LoopState, accepted: int) -> LoopState:
    """Return the state once a round has its data; without any, it is over."""
    if accepted:
        return _with_round(state, accepted=accepted)
    state = _with_round(state, accepted=0, kept=False, note=NOTHING_ACCEPTED)
    return _opened(request, state)


def trained(state: LoopState) -> LoopState:
    """Return the state once a round's training is done."""
    return _with_round(state, trained=True)


def registered(state: LoopState, version: int, seconds: float) -> LoopState:
    """Return the state once a round's result is served."""
    return _with_round(state, version=version, seconds={"registering": seconds})


def evaluated(request: ImproveRequest, state: LoopState, evaluation: Evaluation) -> LoopState:
    """Return the state once a round's result was evaluated."""
    best = best_of(request, state)
    assert best is not None
    gain = evaluation.mean - best.evaluation.mean
    return _with_round(state, evaluation=evaluation, gain=gain)


def verdict(request: ImproveRequest, state: LoopState) -> tuple[bool, str]:
    """Tell whether the round that was just evaluated is kept; if not, why."""
    last, best = state.rounds[-1], best_of(request, state)
    assert last.evaluation is not None
    assert last.gain is not None
    assert best is not None
    if last.gain > request.min_gain:
        return True, ""
    least = f" by more than {request.min_gain:g}" if request.min_gain else ""
    return False, (
        f"its mean score {last.evaluation.mean:.4f} is not above the {best.evaluation.mean:.4f} of {best.model}{least}"
    )


def settled(request: ImproveRequest, state: LoopState) -> LoopState:
    """Return the state once what was decided of a round is done."""
    kept, note = verdict(request, state)
    return _opened(request, _with_round(state, kept=kept, note=note))


def broken_off(state: LoopState) -> LoopState:
    """Return the state of a loop that ends before its round was judged."""
    return _with_round(state, kept=False, note=NOT_JUDGED)


def stages_of(request: ImproveRequest) -> int:
    """Return how many stages a loop has in all."""
    return 1 + bool(request.help) + STAGES_OF_ROUND * request.rounds


def stages_done(state: LoopState) -> int:
    """Return how many stages are done, or will not be needed."""
    done = (state.baseline is not None) + (state.helped is not None)
    for one in state.rounds:
        if one.kept is not None:
            done += STAGES_OF_ROUND
        else:
            done += (one.accepted is not None) + one.trained + (one.version is not None)
    return done


def _opened(request: ImproveRequest, state: LoopState) -> LoopState:
    """Return the state with the next round, if it is time for it."""
    if state.baseline is None or (request.help and state.helped is None):
        return state
    if len(state.rounds) >= request.rounds:
        return state
    best = best_of(request, state)
    assert best is not None
    new = Round(number=len(state.rounds) + 1, generator=best.model)
    return replace(state, rounds=[*state.rounds, new])


def _with_round(state: LoopState, **changes: Any) -> LoopState:
    return replace(state, rounds=[*state.rounds[:-1], replace(state.rounds[-1], **changes)])
