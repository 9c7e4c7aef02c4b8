"""The reward actor: one reward model behind the RewardScoring API."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ...bus.client import REWARD_SERVICE
from ...schemas import (
    AylluError,
    EngineError,
    InvalidRequest,
    KPromptGenerations,
    KScoredPromptGenerations,
    Model,
    ModelNotFound,
    RewardScoring,
    RewardScoringRequest,
    RewardScoringResponse,
    ScoredMessage,
    UnscoredGeneration,
    assemble_scores,
    encode,
)
from .engine import Answer, RewardEngine, Score

Result = Score | AylluError


class RewardScoringActor(RewardScoring):
    """Scores answers with one reward model.

    Args:
        engine: scores, and is entered by whoever owns it.
        name: what requests call the reward model.
        aliases: other names for it.
        base: the model that it was trained from, if it is a registered one.
        version: of a registered one.
    """

    service_name = REWARD_SERVICE

    def __init__(
        self,
        engine: RewardEngine,
        name: str,
        aliases: Sequence[str] = (),
        *,
        base: str | None = None,
        version: int | None = None,
    ) -> None:
        self.models = frozenset((name, *aliases))
        described = Model(
            name=name,
            engine=engine.name,
            context=engine.context,
            aliases=sorted(set(aliases)),
            kind="reward",
            base=base,
            version=version,
            description=engine.description,
            lowest_score=engine.lowest,
            highest_score=engine.highest,
        )
        self.service_metadata = {"models": encode([described]).decode()}
        self._engine = engine
        self._name = name
        self._scored = 0
        self._unscored = 0

    def service_stats(self) -> dict[str, Any]:
        """Return how many answers were scored, and how many could not be."""
        return {"model": self._name, "scored": self._scored, "unscored": self._unscored}

    async def score(self, request: RewardScoringRequest) -> RewardScoringResponse:
        """Score the answers to each prompt, best first; see `RewardScoring.score`.

        Raises:
            InvalidRequest: there are no prompts, or a prompt has no answers.
            EngineDead: the engine is no more.
        """
        async with aclosing(self.stream_score(request)) as prompts:
            return assemble_scores([prompt async for prompt in prompts])

    def stream_score(
        self, request: RewardScoringRequest
    ) -> AsyncGenerator[KScoredPromptGenerations, None]:
        """Score the answers to each prompt; prompts come as they are done. It raises as `score` does."""
        self._check(request)
        return self._stream(request)

    def _check(self, request: RewardScoringRequest) -> None:
        if request.model not in self.models:
            served = sorted(self.models)
            raise ModelNotFound(
                f"this actor does not serve {request.model!r}", details={"served": served}
            )
        if not request.prompt_generations:
            raise InvalidRequest("prompt_generations is empty: there is nothing to score")
        for number, prompt in enumerate(request.prompt_generations):
            if not prompt.k_generations:
                raise InvalidRequest(f"prompt_generations[{number}].k_generations is empty")

    async def _stream(
        self, request: RewardScoringRequest
    ) -> AsyncGenerator[KScoredPromptGenerations, None]:
        # All answers of all prompts go to the engine together, so that it can make full batches of them.
        prompts = request.prompt_generations
        places = [
            (p, k) for p, prompt in enumerate(prompts) for k in range(len(prompt.k_generations))
        ]
        answers = [
            Answer(prompts[p].dialog, prompts[p].k_generations[k], prompts[p].reference)
            for p, k in places
        ]
        results: list[dict[int, Result]] = [{} for _ in prompts]
        places_left = len(places)
        async with aclosing(self._engine.score(answers)) as scores:
            async for number, result in scores:
                p, k = places[number]
                results[p][k] = self._counted(result)
                if len(results[p]) == len(prompts[p].k_generations):
                    yield _scored_prompt(p, prompts[p], results[p], request.threshold)
                    places_left -= len(results[p])
                    results[p] = {}
        if places_left:
            raise EngineError("the reward model left out some answers")

    def _counted(self, result: Result) -> Result:
        if isinstance(result, Score) and not math.isfinite(result.value):
            result = EngineError(f"the reward model gave {result.value}, which is no score")
        if isinstance(result, Score):
            self._scored += 1
        else:
            self._unscored += 1
        return result


def _scored_prompt(
    index: int,
    prompt: KPromptGenerations,
    results: dict[int, Result],
    threshold: float | None,
) -> KScoredPromptGenerations:
    """Return a prompt as it comes back: best answers first, equals in their order, failures apart."""
    scored: list[ScoredMessage] = []
    unscored: list[UnscoredGeneration] = []
    for k, message in enumerate(prompt.k_generations):
        result = results[k]
        if isinstance(result, AylluError):
            unscored.append(UnscoredGeneration(k, result.info.code, result.message))
        elif threshold is None or result.value >= threshold:
            scored.append(ScoredMessage(message, result.value, dict(result.parts)))
    scored.sort(key=lambda one: -one.score)
    return KScoredPromptGenerations(prompt.dialog.message, scored, index, unscored)
