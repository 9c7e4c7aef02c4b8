"""The configuration of synthetic data generation, ``[synthetic_data]``, and what a request means with it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from ...schemas import (
    InvalidRequest,
    ModelName,
    RewardScoringConfig,
    SyntheticDataGenerationRequest,
    Wire,
)
from .filters import NEEDS_SCORES, check_filter

CANDIDATES = 4
"""Answers to each prompt, where a request does not say."""


class SyntheticDataConfig(Wire, frozen=True):
    """How data is generated.

    Attributes:
        model: who answers the prompts of requests that name no model; by default the first of ``[[models]]``.
        reward_model: what scores the answers of requests that name no reward model; by default none does.
        at_once: how many answers are asked for at once, over all requests and jobs of a worker. Twice the slots of the models
            keeps them busy; more makes others wait.
    """

    model: ModelName | None = None
    reward_model: ModelName | None = None
    at_once: Annotated[int, Meta(ge=1, le=1024)] = 8


class Resolved(SyntheticDataGenerationRequest, frozen=True):
    """A request in which nothing is left to a default but the seed.

    ``model`` and ``num_candidates`` are there; ``temperature`` is 0 where the likeliest answer is wanted.
    """

    model: ModelName = ""
    num_candidates: int = CANDIDATES
    temperature: float = 0.0


def resolve(request: SyntheticDataGenerationRequest, config: SyntheticDataConfig) -> Resolved:
    """Return what a request means in this deployment.

    Raises:
        InvalidRequest: it contradicts itself; the message names the field.
    """
    check_filter(request)
    reward = request.reward_scoring
    if reward is None and config.reward_model is not None:
        reward = RewardScoringConfig(config.reward_model)
    if reward is None and request.filtering_function in NEEDS_SCORES:
        raise InvalidRequest(
            f"reward_scoring: the filtering function {request.filtering_function.value} needs a reward model, and this "
            "deployment has no default one"
        )
    if config.model is None and request.model is None:
        raise InvalidRequest("model: name one; this deployment has no default one")
    count = request.num_candidates or CANDIDATES
    temperature = request.temperature
    if temperature is None:
        # Several answers to one prompt are worth nothing if all are the likeliest one.
        temperature = 0.0 if count == 1 and request.target is None else 1.0
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    fields |= {"reward_scoring": reward, "model": request.model or config.model}
    fields |= {"num_candidates": count, "temperature": temperature}
    return Resolved(**fields)


def with_default_model(config: SyntheticDataConfig, model: str) -> SyntheticDataConfig:
    """Return a configuration in which a model answers the prompts of requests that name none."""
    return config if config.model is not None else replace(config, model=model)
