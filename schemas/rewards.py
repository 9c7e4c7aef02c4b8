"""The RewardScoring API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .content import Dialog, Message, ModelName
from .webmethod import webmethod
from .wire import Reply, Wire

Reference = Annotated[
    Any,
    Meta(
        description="Extension: what a right answer is known to be, for reward models that compare with it: any JSON value."
    ),
]


class KPromptGenerations(Wire, frozen=True):
    """A dialog and k answers to it."""

    dialog: Dialog
    k_generations: list[Message]
    reference: Reference = None


class ScoredMessage(Wire, frozen=True):
    """An answer and its score."""

    message: Message
    score: float
    parts: Annotated[
        dict[str, float],
        Meta(
            description="Extension: the scores that a combination is made of, by the name of their reward model."
        ),
    ] = {}


class UnscoredGeneration(Reply, frozen=True):
    """Extension: an answer that could not be scored, and why; the others of its prompt are not affected."""

    index: Annotated[int, Meta(description="Where it stands among the generations of its prompt.")]
    code: str
    message: str


class KScoredPromptGenerations(Wire, frozen=True):
    """A prompt and its scored answers, best first; equal scores keep the order in which they came."""

    prompt: Message
    k_scored_generations: list[ScoredMessage]
    index: Annotated[
        int | None, Meta(description="Extension: where the prompt stands in the request.")
    ] = None
    unscored: Annotated[
        list[UnscoredGeneration],
        Meta(description="Extension: answers that could not be scored, in their order."),
    ] = []


class RewardScoringRequest(Wire, frozen=True):
    """Request to score a reward function. A list of prompts and a list of responses per prompt."""

    prompt_generations: list[KPromptGenerations]
    model: ModelName
    threshold: Annotated[
        float | None,
        Meta(description="Extension: only answers with at least this score come back."),
    ] = None
    stream: Annotated[
        bool,
        Meta(description="Extension: each prompt comes as soon as all its answers are scored."),
    ] = False


class RewardScoringResponse(Reply, frozen=True):
    """Response from the reward scoring. Batch of (prompt, response, score) tuples that pass the threshold."""

    scored_generations: list[KScoredPromptGenerations]


class ScoreAnswerRequest(Wire, frozen=True):
    """Extension: what a reward model of the engine `program` asks an operation that scores answers."""

    dialog: Dialog
    answer: Message
    reference: Reference = None


class ScoreAnswerResponse(Reply, frozen=True):
    """Extension: what such an operation answers."""

    score: float


def assemble_scores(prompts: Sequence[KScoredPromptGenerations]) -> RewardScoringResponse:
    """Return the whole response that a stream of scored prompts amounts to: in the order of the request."""
    return RewardScoringResponse(sorted(prompts, key=lambda prompt: prompt.index or 0))


class RewardScoring(Protocol):
    """Score answers with a reward model."""

    @webmethod(route="/reward_scoring/score", operation_id="post_score", routed_by="model")
    async def score(self, request: RewardScoringRequest) -> RewardScoringResponse:
        """Score the answers to each prompt, best first."""
        ...

    @webmethod(
        route="/reward_scoring/score",
        operation_id="post_score",
        routed_by="model",
        assemble=assemble_scores,
    )
    def stream_score(
        self, request: RewardScoringRequest
    ) -> AsyncIterator[KScoredPromptGenerations]:
        """Score the answers to each prompt; prompts come as they are done."""
        ...
