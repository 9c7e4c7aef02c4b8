"""The PostTraining API: what is told of jobs, and how they are followed and ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Protocol

from msgspec import Meta

from .content import URL
from .datasets import Fingerprint
from .webmethod import webmethod
from .wire import Reply

JobKind = Literal["sft", "dpo", "reward", "synthetic_data", "improvement"]
"""What a job does: training, and as an extension the other work that takes long."""


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
    kind: Annotated[
        Literal["adapter", "model"],
        Meta(description="Extension: an adapter (LoRA, QLoRA, DoRA), or whole weights."),
    ] = "adapter"
    validation_loss: float | None = None


class JobFailure(Reply, frozen=True):
    """Extension: why a job failed; the code ``cancelled`` marks a cancelled one, ``pruned`` a trial that was given up."""

    code: str
    message: str
    log_tail: list[str] = []


class JobMetrics(Reply, frozen=True):
    """Extension: the figures of one iteration, or of a validation after it."""

    iteration: int
    total: Annotated[int, Meta(description="Iterations of the whole job.")]
    epoch: float = 0.0
    loss: float | None = None
    learning_rate: float | None = None
    gradient_norm: float | None = None
    validation_loss: float | None = None
    tokens: Annotated[int, Meta(description="Tokens that were trained on so far.")] = 0
    tokens_per_second: float | None = None
    memory_bytes: Annotated[
        int, Meta(description="What the processes take, on the device or host.")
    ] = 0
    other: Annotated[
        dict[str, float],
        Meta(description="What only some trainers tell, such as `rewards/margins`."),
    ] = {}


class JobProgress(Reply, frozen=True):
    """Extension: how far a job is that does not train."""

    done: int
    total: int
    unit: Annotated[str, Meta(description="What is counted, in the plural.")]
    figures: Annotated[dict[str, float], Meta(description="What else is known so far.")] = {}


class JobEventKind(StrEnum):
    """What an event tells."""

    log = "log"
    metrics = "metrics"
    progress = "progress"
    checkpoint = "checkpoint"
    status = "status"


class JobEvent(Reply, frozen=True):
    """Extension: something that happened in a job.

    ``index`` grows with each event (not by one); what comes after an attempt that died begins again at its last checkpoint,
    with a higher ``attempt``.
    """

    index: int
    at: datetime
    attempt: int
    kind: JobEventKind
    lines: Annotated[list[str], Meta(description="The event as lines of the log.")] = []
    metrics: JobMetrics | None = None
    checkpoint: Checkpoint | None = None
    status: PostTrainingJobStatus | None = None
    phase: Annotated[str | None, Meta(description="What a running job does now.")] = None
    trial: Annotated[
        str | None,
        Meta(description="The job of a trial that begins or ends, or of a stage that begins."),
    ] = None
    progress: JobProgress | None = None


class JobTrial(Reply, frozen=True):
    """Extension: a trial of a hyperparameter search."""

    job_uuid: str
    parameters: dict[str, bool | int | float | str]
    status: PostTrainingJobStatus
    validation_loss: float | None = None
    best: bool = False


class PostTrainingJobStatusResponse(Reply, frozen=True):
    """Status of a finetuning job. What stands behind the draft's fields is an extension."""

    job_uuid: str
    status: PostTrainingJobStatus
    scheduled_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    resources_allocated: dict[str, Any] | None = None
    checkpoints: list[Checkpoint] = []
    kind: JobKind = "sft"
    model: Annotated[str, Meta(description="What is trained.")] = ""
    algorithm: str = ""
    phase: Annotated[str | None, Meta(description="What a running job does now.")] = None
    position: Annotated[
        int | None, Meta(description="How many jobs are before a scheduled one.")
    ] = None
    attempt: Annotated[int, Meta(description="How often the job was begun, or taken up again.")] = 0
    metrics: Annotated[JobMetrics | None, Meta(description="The last ones.")] = None
    dataset_fingerprint: Fingerprint | None = None
    validation_fingerprint: Fingerprint | None = None
    progress: Annotated[JobProgress | None, Meta(description="Of jobs that do not train.")] = None
    trials: list[JobTrial] = []
    failure: JobFailure | None = None


class JobFile(Reply, frozen=True):
    """Extension: a file that a job produced."""

    name: str
    path: URL
    bytes: int
    sha256: str = ""


class PostTrainingJobArtifactsResponse(Reply, frozen=True):
    """Artifacts of a finetuning job. What stands behind the draft's fields is an extension."""

    job_uuid: str
    checkpoints: list[Checkpoint] = []
    files: Annotated[list[JobFile], Meta(description="The files of the checkpoints.")] = []
    tensorboard: Annotated[URL | None, Meta(description="The folder of TensorBoard files.")] = None
    metrics: Annotated[JobMetrics | None, Meta(description="The last ones.")] = None


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
        """Follow the log of a job from its beginning to its end."""
        ...

    @webmethod(
        route="/post_training/job/events",
        method="GET",
        api="PostTraining",
        sse=True,
        timeout=86_400,
    )
    def events(self, job_uuid: str, after: int = 0, follow: bool = True) -> AsyncIterator[JobEvent]:
        """Follow the events of a job from its beginning, or after an index, to its end; or only those that are there."""
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

    @webmethod(route="/post_training/job/list", method="GET", api="PostTraining")
    def list(self, limit: int = 100) -> AsyncIterator[PostTrainingJobStatusResponse]:
        """List jobs: those that run or wait, in the order of the queue, then those that ended, the latest first."""
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
