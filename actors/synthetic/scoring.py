"""Scores of candidates: many prompts in one call of the reward model; what cannot be scored affects nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import anyio

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import (
    AylluError,
    Dialog,
    EngineError,
    InvalidRequest,
    KPromptGenerations,
    KScoredPromptGenerations,
    Overloaded,
    RewardScoring,
    RewardScoringRequest,
    encode,
)
from ..patience import FULL_PATIENCE, pause_after
from .candidates import Verdict, Verdicts, Work
from .selection import Failure
from .settings import Resolved

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
"""Between two calls of a reward model that is away."""
UNSCORED = Verdict(0.0)
"""What answers get that no reward model looks at."""


class Scorer:
    """Scores the groups of one request.

    Args:
        bus: where the reward model is.
        request: what is asked for.
        patience: how long it may be away, in seconds.
    """

    def __init__(self, bus: Bus, request: Resolved, patience: float) -> None:
        self._rewards = client(RewardScoring, bus)
        self._request = request
        self._patience = patience

    async def score(self, groups: Sequence[Work]) -> AsyncGenerator[tuple[Work, Verdicts], None]:
        """Score groups that are generated; each comes as soon as it is done.

        Raises:
            AylluError: the reward model is not there, or was away for too long.
        """
        reward = self._request.reward_scoring
        to_score = [work for work in groups if work.answered and reward is not None]
        for work in groups:
            if work not in to_score:
                yield work, _verdicts_of(work, UNSCORED)
        left = list(to_score)
        try:
            async with aclosing(self._persistently(to_score)) as scored:
                async for work, verdicts in scored:
                    left.remove(work)
                    yield work, verdicts
        except InvalidRequest as error:
            log.warning("some candidates cannot be scored: %s", error)
        # Which of them it was about, only scoring one group after the other can tell.
        for work in left:
            yield work, await self._alone(work)

    async def _alone(self, work: Work) -> Verdicts:
        try:
            async with aclosing(self._persistently([work])) as scored:
                _, verdicts = await anext(scored)
                return verdicts
        except InvalidRequest as error:
            return _verdicts_of(work, Verdict(Failure(error.code, error.message)))

    async def _persistently(
        self, groups: Sequence[Work]
    ) -> AsyncGenerator[tuple[Work, Verdicts], None]:
        """Score groups; what is not done when the reward model is lost is asked for again."""
        left = list(groups)
        give_up = anyio.current_time() + self._patience
        full_until = anyio.current_time() + FULL_PATIENCE
        while left:
            try:
                async with aclosing(self._once(tuple(left))) as scored:
                    async for work, verdicts in scored:
                        left.remove(work)
                        give_up = anyio.current_time() + self._patience
                        full_until = anyio.current_time() + FULL_PATIENCE
                        yield work, verdicts
            except AylluError as error:
                at = full_until if isinstance(error, Overloaded) else give_up
                if not error.retryable or anyio.current_time() > at:
                    raise
                log.info("scoring again: %s", error)
                await anyio.sleep(pause_after(error, PAUSE_SECONDS))

    async def _once(self, groups: Sequence[Work]) -> AsyncGenerator[tuple[Work, Verdicts], None]:
        assert self._request.reward_scoring is not None
        # The threshold is the sieve's: what is below it has a score too.
        request = RewardScoringRequest(
            [self._asked(work) for work in groups], self._request.reward_scoring.model, stream=True
        )
        missing = set(range(len(groups)))
        async for response in self._rewards.stream_score(request):
            if response.index not in missing:
                raise EngineError(
                    f"the reward model {request.model} scored a prompt twice, or none"
                )
            missing.remove(response.index)
            yield groups[response.index], _verdicts(groups[response.index], response)
        if missing:
            raise EngineError(f"the reward model {request.model} left out {len(missing)} prompts")

    def _asked(self, work: Work) -> KPromptGenerations:
        request, prompt = self._request, work.place.prompt
        return KPromptGenerations(
            Dialog(request.prompts[prompt], list(request.context) or None),
            list(work.answered.values()),
            request.references[prompt] if request.references else None,
        )


def _verdicts(work: Work, response: KScoredPromptGenerations) -> Verdicts:
    """Return the scores of a group by the numbers of its candidates; equal answers have equal scores."""
    failures = {one.index: Failure(one.code, one.message) for one in response.unscored}
    scores = {encode(one.message): one for one in response.k_scored_generations}
    verdicts: dict[int, Verdict] = {}
    for index, (number, message) in enumerate(work.answered.items()):
        scored = scores.get(encode(message))
        if index in failures:
            verdicts[number] = Verdict(failures[index])
        elif scored is not None:
            verdicts[number] = Verdict(scored.score, scored.parts)
        else:
            verdicts[number] = Verdict(Failure("engine_error", "the reward model left it out"))
    return Verdicts(verdicts, time.time())


def _verdicts_of(work: Work, verdict: Verdict) -> Verdicts:
    return Verdicts(dict.fromkeys(work.answered, verdict), time.time())
