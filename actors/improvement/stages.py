"""The requests of a loop's stages: pure, so that a stage that is started again is the same job."""

from __future__ import annotations

import hashlib

from ...schemas import (
    Dataset,
    FilteringFunction,
    HyperparameterSearch,
    ImproveRequest,
    LoggerConfig,
    PostTrainingSFTRequest,
    RewardScoringConfig,
    SyntheticDataGenerationRequest,
    SyntheticDataJobRequest,
    SyntheticDataset,
)
from .plan import Evaluate, Generate, Train

SEEDS = (1 << 32) - 1


def seed_of(seed: int | None, *what: object) -> int | None:
    """Return the seed of a part of something, if that has a seed."""
    if seed is None:
        return None
    text = "\n".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % SEEDS


def generation_request(request: ImproveRequest, step: Generate) -> SyntheticDataJobRequest:
    """Return the request for the data of a round."""
    how, prompts = request.generation, request.training_prompts
    return SyntheticDataJobRequest(
        step.job,
        SyntheticDataGenerationRequest(
            prompts=prompts.prompts,
            references=prompts.references,
            model=step.model,
            context=request.context,
            help=request.help if step.helped else [],
            num_candidates=how.num_candidates,
            temperature=how.temperature,
            max_tokens=how.max_tokens,
            reward_scoring=request.reward_scoring,
            filtering_function=how.filtering_function,
            k=how.k,
            p=how.p,
            max_similarity=how.max_similarity,
            seed=seed_of(request.seed, "data", step.round),
        ),
        SyntheticDataset(step.dataset, "sft"),
    )


def evaluation_request(request: ImproveRequest, step: Evaluate) -> SyntheticDataJobRequest:
    """Return the request for the answers to the held-out prompts: all of them count, whatever their score.

    The seed, where there is one, is the same for all models: what they differ by is not their luck.
    """
    how, prompts = request.evaluation, request.held_out_prompts
    return SyntheticDataJobRequest(
        step.job,
        SyntheticDataGenerationRequest(
            prompts=prompts.prompts,
            references=prompts.references,
            model=step.model,
            context=request.context,
            help=request.help if step.helped else [],
            num_candidates=how.num_candidates,
            temperature=how.temperature or None,
            max_tokens=how.max_tokens,
            reward_scoring=RewardScoringConfig(request.reward_scoring.model),
            filtering_function=FilteringFunction.none,
            seed=seed_of(request.seed, "evaluation"),
        ),
    )


def training_request(
    request: ImproveRequest, step: Train, dataset: Dataset
) -> PostTrainingSFTRequest:
    """Return the request for the training of a round: of the base, as in STaR, so that errors do not add up.

    What is accepted may be little, and all of it is for learning: the validation loss is that on the data itself. What a
    round is judged by are the held-out prompts.
    """
    how = request.training
    return PostTrainingSFTRequest(
        job_uuid=step.job,
        model=request.model,
        dataset=dataset,
        validation_dataset=dataset,
        algorithm=how.algorithm,
        algorithm_config=how.algorithm_config,
        optimizer_config=how.optimizer_config,
        training_config=how.training_config,
        hyperparam_search_config=HyperparameterSearch(),
        logger_config=LoggerConfig(),
    )
