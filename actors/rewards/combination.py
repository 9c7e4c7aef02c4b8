"""A combination: other reward models, each with a weight. They are asked over the bus, wherever they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
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
from ..ordered import as_told
from .asking import Patience
from .engine import Answer, Score

BATCH = 32
"""How many answers the parts are asked about together."""
AT_ONCE = 2
"""How many batches they are asked about at once: while one part still works on a batch, others need not wait."""
ASK_SECONDS = 86_400.0
"""How long a part may take for a batch: it keeps its own time for each answer, and whoever asked the combination for all."""
PATIENCE = 30.0
"""How long a part may be away, in seconds."""

Result = Score | AylluError
Tell = Callable[[tuple[int, Result]], None]


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
        self._rewards: RewardScoring = client(RewardScoring, bus, timeout=ASK_SECONDS)
        self._weights = dict(weights)
        self._patience = {part: Patience(PATIENCE) for part in weights}

    async def __aenter__(self) -> CombinationEngine:
        """Do nothing: the parts may come later."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Do nothing."""

    def score(self, answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Result], None]:
        """Score answers; see `RewardEngine.score`."""
        return as_told(partial(self._score, answers))

    async def _score(self, answers: Sequence[Answer], tell: Tell) -> None:
        free = anyio.Semaphore(AT_ONCE)

        async def run(first: int) -> None:
            try:
                await self._batch(first, answers[first : first + BATCH], tell)
            finally:
                free.release()

        async with anyio.create_task_group() as tasks:
            for first in range(0, len(answers), BATCH):
                await free.acquire()
                tasks.start_soon(run, first)

    async def _batch(self, first: int, answers: Sequence[Answer], tell: Tell) -> None:
        """Tell of each answer as soon as all parts have said something to it."""
        said: list[dict[str, float | AylluError]] = [{} for _ in answers]

        def hear(part: str, number: int, score: float | AylluError) -> None:
            said[number][part] = score
            if len(said[number]) == len(self._weights):
                tell((first + number, self._combined(said[number])))

        async with anyio.create_task_group() as tasks:
            for part in self._weights:
                tasks.start_soon(self._ask, part, answers, partial(hear, part))

    async def _ask(
        self,
        part: str,
        answers: Sequence[Answer],
        hear: Callable[[int, float | AylluError], None],
    ) -> None:
        """Hear what a part says to each answer; what it said before it was lost stays said."""
        missing = dict(enumerate(answers))

        async def ask() -> None:
            numbers = list(missing)
            # Each answer is a prompt of its own: what comes back is sorted, and equal answers could not be told apart.
            prompts = [
                KPromptGenerations(one.dialog, [one.message], one.reference)
                for one in missing.values()
            ]
            request = RewardScoringRequest(prompts, part, stream=True)
            async for prompt in self._rewards.stream_score(request):
                index = prompt.index
                if index is None or not 0 <= index < len(numbers):
                    continue
                if missing.pop(numbers[index], None) is not None:
                    hear(numbers[index], _said(part, prompt))

        try:
            await self._patience[part].bear(ask)
            error: AylluError = EngineError(f"{part}: it left out the answer")
        except AylluError as refused:
            error = _of_part(part, refused.info)
        for number in missing:
            hear(number, error)

    def _combined(self, said: Mapping[str, float | AylluError]) -> Result:
        parts: dict[str, float] = {}
        for part in self._weights:
            score = said[part]
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


def _said(part: str, prompt: KScoredPromptGenerations) -> float | AylluError:
    if prompt.k_scored_generations:
        return prompt.k_scored_generations[0].score
    if prompt.unscored:
        first = prompt.unscored[0]
        return _of_part(part, ErrorInfo(first.code, first.message))
    return EngineError(f"{part}: it left out the answer")


def _of_part(part: str, error: ErrorInfo) -> AylluError:
    return error_from(replace(error, message=f"{part}: {error.message}"))
