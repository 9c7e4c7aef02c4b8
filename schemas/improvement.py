"""The closed loop (extension): a model learns from its own answers, as far as a reward model approves of them.

Rounds of rejection sampling and fine-tuning: STaR (Zelikman et al. 2022, https://arxiv.org/abs/2203.14465) with any reward
model as its judge.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from msgspec import Meta

from .content import MaxTokens, Message, ModelName
from .post_training import (
    FinetuningAlgorithm,
    JobId,
    LoraFinetuningConfig,
    OptimizerConfig,
    TrainingConfig,
)
from .rewards import Reference
from .synthetic_data import FilteringFunction, RewardScoringConfig, SyntheticDataStatistics
from .training_jobs import JobFailure, PostTrainingJobStatus
from .webmethod import webmethod
from .wire import Reply, Wire

PositiveNumber = Annotated[float, Meta(gt=0)]


class PromptSet(Wire, frozen=True):
    """Prompts, and for each of them what its answers are compared with, if the reward model needs that."""

    prompts: Annotated[list[Message], Meta(min_length=1)]
    references: list[Reference] = []


class ImprovementGeneration(Wire, frozen=True):
    """How candidates are generated and filtered; the fields are those of `SyntheticDataGenerationRequest`."""

    num_candidates: Annotated[int, Meta(ge=1, le=64)] = 4
    temperature: PositiveNumber = 0.8
    max_tokens: MaxTokens = 256
    filtering_function: FilteringFunction = FilteringFunction.top_k
    k: Annotated[int, Meta(ge=1)] | None = 1
    p: Annotated[float, Meta(gt=0, le=1)] | None = None
    max_similarity: Annotated[float, Meta(gt=0, le=1)] | None = 1.0


class ImprovementEvaluation(Wire, frozen=True):
    """How the held-out prompts are answered; the mean score of the answers is what counts."""

    num_candidates: Annotated[int, Meta(ge=1, le=64, description="Answers to each prompt.")] = 1
    temperature: Annotated[
        float, Meta(ge=0, description="0 takes the likeliest answer, of which there is one.")
    ] = 0.0
    max_tokens: MaxTokens = 256


class ImprovementTraining(Wire, frozen=True):
    """How a round trains: the sections of `PostTrainingSFTRequest`."""

    algorithm: FinetuningAlgorithm
    algorithm_config: LoraFinetuningConfig
    optimizer_config: OptimizerConfig
    training_config: TrainingConfig


class ImproveRequest(Wire, frozen=True):
    """Request to improve a model in rounds.

    Each round: answers to the training prompts by the best model so far (with ``help``, while that is the base), scored and
    filtered; supervised fine-tuning of the base on what was accepted; the result registered as ``name``; its answers to the
    held-out prompts scored. Where their mean score is not above that of the best model so far by more than ``min_gain``, the
    registered model is rolled back.
    """

    job_uuid: JobId
    model: Annotated[ModelName, Meta(description="The base, which is served and can be trained.")]
    name: Annotated[ModelName, Meta(description="What the improved model is registered as.")]
    training_prompts: PromptSet
    held_out_prompts: PromptSet
    reward_scoring: RewardScoringConfig
    training: ImprovementTraining
    generation: ImprovementGeneration = ImprovementGeneration()
    evaluation: ImprovementEvaluation = ImprovementEvaluation()
    context: Annotated[
        list[Message],
        Meta(description="What stands before each prompt, in data and evaluation too."),
    ] = []
    help: Annotated[
        list[Message],
        Meta(
            description="What stands before each prompt while the base generates, in place of `context`."
        ),
    ] = []
    rounds: Annotated[int, Meta(ge=1, le=100)] = 1
    min_gain: Annotated[float, Meta(ge=0)] = 0.0
    seed: (
        Annotated[
            int,
            Meta(
                ge=0,
                lt=1 << 31,
                description="Makes answers repeatable, as far as the engine does; without, prompts are cached, which is faster.",
            ),
        ]
        | None
    ) = None


class Evaluation(Reply, frozen=True):
    """The scores of a model's answers to the held-out prompts."""

    model: str
    job_uuid: Annotated[str, Meta(description="The job that made and scored the answers.")]
    mean: float
    low: Annotated[float, Meta(description="The lower bound of the mean's 95 % interval.")]
    high: float
    interval: Annotated[
        Literal["wilson", "bootstrap"],
        Meta(
            description="Wilson's score interval where all scores are 0 or 1 and each prompt has one answer; else the "
            "percentile bootstrap over prompts."
        ),
    ]
    answers: Annotated[int, Meta(description="How many answers were scored.")]
    scores: Annotated[
        list[float | None], Meta(description="The mean score of each prompt; null has none.")
    ] = []


class LossPoint(Reply, frozen=True):
    """The losses after an iteration."""

    iteration: int
    loss: float | None = None
    validation_loss: float | None = None


class ImprovementRound(Reply, frozen=True):
    """What a round did; what is absent did not happen yet."""

    number: int
    generator: Annotated[str, Meta(description="The model that generated.")]
    data_job: str
    statistics: SyntheticDataStatistics | None = None
    training_job: str | None = None
    losses: list[LossPoint] = []
    version: Annotated[int | None, Meta(description="Of the registered model.")] = None
    evaluation: Evaluation | None = None
    gain: Annotated[
        float | None, Meta(description="The mean score above that of the best model before.")
    ] = None
    kept: bool | None = None
    note: Annotated[str, Meta(description="Why a round ended early, or was not kept.")] = ""
    seconds: Annotated[dict[str, float], Meta(description="What each stage took.")] = {}


class ImprovementReport(Reply, frozen=True):
    """What a loop did so far."""

    job_uuid: str
    status: PostTrainingJobStatus
    model: str
    name: str
    reward_model: str
    rounds: list[ImprovementRound] = []
    baseline: Evaluation | None = None
    helped: Annotated[
        Evaluation | None, Meta(description="The base with `help`, where there is any.")
    ] = None
    best: Annotated[str | None, Meta(description="The best model so far.")] = None
    best_evaluation: Evaluation | None = None
    failure: JobFailure | None = None


class Improvement(Protocol):
    """Improve a model by its own answers; a loop is followed and ended as all jobs, by `PostTrainingJobs`."""

    @webmethod(route="/improvement/start")
    async def start(self, request: ImproveRequest) -> None:
        """Start a loop; the same request again is the same loop."""
        ...

    @webmethod(route="/improvement/report", method="GET")
    async def report(self, job_uuid: str) -> ImprovementReport:
        """Tell what a loop did so far, and what each round changed."""
        ...
