"""A combination: other reward models, each with a weight. They are asked over the bus, wherever they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial

import anyio
from msgspec.structs import replace

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import (
    AylluError,
    EngineError,
    KPromptGenerations,
    KScoredPromptGenerations,
    RewardScoring,
    RewardScoringRequest,
    error_from,
)
from ...schemas.errors import ErrorInfo
from ..ordered import as_done
from .asking import Patience
from .engine import Answer, Score

BATCH = 32
"""How many answers the parts are asked about together; a combination tells of answers in such batches."""
AT_ONCE = 2
"""How many batches they are asked about at once: while one part still works on a batch, others need not wait."""
PATIENCE = 30.0
"""How long a part may be away, in seconds."""

Result = Score | AylluError


class CombinationEngine:
    """A `RewardEngine` whose score is the mean of those of its parts by their weights.

    An answer that a part cannot score has that part's error: a mean without it would mean something else.

    Args:
        bus: where the parts are.
        weights: by the names of the reward models; positive.
        description: what the scores mean, for people.
        lowest: the least score there is, if that is known.
        highest: the largest one.
    """

    name = "combination"
    context = 0

    def __init__(
        self,
        bus: Bus,
        weights: Mapping[str, float],
        *,
        description: str,
        lowest: float | None,
        highest: float | None,
    ) -> None:
        self.description = description
        self.lowest = lowest
        self.highest = highest
        self._rewards: RewardScoring = client(RewardScoring, bus)
        self._weights = dict(weights)
        self._patience = {part: Patience(PATIENCE) for part in weights}

    async def __aenter__(self) -> CombinationEngine:
        """Do nothing: the parts may come later."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Do nothing."""

    async def score(self, answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Result], None]:
        """Score answers; see `RewardEngine.score`."""

        async def run(first: int) -> list[tuple[int, Result]]:
            results = await self._batch(answers[first : first + BATCH])
            return list(enumerate(results, first))

        jobs = (partial(run, first) for first in range(0, len(answers), BATCH))
        async with aclosing(as_done(jobs, at_once=AT_ONCE)) as batches:
            async for batch in batches:
                for scored in batch:
                    yield scored

    async def _batch(self, answers: Sequence[Answer]) -> list[Result]:
        by_part: dict[str, list[float | AylluError]] = {}

        async def ask(part: str) -> None:
            by_part[part] = await self._ask(part, answers)

        async with anyio.create_task_group() as tasks:
            for part in self._weights:
                tasks.start_soon(ask, part)
        return [
            self._combined({part: by_part[part][number] for part in self._weights})
            for number in range(len(answers))
        ]

    async def _ask(self, part: str, answers: Sequence[Answer]) -> list[float | AylluError]:
        """Return what a part says to each answer."""
        # Each answer is a prompt of its own: what comes back is sorted, and equal answers could not be told apart.
        prompts = [KPromptGenerations(one.dialog, [one.message], one.reference) for one in answers]
        request = RewardScoringRequest(prompt_generations=prompts, model=part)
        try:
            response = await self._patience[part].bear(lambda: self._rewards.score(request))
        except AylluError as error:
            return [_of_part(part, error.info)] * len(answers)
        found = {prompt.index: prompt for prompt in response.scored_generations}
        return [_said(part, found.get(number)) for number in range(len(answers))]

    def _combined(self, said: Mapping[str, float | AylluError]) -> Result:
        parts: dict[str, float] = {}
        for part, score in said.items():
            if isinstance(score, AylluError):
                return score
            parts[part] = score
        return Score(weighted_mean(self._weights, parts), parts)


def weighted_mean(weights: Mapping[str, float], values: Mapping[str, float]) -> float:
    """Return the sum of all values times their weights, divided by the sum of the weights."""
    total = sum(weight * values[name] for name, weight in weights.items())
    mean = total / sum(weights.values())
    # It is rounded, and still no less than the least: a threshold that all parts reach, it reaches.
    known = [values[name] for name in weights]
    return min(max(mean, min(known)), max(known))


def _said(part: str, prompt: KScoredPromptGenerations | None) -> float | AylluError:
    if prompt is not None and prompt.k_scored_generations:
        return prompt.k_scored_generations[0].score
    if prompt is not None and prompt.unscored:
        first = prompt.unscored[0]
        return _of_part(part, ErrorInfo(first.code, first.message))
    return EngineError(f"{part}: it left out the answer")


def _of_part(part: str, error: ErrorInfo) -> AylluError:
    return error_from(replace(error, message=f"{part}: {error.message}"))
