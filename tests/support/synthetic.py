"""Generation of data whose model is scripted and whose reward model is a double: what is tested is that nothing is lost or twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from msgspec.structs import replace

from ayllu.actors.datasets.actor import open_datasets
from ayllu.actors.datasets.content import ContentStore
from ayllu.actors.datasets.settings import DatasetsConfig
from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import ScriptedEngine, Step
from ayllu.actors.inference import InferenceActor
from ayllu.actors.jobs.jobs import Jobs, open_jobs
from ayllu.actors.synthetic.opening import open_synthetic_data
from ayllu.actors.synthetic.settings import SyntheticDataConfig
from ayllu.actors.training.actor import PostTrainingJobsActor
from ayllu.bus.bus import Bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    Datasets,
    FilteringFunction,
    InvalidRequest,
    KPromptGenerations,
    KScoredPromptGenerations,
    Message,
    Model,
    PostTrainingJobs,
    PostTrainingJobStatusResponse,
    RewardScoring,
    RewardScoringConfig,
    RewardScoringRequest,
    RewardScoringResponse,
    Role,
    ScoredMessage,
    SyntheticDataGeneration,
    SyntheticDataGenerationRequest,
    SyntheticDataJobRequest,
    SyntheticDataJobs,
    UnscoredGeneration,
    assemble_scores,
    encode,
)
from ayllu.schemas.tasks import background_tasks

PACE = 0.02
"""Seconds that an answer takes, where a test needs them to take any."""


def user(text: str) -> Message:
    return Message(Role.user, text)


def request_of(prompts: Sequence[str], **changes: Any) -> SyntheticDataGenerationRequest:
    """Return a request for answers of the scripted model, scored by the double."""
    request = SyntheticDataGenerationRequest(
        [user(prompt) for prompt in prompts],
        filtering_function=FilteringFunction.top_k,
        reward_scoring=RewardScoringConfig("double"),
        model="scripted",
        num_candidates=4,
        k=1,
        seed=7,
    )
    return replace(request, **changes)


def job_of(job: str, prompts: Sequence[str], **changes: Any) -> SyntheticDataJobRequest:
    dataset = changes.pop("dataset", None)
    return SyntheticDataJobRequest(job, request_of(prompts, **changes), dataset)


def answer(pace: float = 0.0) -> Any:
    """Return a script: what is said depends on prompt and seed alone. It cannot answer ``impossible``."""

    def script(prompt: Prompt, generation: Generation) -> list[Step]:
        asked = prompt.messages[-1].text
        if "impossible" in asked:
            return [InvalidRequest("nobody can answer that")]
        number = (generation.sampling.seed or 0) % 101
        return [*([pace] if pace else []), f"{asked} {number}"]

    return script


class DoubleRewards(RewardScoring):
    """A double of a reward model: the score is the number that an answer ends with; answers to ``odd`` ones have none."""

    models = frozenset({"double"})
    service_name = "rewards"
    service_metadata = {
        "models": encode([Model("double", engine="double", context=0, kind="reward")]).decode()
    }

    def __init__(self, pace: float = 0.0) -> None:
        self.calls: list[int] = []
        self._pace = pace

    async def score(self, request: RewardScoringRequest) -> RewardScoringResponse:
        return assemble_scores([prompt async for prompt in self.stream_score(request)])

    async def stream_score(
        self, request: RewardScoringRequest
    ) -> AsyncIterator[KScoredPromptGenerations]:
        self.calls.append(len(request.prompt_generations))
        if any("refused" in str(one.dialog.message.content) for one in request.prompt_generations):
            raise InvalidRequest("this prompt is refused")
        await anyio.sleep(self._pace)
        for index, one in reversed(list(enumerate(request.prompt_generations))):
            yield _scored(index, one)


def _scored(index: int, one: KPromptGenerations) -> KScoredPromptGenerations:
    scored, unscored = [], []
    for number, message in enumerate(one.k_generations):
        value = int(str(message.content).rpartition(" ")[2])
        if "odd" in str(one.dialog.message.content) and value % 2:
            unscored.append(UnscoredGeneration(number, "invalid_request", "it is odd"))
        else:
            scored.append(ScoredMessage(message, value / 100))
    scored.sort(key=lambda message: message.score, reverse=True)
    return KScoredPromptGenerations(one.dialog.message, scored, index=index, unscored=unscored)


@dataclass(frozen=True, slots=True)
class Plantation:
    """The actors around generation, as their clients see them.

    Attributes:
        bus: the bus.
        jobs: the jobs.
        generation: the draft's operation.
        data: jobs of data.
        told: tells of jobs.
        datasets: what was written.
    """

    bus: Bus
    jobs: Jobs

    @property
    def generation(self) -> SyntheticDataGeneration:
        return client(SyntheticDataGeneration, self.bus)

    @property
    def data(self) -> SyntheticDataJobs:
        return client(SyntheticDataJobs, self.bus)

    @property
    def told(self) -> PostTrainingJobs:
        return client(PostTrainingJobs, self.bus)

    @property
    def datasets(self) -> Datasets:
        return client(Datasets, self.bus)

    async def ended(self, job: str, seconds: float = 30.0) -> PostTrainingJobStatusResponse:
        """Follow a job to its end, and return its status."""
        with anyio.fail_after(seconds):
            async for _ in self.told.events(job):
                pass
            return await self.told.status(job)

    async def until(self, job: str, candidates: int, seconds: float = 30.0) -> None:
        """Wait until a job has told of so many candidates."""
        with anyio.fail_after(seconds):
            async for event in self.told.events(job):
                if event.progress is not None and event.progress.done >= candidates:
                    return
        raise AssertionError(f"{job} ended before it had {candidates} candidates")

    async def results(self, job: str) -> list[KScoredPromptGenerations]:
        return [one async for one in self.data.results(job)]


def scripted_model(pace: float = 0.0) -> InferenceActor:
    return InferenceActor(ScriptedEngine(answer(pace)), name="scripted")


@asynccontextmanager
async def running_generation(
    bus: Bus,
    folder: Path,
    *,
    engine: ScriptedEngine | None = None,
    rewards: RewardScoring | None = None,
    workers: int = 1,
    at_once: int = 4,
    pace: float = 0.0,
) -> AsyncIterator[Plantation]:
    """Run the actors in this process; with ``workers=0``, others generate, and only what tells of jobs is here."""
    jobs = await open_jobs(bus)
    written = DatasetsConfig(roots=[str(folder / "synthetic")])
    content = ContentStore(folder / "content", written)
    async with background_tasks() as tasks:
        for actor in (
            _Told(jobs),
            await open_datasets(bus, content),
            *([rewards or DoubleRewards()] if workers else []),
        ):
            await tasks.start(serve, bus, actor)
        if workers:
            made = engine or ScriptedEngine(answer(pace))
            await made.__aenter__()
            await tasks.start(serve, bus, InferenceActor(made, name="scripted"))
        for _ in range(workers):
            await tasks.start(run_worker, bus, folder, at_once)
        yield Plantation(bus, jobs)


async def run_worker(bus: Bus, folder: Path, at_once: int, *, task_status: Any) -> None:
    """Generate until cancelled."""
    config = SyntheticDataConfig(at_once=at_once)
    actor, runners = await open_synthetic_data(bus, folder / "synthetic", config)
    async with anyio.create_task_group() as tasks:
        for runner in runners:
            await tasks.start(runner.run)
        await serve(bus, actor, task_status=task_status)


class _Told(PostTrainingJobsActor):
    """Tells of jobs, none of which trains."""

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(jobs, None)  # type: ignore[arg-type]
