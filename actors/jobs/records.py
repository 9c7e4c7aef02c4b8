"""What jobs store on the bus, and where.

KV jobs                          a job: where it stands, what it made (`JobRecord`)
objects job_requests             what was asked for, as it came
ayllu.v1.queue.<queue>.<job>     jobs that have not ended, in the order in which they came
ayllu.v1.job.<job>.event         what happened in a job (`JobEvent`)
ayllu.v1.signal.job.<job>        that there is something to look at; live, not stored
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from ...bus.durable import StreamSpec
from ...bus.subjects import ROOT, decode_token, encode_token
from ...schemas import (
    Checkpoint,
    ImproveRequest,
    JobFailure,
    JobKind,
    JobMetrics,
    JobProgress,
    PostTrainingJobStatus,
    PostTrainingRewardRequest,
    PostTrainingRLHFRequest,
    PostTrainingSFTRequest,
    SyntheticDataJobRequest,
)

DAY = 86_400.0
JOB_BUCKET = "jobs"
REQUEST_BUCKET = "job_requests"
LEASE_BUCKET = "job_leases"

Queue = Literal["job", "data", "loop"]
"""Who runs a job: trainers, generators of data, loops."""
QUEUES: tuple[Queue, ...] = get_args(Queue)
QUEUE_OF: Mapping[JobKind, Queue] = {
    "sft": "job",
    "dpo": "job",
    "reward": "job",
    "synthetic_data": "data",
    "improvement": "loop",
}


def queue_stream(queue: Queue) -> StreamSpec:
    """Return the stream of a queue."""
    return StreamSpec(
        name=f"{queue.upper()}_QUEUE",
        subjects=(f"{ROOT}.queue.{queue}.*",),
        max_bytes=64 << 20,
        # A full queue refuses new jobs: none that was accepted may be lost.
        discard="new",
    )


JOB_EVENTS = StreamSpec(
    name="JOB_EVENTS", subjects=(f"{ROOT}.job.*.event",), max_bytes=4 << 30, max_age=90 * DAY
)
SIGNALS = f"{ROOT}.signal.job.*"

TrainingRequest = PostTrainingSFTRequest | PostTrainingRLHFRequest | PostTrainingRewardRequest
JobRequest = TrainingRequest | SyntheticDataJobRequest | ImproveRequest
ParameterValue = bool | int | float | str
FINAL = frozenset((PostTrainingJobStatus.completed, PostTrainingJobStatus.failed))


def queue_subject(queue: Queue, job: str) -> str:
    """Return where a job waits until it has ended."""
    return f"{ROOT}.queue.{queue}.{encode_token(job)}"


def job_of_queue(subject: str) -> str:
    """Return the job that waits on a subject.

    Raises:
        ValueError: none does.
    """
    return decode_token(subject.rpartition(".")[2])


def event_subject(job: str) -> str:
    """Return where the events of a job stand."""
    return f"{ROOT}.job.{encode_token(job)}.event"


def signal_subject(job: str) -> str:
    """Return where runners hear that there is something to look at; live, not stored."""
    return f"{ROOT}.signal.job.{encode_token(job)}"


class Trial(msgspec.Struct, frozen=True):
    """A trial of a hyperparameter search: its job, and what it tries."""

    job: str
    parameters: dict[str, ParameterValue]


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job, as it is kept. Only the runner of the current attempt changes it while it runs, but for ``cancel``.

    Attributes:
        job: its id.
        kind: what it does.
        digest: of its request, which tells whether another one of the same id is the same.
        model: what is trained, or generates.
        algorithm: how it is trained.
        reward_model: what scores its answers, if it generates data.
        status: where it stands.
        phase: what it does now.
        scheduled_at: when it was accepted, in seconds since the epoch.
        started_at: when its first attempt began.
        completed_at: when it ended.
        owner: whose attempt the current one is; nobody else's counts.
        attempt: how often it was begun or taken up.
        crashes: how many attempts in a row ended without a word, and made no checkpoint.
        cancel: whether it shall end.
        resources: what it runs on.
        checkpoints: those that are there, the oldest first.
        metrics: the last ones.
        progress: how far it is, if it does not train.
        validation_loss: the lowest one so far.
        dataset: the fingerprint of what it is trained on, once that is known.
        validation: the fingerprint of what it is validated with.
        parent: the search whose trial it is.
        trials: of a search, those that have begun.
        best: of a search, the job of its best trial so far.
        stage: of a loop, the job that it waits for.
        failure: why it failed.
    """

    job: str
    kind: JobKind
    digest: str
    model: str
    algorithm: str = ""
    reward_model: str | None = None
    status: PostTrainingJobStatus = PostTrainingJobStatus.scheduled
    phase: str | None = None
    scheduled_at: float
    started_at: float | None = None
    completed_at: float | None = None
    owner: str = ""
    attempt: int = 0
    crashes: int = 0
    cancel: bool = False
    resources: dict[str, str | int | float] = {}
    checkpoints: list[Checkpoint] = []
    metrics: JobMetrics | None = None
    progress: JobProgress | None = None
    validation_loss: float | None = None
    dataset: str | None = None
    validation: str | None = None
    parent: str | None = None
    trials: list[Trial] = []
    best: str | None = None
    stage: str | None = None
    failure: JobFailure | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in FINAL

    @property
    def queue(self) -> Queue:
        """Where it waits until it has ended."""
        return QUEUE_OF[self.kind]
