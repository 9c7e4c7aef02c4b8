"""Loops whose stages are played by doubles: what is tested is the loop, not what models learn.

The doubles are real jobs on the bus, which end at once; what their models score, and how much is accepted, a `Script` says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
from msgspec.structs import replace
from support.jobs import dataset_of

from ayllu.actors.improvement.actor import ImprovementActor
from ayllu.actors.improvement.loop import loop_runner
from ayllu.actors.improvement.records import open_loop_records
from ayllu.actors.jobs.holding import CANCELLED, Hold
from ayllu.actors.jobs.jobs import Jobs, open_jobs
from ayllu.actors.jobs.records import JobRecord
from ayllu.actors.jobs.runner import Runner
from ayllu.actors.training.actor import PostTrainingJobsActor
from ayllu.actors.training.settings import TrainingSettings
from ayllu.bus.bus import Bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    CreateDatasetRequest,
    Dataset,
    DatasetInfo,
    Datasets,
    FinetuningAlgorithm,
    Improvement,
    ImprovementReport,
    ImprovementTraining,
    ImproveRequest,
    JobEvent,
    JobEventKind,
    JobFailure,
    JobMetrics,
    KScoredPromptGenerations,
    LoraFinetuningConfig,
    Message,
    ModelRegistry,
    ModelVersion,
    NotFound,
    OptimizerConfig,
    OptimizerType,
    PostTraining,
    PostTrainingJobs,
    PostTrainingRewardRequest,
    PostTrainingRLHFRequest,
    PostTrainingSFTRequest,
    PromptSet,
    RegisteredModel,
    RegisterModelRequest,
    RewardScoringConfig,
    Role,
    ScoreDistribution,
    ScoredMessage,
    SyntheticDataJobRequest,
    SyntheticDataJobs,
    SyntheticDataStatistics,
    TrainingConfig,
)
from ayllu.schemas.tasks import background_tasks

BASE, NAME = "tiny", "better"
HELD_OUT = 10
ITERATIONS = 3


@dataclass
class Gate:
    """Where a job waits until it is opened, or cancelled, unless it is deaf to that."""

    reached: anyio.Event = field(default_factory=anyio.Event)
    opened: anyio.Event = field(default_factory=anyio.Event)
    deaf: bool = False


@dataclass
class Script:
    """What the doubles do.

    Attributes:
        base: the share of right answers of the base.
        helped: the same, with help.
        rounds: that of what each round trains; the last one holds for all after it.
        accepted: how many answers are accepted in each round; the last one holds for all after it.
        failures: the jobs that fail.
        gates: the jobs that wait.
        silent: the evaluations whose answers have no score.
    """

    base: float = 0.2
    helped: float = 0.6
    rounds: tuple[float, ...] = (0.4, 0.5)
    accepted: tuple[int, ...] = (8,)
    failures: dict[str, JobFailure] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    silent: tuple[str, ...] = ()


def messages(*texts: str) -> list[Message]:
    return [Message(Role.user, text) for text in texts]


def improve_request(job: str = "loop", **changes: Any) -> ImproveRequest:
    """Return the request for a loop of two rounds."""
    request = ImproveRequest(
        job_uuid=job,
        model=BASE,
        name=NAME,
        training_prompts=PromptSet(messages("1 + 1?", "1 + 2?"), ["2", "3"]),
        held_out_prompts=PromptSet(messages(*(f"{n} + 3?" for n in range(HELD_OUT)))),
        reward_scoring=RewardScoringConfig("sums", 0.5),
        training=ImprovementTraining(
            FinetuningAlgorithm.lora,
            LoraFinetuningConfig(["q_proj"], False, False, 4, 8),
            OptimizerConfig(OptimizerType.adamw, 1e-3, 0.0, 0.0),
            TrainingConfig(1, 2, True, 0, False, False, False),
        ),
        rounds=2,
    )
    return replace(request, **changes)


class DoubleRun:
    """A double of whatever runs a stage: it ends at once, as the script says, and tells some losses if it trains."""

    def __init__(self, stages: DoubleStages, job: str) -> None:
        self._stages = stages
        self._job = job
        self._hold = Hold(stages.jobs, job, None, 3)
        self._look = anyio.Event()

    def look(self) -> None:
        self._look.set()

    async def run(self) -> JobRecord:
        record = await self._hold.claim()
        if record.ended:
            return record
        gate = self._stages.script.gates.get(self._job)
        while gate is not None and not gate.opened.is_set():
            gate.reached.set()
            if not gate.deaf and await self._hold.shall_end():
                return await self._hold.conclude(JobFailure(CANCELLED, "it was cancelled"))
            async with background_tasks() as tasks:
                tasks.start_soon(self._open, gate)
                await self._look.wait()
            self._look = anyio.Event()
        if record.kind == "sft":
            await self._train()
        else:
            await self._stages.answer(record)
        return await self._hold.conclude(self._stages.script.failures.get(self._job))

    async def _open(self, gate: Gate) -> None:
        await gate.opened.wait()
        self._look.set()

    async def _train(self) -> None:
        for iteration in range(1, ITERATIONS):
            metrics = JobMetrics(iteration, ITERATIONS, loss=1 / iteration)
            await self._hold.tell(JobEventKind.metrics, metrics=metrics)
        last = JobMetrics(ITERATIONS, ITERATIONS, loss=1 / ITERATIONS, validation_loss=0.25)
        await self._hold.tell(JobEventKind.metrics, metrics=last)
        await self._hold.change(lambda known: replace(known, metrics=last))


class DoubleStages:
    """What the doubles share.

    Attributes:
        jobs: the jobs.
        script: what they do.
        versions: the registered versions.
        current: the number of the one that is served.
        registered: the jobs that were registered, in their order.
        scores: what the answers of each evaluation scored.
        asked: what each data job was asked.
    """

    def __init__(self, jobs: Jobs, script: Script, *, keep: int = 5) -> None:
        self.jobs = jobs
        self.script = script
        self.keep = keep
        self.versions: list[ModelVersion] = []
        self.current = 0
        self.registered: list[str | None] = []
        self.scores: dict[str, list[float]] = {}
        self.asked: dict[str, SyntheticDataJobRequest] = {}

    @property
    def served(self) -> str | None:
        """The job whose result is served."""
        found = (one for one in self.versions if one.version == self.current)
        return next((one.job_uuid for one in found), None)

    async def answer(self, record: JobRecord) -> None:
        """Answer the prompts of a job."""
        asked = await self.jobs.request(record, SyntheticDataJobRequest)
        self.asked[record.job] = asked
        if asked.dataset is None:
            right = round(self._share(asked) * len(asked.request.prompts))
            wrong = len(asked.request.prompts) - right
            scores = [1.0] * right + [0.0] * wrong
            self.scores[record.job] = scores if record.job not in self.script.silent else []

    def _share(self, asked: SyntheticDataJobRequest) -> float:
        script = self.script
        if asked.request.model == BASE:
            return script.helped if asked.request.help else script.base
        assert self.served is not None
        number = _round_of(self.served)
        return script.rounds[min(number, len(script.rounds)) - 1]

    def accepted(self, job: str) -> int:
        accepted = self.script.accepted
        return accepted[min(_round_of(job), len(accepted)) - 1]


def _round_of(job: str) -> int:
    return int(job.rpartition("round-")[2].partition("/")[0])


class DoubleData(SyntheticDataJobs):
    """A double of the synthetic data actor."""

    def __init__(self, stages: DoubleStages) -> None:
        self._stages = stages

    async def start(self, request: SyntheticDataJobRequest) -> None:
        record = JobRecord(
            job=request.job_uuid,
            kind="synthetic_data",
            digest="",
            model=request.request.model or "",
            scheduled_at=0.0,
        )
        await self._stages.jobs.submit(request, record)

    async def results(self, job_uuid: str) -> AsyncIterator[KScoredPromptGenerations]:
        for index, score in enumerate(self._stages.scores[job_uuid]):
            answer = ScoredMessage(Message(Role.assistant, "3"), score)
            yield KScoredPromptGenerations(Message(Role.user, "?"), [answer], index)

    async def statistics(self, job_uuid: str) -> SyntheticDataStatistics:
        accepted = self._stages.accepted(job_uuid)
        spread = ScoreDistribution(8, 0.5, 0.1, [0.0, 0.2, 0.5, 0.7, 1.0], [0.0, 0.5, 1.0], [3, 5])
        return SyntheticDataStatistics(
            2, 8, below_threshold=8 - accepted, accepted=accepted, before=spread, after=spread
        )


class DoubleDatasets(Datasets):
    """A double of the datasets actor: it knows those of loops."""

    async def create(self, request: CreateDatasetRequest) -> None:
        raise NotImplementedError

    async def get(self, dataset_id: str) -> Dataset:
        return dataset_of([{"prompt": dataset_id, "completion": "3"}])

    async def delete(self, dataset_id: str) -> None:
        raise NotImplementedError

    async def list(self) -> AsyncIterator[DatasetInfo]:
        raise NotImplementedError
        yield


class DoubleTraining(PostTraining):
    """A double of the actor that accepts training."""

    def __init__(self, stages: DoubleStages) -> None:
        self._stages = stages

    async def supervised_fine_tune(self, request: PostTrainingSFTRequest) -> None:
        record = JobRecord(
            job=request.job_uuid, kind="sft", digest="", model=request.model, scheduled_at=0.0
        )
        await self._stages.jobs.submit(request, record)

    async def preference_optimize(self, request: PostTrainingRLHFRequest) -> None:
        raise NotImplementedError

    async def reward_model(self, request: PostTrainingRewardRequest) -> None:
        raise NotImplementedError


class DoubleRegistry(ModelRegistry):
    """A double of the model registry: it keeps a few versions of one model, and forgets the oldest, as the real one does."""

    def __init__(self, stages: DoubleStages) -> None:
        self._stages = stages

    async def register(self, request: RegisterModelRequest) -> RegisteredModel:
        stages = self._stages
        number = 1 + max((one.version for one in stages.versions), default=0)
        url = request.url or f"file:///jobs/{request.job_uuid}"
        version = ModelVersion(number, url, BASE, "adapter", job_uuid=request.job_uuid)
        stages.versions = [*stages.versions, version][-stages.keep :]
        stages.current = number
        stages.registered.append(request.job_uuid or request.url)
        return self._described()

    async def unregister(self, name: str) -> None:
        if not self._stages.versions:
            raise NotFound("no such model")
        self._stages.versions = []

    async def registered(self) -> AsyncIterator[RegisteredModel]:
        if self._stages.versions:
            yield self._described()

    async def rollback(self, name: str, version: int | None = None) -> RegisteredModel:
        if version not in {one.version for one in self._stages.versions}:
            raise NotFound("no such version")
        self._stages.current = version
        return self._described()

    def _described(self) -> RegisteredModel:
        return RegisteredModel(NAME, self._stages.current, self._stages.versions)


class _Told(PostTrainingJobsActor):
    """The actor that tells of jobs; its doubles have no files."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(jobs, None)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Improving:
    """The actors around loops, as their clients see them.

    Attributes:
        bus: the bus.
        stages: the doubles.
        loops: accepts loops.
        told: tells of jobs.
    """

    bus: Bus
    stages: DoubleStages
    loops: Improvement
    told: PostTrainingJobs

    async def ended(self, job: str = "loop", seconds: float = 30.0) -> ImprovementReport:
        """Follow a loop to its end, and return its report."""
        with anyio.fail_after(seconds):
            async for _ in self.told.events(job):
                pass
            return await self.loops.report(job)

    async def until(self, phase: str, job: str = "loop") -> None:
        """Wait until a loop is in a phase."""
        with anyio.fail_after(30):
            async for event in self.told.events(job):
                if event.phase == phase:
                    return
        raise AssertionError(f"{job} ended before {phase}")

    async def events(self, job: str = "loop") -> list[JobEvent]:
        """Return the events of a job that are there."""
        return [event async for event in self.told.events(job, follow=False)]


