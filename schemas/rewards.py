"""The RewardScoring API."""

from __future__ import annotations

from typing import Protocol

from .content import Dialog, Message, ModelName
from .webmethod import webmethod
from .wire import Reply, Wire


class KPromptGenerations(Wire, frozen=True):
    """A dialog and k answers to it."""

    dialog: Dialog
    k_generations: list[Message]


class ScoredMessage(Wire, frozen=True):
    """An answer and its score."""

    message: Message
    score: float


class KScoredPromptGenerations(Wire, frozen=True):
    """A prompt and its scored answers, best first."""

    prompt: Message
    k_scored_generations: list[ScoredMessage]


class RewardScoringRequest(Wire, frozen=True):
    """Request to score a reward function. A list of prompts and a list of responses per prompt."""

    prompt_generations: list[KPromptGenerations]
    model: ModelName


class RewardScoringResponse(Reply, frozen=True):
    """Response from the reward scoring. Batch of (prompt, response, score) tuples that pass the threshold."""

    scored_generations: list[KScoredPromptGenerations]


class RewardScoring(Protocol):
    """Score answers with a reward model."""

    @webmethod(route="/reward_scoring/score", operation_id="post_score")
    async def score(self, request: RewardScoringRequest) -> RewardScoringResponse:
        """Score the answers to each prompt, best first."""
        ...
