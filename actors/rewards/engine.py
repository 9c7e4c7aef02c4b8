"""What a reward engine is to its actor: answers in, scores out, each as it is done, many at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...schemas import AylluError, Dialog, Message


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to be scored.

    Attributes:
        dialog: what was answered.
        message: the answer.
        reference: what a right answer is known to be, if anything is.
    """

    dialog: Dialog
    message: Message
    reference: Any = None


@dataclass(frozen=True, slots=True)
class Score:
    """A score: finite; of a combination, with the parts that it is made of."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


class RewardEngine(Protocol):
    """Scores answers. Used as ``async with engine:``: inside, it is ready.

    The same answer gets the same score, whatever else is scored beside it. One contract suite
    (tests/contracts/test_reward_engine.py) runs over all engines.
    """

    name: str
    """What kind of engine it is, for example ``classifier``."""

    description: str
    """What its scores mean, for people."""

    lowest: float | None
    """The least score there is; None is no limit."""

    highest: float | None
    """The largest score there is; None is no limit."""

    context: int
    """The longest dialog and answer together, in tokens; 0 where it does not count them."""

    async def __aenter__(self) -> RewardEngine:
        """Make it ready.

        Raises:
            AylluError: it cannot be; the message says why.
        """
        ...

    async def __aexit__(self, *exc: object) -> None:
        """End it; what is still being scored is cancelled."""
        ...

    def score(self, answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Score | AylluError]]:
        """Score answers: yields the index of each, and its score, as soon as it is done, in any order.

        An answer that cannot be scored yields its error instead; the others are not affected. Closing the generator ends the
        work.

        Raises:
            EngineDead: the engine is no more.
        """
        ...