@asynccontextmanager
async def running_improvement(
    bus: Bus,
    script: Script | None = None,
    *,
    runners: int = 1,
    keep: int = 5,
    stages: DoubleStages | None = None,
) -> AsyncIterator[Improving]:
    """Run the doubles, the actor and some runners of loops on a bus; the doubles may be those of an earlier run."""
    jobs, records = await open_jobs(bus), await open_loop_records(bus)
    stages = stages or DoubleStages(jobs, script or Script(), keep=keep)

    async def run_of(record: JobRecord) -> DoubleRun:
        return DoubleRun(stages, record.job)

    async with background_tasks() as tasks:
        for actor in (
            DoubleData(stages),
            DoubleDatasets(),
            DoubleTraining(stages),
            DoubleRegistry(stages),
            _Told(jobs),
            ImprovementActor(jobs, records, TrainingSettings(), [BASE]),
        ):
            await tasks.start(serve, bus, actor)
        await tasks.start(Runner(jobs, "data", "double", run_of).run)
        await tasks.start(Runner(jobs, "job", "double", run_of).run)
        for _ in range(runners):
            await tasks.start(loop_runner(jobs, records).run)
        yield Improving(bus, stages, client(Improvement, bus), client(PostTrainingJobs, bus))


def timeless(report: ImprovementReport) -> ImprovementReport:
    """Return a report without what depends on the clock."""
    return replace(report, rounds=[replace(one, seconds={}) for one in report.rounds])


def as_text(report: ImprovementReport) -> str:
    """Return a report without what depends on the clock, to be compared."""
    return msgspec.json.format(msgspec.json.encode(timeless(report))).decode()
