"""The PostTraining API: fine-tuning jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .content import URL, ModelName
from .datasets import Dataset
from .webmethod import webmethod
from .wire import Reply, Wire


class OptimizerType(StrEnum):
    """The optimizers."""

    adam = "adam"
    adamw = "adamw"
    sgd = "sgd"


class OptimizerConfig(Wire, frozen=True):
    """The optimizer and its learning rate, which falls from ``lr`` to ``lr_min``."""

    optimizer_type: OptimizerType
    lr: float
    lr_min: float
    weight_decay: float


class TrainingConfig(Wire, frozen=True):
    """How long and how to train."""

    n_epochs: int
    batch_size: int
    shuffle: bool
    n_iters: int
    enable_activation_checkpointing: bool
    memory_efficient_fsdp_wrap: bool
    fsdp_cpu_offload: bool


class FinetuningAlgorithm(StrEnum):
    """The ways to fine-tune."""

    full = "full"
    lora = "lora"
    qlora = "qlora"
    dora = "dora"


class LoraFinetuningConfig(Wire, frozen=True):
    """Which modules get adapters, and of what rank."""

    lora_attn_modules: list[str]
    apply_lora_to_mlp: bool
    apply_lora_to_output: bool
    rank: int
    alpha: int


class QLoraFinetuningConfig(LoraFinetuningConfig, frozen=True):
    """As LoraFinetuningConfig, over a base model in 4 bits."""


class DoraFinetuningConfig(LoraFinetuningConfig, frozen=True):
    """As LoraFinetuningConfig, with weight decomposition."""


class PostTrainingJobLogStream(Reply, frozen=True):
    """Lines of a job's log."""

    job_uuid: str
    log_lines: list[str]


class PostTrainingJobStatus(StrEnum):
    """Where a job stands."""

    running = "running"
    completed = "completed"
    failed = "failed"
    scheduled = "scheduled"


class Checkpoint(Reply, frozen=True):
    """A state of the model that a job wrote."""

    iters: int
    path: URL


class RLHFAlgorithm(StrEnum):
    """The ways of preference optimisation."""

    dpo = "dpo"


class DPOAlignmentConfig(Wire, frozen=True):
    """The parameters of direct preference optimisation."""

    reward_scale: float
    reward_clip: float
    epsilon: float
    gamma: float


class PostTrainingSFTRequest(Wire, frozen=True):
    """Request to finetune a model."""

    job_uuid: str
    model: ModelName
    dataset: Dataset
    validation_dataset: Dataset
    algorithm: FinetuningAlgorithm
    # The draft's union of three types with the same fields; ``algorithm`` says which one is meant.
    algorithm_config: Annotated[
        LoraFinetuningConfig,
        Meta(description="A LoRA, QLoRA or DoRA configuration, as `algorithm` says."),
    ]
    optimizer_config: OptimizerConfig
    training_config: TrainingConfig
    hyperparam_search_config: dict[str, Any]
    logger_config: dict[str, Any]


class PostTrainingRLHFRequest(Wire, frozen=True):
    """Request to finetune a model."""

    job_uuid: str
    finetuned_model: URL
    dataset: Dataset
    validation_dataset: Dataset
    algorithm: RLHFAlgorithm
    algorithm_config: DPOAlignmentConfig
    optimizer_config: OptimizerConfig
    training_config: TrainingConfig
    hyperparam_search_config: dict[str, Any]
    logger_config: dict[str, Any]


class JobFailure(Reply, frozen=True):
    """Extension: why a job failed; the code ``cancelled`` marks a cancelled one."""

    code: str
    message: str


class PostTrainingJobStatusResponse(Reply, frozen=True):
    """Status of a finetuning job."""

    job_uuid: str
    status: PostTrainingJobStatus
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    resources_allocated: dict[str, Any] | None = None
    checkpoints: list[Checkpoint] = []
    failure: JobFailure | None = None


class PostTrainingJobArtifactsResponse(Reply, frozen=True):
    """Artifacts of a finetuning job."""

    job_uuid: str
    checkpoints: list[Checkpoint] = []


class PostTraining(Protocol):
    """Start fine-tuning jobs."""

    @webmethod(
        route="/post_training/supervised_fine_tune/", operation_id="post_supervised_fine_tune"
    )
    async def supervised_fine_tune(self, request: PostTrainingSFTRequest) -> None:
        """Start a job of supervised fine-tuning."""
        ...

    @webmethod(route="/post_training/preference_optimize/", operation_id="post_preference_optimize")
    async def preference_optimize(self, request: PostTrainingRLHFRequest) -> None:
        """Start a job of preference optimisation."""
        ...


class PostTrainingJobs(Protocol):
    """Follow and steer fine-tuning jobs: the draft's PostTraining API, where names begin with ``post_training.job``."""

    @webmethod(
        route="/post_training/job/logs",
        method="GET",
        operation_id="get_training_log_stream",
        api="PostTraining",
        sse=True,
        timeout=86_400,
    )
    def logs(self, job_uuid: str) -> AsyncIterator[PostTrainingJobLogStream]:
        """Follow the log of a job from its beginning."""
        ...

    @webmethod(
        route="/post_training/job/status",
        method="GET",
        operation_id="get_training_job_status",
        api="PostTraining",
    )
    async def status(self, job_uuid: str) -> PostTrainingJobStatusResponse:
        """Tell where a job stands."""
        ...

    @webmethod(
        route="/post_training/job/cancel",
        operation_id="cancel_training_job",
        api="PostTraining",
    )
    async def cancel(self, job_uuid: str) -> None:
        """Stop a job; its last whole checkpoint is kept."""
        ...

    @webmethod(
        route="/post_training/job/artifacts",
        method="GET",
        operation_id="get_training_job_artifacts",
        api="PostTraining",
    )
    async def artifacts(self, job_uuid: str) -> PostTrainingJobArtifactsResponse:
        """List what a job produced."""
        ...
