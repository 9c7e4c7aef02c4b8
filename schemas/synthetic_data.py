"""The SyntheticDataGeneration API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol

from msgspec import Meta

from .content import MaxTokens, Message, ModelName
from .post_training import JobId
from .rewards import KScoredPromptGenerations, Reference
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
    """Request to generate synthetic data. A small batch of prompts and a filtering function.

    Each prompt gets ``num_candidates`` answers; they are scored, what is below the threshold and what was said before is left
    out, and the filter chooses among what remains. With ``target``, this is done again and again, until so many are accepted.
    """

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
        Annotated[
            int,
            Meta(ge=1, description="Extension: how many `top_k`, `top_k_top_p`, `random` keep."),
        ]
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
    max_tokens: Annotated[
        MaxTokens, Meta(description="Extension: the most tokens of a candidate; 0 is no limit.")
    ] = 0
    context: Annotated[
        list[Message],
        Meta(
            description="Extension: what stands before each prompt, such as a system message: in generation, scoring and data."
        ),
    ] = []
    help: Annotated[
        list[Message],
        Meta(
            description="Extension: what stands before each prompt in generation only, in place of `context`: instructions "
            "and examples that the data shall teach to do without."
        ),
    ] = []
    references: Annotated[
        list[Reference],
        Meta(
            description="Extension: for each prompt, what its reward model compares answers with."
        ),
    ] = []
    max_similarity: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=1,
                description="Extension: a candidate as similar as that to an earlier one of its prompt is a duplicate "
                "and left out: 1 leaves out equal ones, less also those that nearly are; null keeps all.",
            ),
        ]
        | None
    ) = None
    target: (
        Annotated[int, Meta(ge=1, description="Extension: go on until so many are accepted.")]
        | None
    ) = None
    max_candidates: (
        Annotated[
            int,
            Meta(ge=1, description="Extension: with `target`, the most candidates to generate."),
        ]
        | None
    ) = None


class SyntheticDataGenerationResponse(Reply, frozen=True):
    """Response from the synthetic data generation. Batch of (prompt, response, score) tuples that pass the threshold."""

    synthetic_data: list[KScoredPromptGenerations]
    statistics: Annotated[
        dict[str, Any] | None, Meta(description="The fields of `SyntheticDataStatistics`.")
    ] = None


class ScoreDistribution(Reply, frozen=True):
    """Extension: how scores are distributed; without any score, all but the count is absent."""

    count: int
    mean: float | None = None
    deviation: Annotated[
        float | None, Meta(description="The standard deviation, of the whole population.")
    ] = None
    quantiles: Annotated[
        list[float], Meta(description="The least, the three quartiles, the largest.")
    ] = []
    edges: Annotated[list[float], Meta(description="The bounds of the histogram's bins.")] = []
    counts: Annotated[list[int], Meta(description="How many scores are in each bin.")] = []


class PromptStatistics(Reply, frozen=True):
    """Extension: what became of the candidates of one prompt."""

    index: int
    candidates: int
    accepted: int
    best: float | None = None


class SyntheticDataStatistics(Reply, frozen=True):
    """Extension: what became of all candidates. Each is in exactly one of the counts below ``candidates``."""

    prompts: int
    candidates: int
    failed: Annotated[int, Meta(description="Could not be generated.")] = 0
    unscored: Annotated[int, Meta(description="Could not be scored.")] = 0
    below_threshold: int = 0
    duplicates: int = 0
    filtered_out: int = 0
    accepted: int = 0
    surplus: Annotated[int, Meta(description="Would be accepted, beyond the target.")] = 0
    before: ScoreDistribution = ScoreDistribution(0)
    after: ScoreDistribution = ScoreDistribution(0)
    per_prompt: list[PromptStatistics] = []
    errors: Annotated[
        dict[str, int], Meta(description="How often candidates failed, by the error's code.")
    ] = {}
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: Annotated[float, Meta(description="From the first to the last candidate.")] = 0.0


class SyntheticDataset(Wire, frozen=True):
    """What a dataset is made of that a job writes."""

    uuid: Annotated[str, Meta(min_length=1, description="The id it is kept under.")]
    form: Annotated[
        Literal["sft", "preference"],
        Meta(
            description="`sft`: a dialog of each accepted answer. `preference`: for each prompt, its best and its worst "
            "scored answer, where their scores differ."
        ),
    ] = "sft"


class SyntheticDataJobRequest(Wire, frozen=True):
    """Extension: request to generate synthetic data in a job."""

    job_uuid: JobId
    request: SyntheticDataGenerationRequest
    dataset: Annotated[
        SyntheticDataset | None, Meta(description="The dataset to be written at the end.")
    ] = None


class SyntheticDataGeneration(Protocol):
    """Generate, score and filter training data."""

    @webmethod(
        route="/synthetic_data_generation/generate", operation_id="post_generate", timeout=86_400
    )
    async def generate(
        self, request: SyntheticDataGenerationRequest
    ) -> SyntheticDataGenerationResponse:
        """Generate answers to prompts and keep the good ones."""
        ...


class SyntheticDataJobs(Protocol):
    """Extension: generate in jobs, which outlive processes; they are followed and ended as all jobs, by `PostTrainingJobs`."""

    @webmethod(route="/synthetic_data_generation/job/start", api="SyntheticDataGeneration")
    async def start(self, request: SyntheticDataJobRequest) -> None:
        """Start a job; the same request again is the same job."""
        ...

    @webmethod(
        route="/synthetic_data_generation/job/results",
        method="GET",
        api="SyntheticDataGeneration",
    )
    def results(self, job_uuid: str) -> AsyncIterator[KScoredPromptGenerations]:
        """List the prompts of a job with what is accepted: all of it at its end, what there is before."""
        ...

    @webmethod(
        route="/synthetic_data_generation/job/statistics",
        method="GET",
        api="SyntheticDataGeneration",
    )
    async def statistics(self, job_uuid: str) -> SyntheticDataStatistics:
        """Count what became of the candidates of a job so far."""
        ...
