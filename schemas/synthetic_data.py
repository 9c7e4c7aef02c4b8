"""The SyntheticDataGeneration API."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .content import Message, ModelName
from .rewards import KScoredPromptGenerations
from .webmethod import webmethod
from .wire import Reply, Wire


class FilteringFunction(StrEnum):
    """The type of filtering function."""

    none = "none"
    random = "random"
    top_k = "top_k"
    top_p = "top_p"
    top_k_top_p = "top_k_top_p"
    sigmoid = "sigmoid"


class RewardScoringConfig(Wire, frozen=True):
    """Which reward model scores, and the least score that passes (the draft names a Protocol here)."""

    model: ModelName
    threshold: float | None = None


class SyntheticDataGenerationRequest(Wire, frozen=True):
    """Request to generate synthetic data. A small batch of prompts and a filtering function."""

    prompts: list[Message]
    filtering_function: FilteringFunction = FilteringFunction.none
    reward_scoring: RewardScoringConfig | None = None
    model: Annotated[
        ModelName | None,
        Meta(description="Extension: who answers the prompts; else the deployment's default."),
    ] = None
    num_candidates: (
        Annotated[int, Meta(ge=1, le=64, description="Extension: answers to each prompt.")] | None
    ) = None
    k: (
        Annotated[int, Meta(ge=1, description="Extension: how many `top_k`, `top_k_top_p` keep.")]
        | None
    ) = None
    p: (
        Annotated[
            float,
            Meta(gt=0, le=1, description="Extension: the mass `top_p`, `top_k_top_p` keep."),
        ]
        | None
    ) = None
    temperature: (
        Annotated[float, Meta(gt=0, description="Extension: of the sampling of the candidates.")]
        | None
    ) = None
    seed: (
        Annotated[int, Meta(ge=0, lt=2**32 - 1, description="Extension: makes it repeatable.")]
        | None
    ) = None


class SyntheticDataGenerationResponse(Reply, frozen=True):
    """Response from the synthetic data generation. Batch of (prompt, response, score) tuples that pass the threshold."""

    synthetic_data: list[KScoredPromptGenerations]
    statistics: dict[str, Any] | None = None


class SyntheticDataGeneration(Protocol):
    """Generate, score and filter training data."""

    @webmethod(route="/synthetic_data_generation/generate", operation_id="post_generate")
    async def generate(
        self, request: SyntheticDataGenerationRequest
    ) -> SyntheticDataGenerationResponse:
        """Generate answers to prompts and keep the good ones."""
        ...
