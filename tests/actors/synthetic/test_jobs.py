"""Synthetic data, generated in calls and jobs by a scripted model, scored by a double."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from support.buses import buses
from support.jobs import local_path
from support.synthetic import (
    PACE,
    DoubleRewards,
    answer,
    job_of,
    request_of,
    run_worker,
    running_generation,
    user,
)

from ayllu.actors.engines.scripted import ScriptedEngine
from ayllu.actors.jobs.jobs import open_jobs
from ayllu.actors.jobs.records import JobRecord
from ayllu.actors.jobs.runner import Run, Runner
from ayllu.actors.synthetic import running
from ayllu.actors.synthetic.actor import SyntheticDataActor
from ayllu.actors.synthetic.candidates import DATA
from ayllu.actors.synthetic.generating import Generator
from ayllu.actors.synthetic.opening import open_synthetic_data
from ayllu.actors.synthetic.running import ATTEMPTS, DataRun, Plant
from ayllu.actors.synthetic.selection import Group, Sieve
from ayllu.actors.synthetic.settings import SyntheticDataConfig
from ayllu.bus import local_bus
from ayllu.bus.service import serve
from ayllu.schemas import (
    Conflict,
    FilteringFunction,
    InvalidRequest,
    KScoredPromptGenerations,
    NotFound,
    PostTrainingJobStatus,
    RewardScoringConfig,
    SyntheticDataset,
)
from ayllu.schemas.tasks import background_tasks

pytestmark = pytest.mark.asyncio
Status = PostTrainingJobStatus
PROMPTS = [f"prompt {number}" for number in range(6)]


@pytest.fixture(params=["local", "nats"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def texts(prompts: list[KScoredPromptGenerations]) -> list[list[str]]:
    return [[str(one.message.content) for one in prompt.k_scored_generations] for prompt in prompts]


@pytest.mark.requirement("synthetic-generate", "synthetic-statistics")
async def test_a_call_generates_scores_and_filters(tmp_path: Path) -> None:
    rewards = DoubleRewards(PACE)
    async with local_bus() as bus, running_generation(bus, tmp_path, rewards=rewards) as plant:
        request = request_of(PROMPTS)
        response = await plant.generation.generate(request)
        assert [one.prompt for one in response.synthetic_data] == request.prompts
        assert [one.index for one in response.synthetic_data] == list(range(6))
        everything = await plant.generation.generate(
            request_of(PROMPTS, filtering_function=FilteringFunction.none, k=None)
        )
        for best, known in zip(response.synthetic_data, everything.synthetic_data, strict=True):
            scores = [one.score for one in known.k_scored_generations]
            assert len(scores) == 4
            assert scores == sorted(scores, reverse=True)
            assert best.k_scored_generations == known.k_scored_generations[:1]
        counts = response.statistics
        assert counts is not None
        assert (counts["candidates"], counts["accepted"], counts["filtered_out"]) == (24, 6, 18)
        assert counts["before"]["count"] == 24
        assert counts["seconds"] >= 0
        assert counts["completion_tokens"] == 24
        # The same seed, the same data; prompts are scored many at once.
        assert (await plant.generation.generate(request)).synthetic_data == response.synthetic_data
        assert sum(rewards.calls) == 18
        assert max(rewards.calls) > 1


@pytest.mark.requirement("synthetic-generate")
async def test_without_a_reward_model_scores_are_zero_and_one_answer_is_the_likeliest(
    tmp_path: Path,
) -> None:
    engine = ScriptedEngine(answer())
    async with local_bus() as bus, running_generation(bus, tmp_path, engine=engine) as plant:
        request = request_of(
            ["a", "b"],
            filtering_function=FilteringFunction.none,
            reward_scoring=None,
            num_candidates=1,
            k=None,
            seed=None,
            context=[user("context")],
            help=[user("help"), user("more help")],
            max_tokens=5,
        )
        response = await plant.generation.generate(request)
        assert texts(response.synthetic_data) == [["a 0"], ["b 0"]]
        assert [one.k_scored_generations[0].score for one in response.synthetic_data] == [0.0, 0.0]
        prompt, generation = engine.prompts[-1]
        # Help stands in place of the context.
        assert [one.text for one in prompt.messages][:-1] == ["help", "more help"]
        assert (generation.sampling.strategy, generation.max_tokens) == ("greedy", 5)


@pytest.mark.requirement("synthetic-refused")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"reward_scoring": None}, "reward_scoring"),
        ({"k": None}, "k"),
        ({"references": [1]}, "references"),
        ({}, "prompts"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    changes: dict[str, object], field: str, tmp_path: Path
) -> None:
    prompts = PROMPTS if changes else []
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            await plant.generation.generate(request_of(prompts, **changes))
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            await plant.data.start(job_of("a", prompts, **changes))
        with pytest.raises(NotFound):
            await plant.told.status("a")


@pytest.mark.requirement("synthetic-job", "synthetic-dataset")
async def test_a_job_runs_to_its_end_and_writes_its_dataset(kind: str, tmp_path: Path) -> None:
    async with buses(kind, tmp_path) as bus, running_generation(bus, tmp_path) as plant:
        context = [user("context")]
        job = job_of(
            "data/ä", PROMPTS, context=context, help=[user("h")], dataset=SyntheticDataset("made")
        )
        await plant.data.start(job)
        await plant.data.start(job)
        with pytest.raises(Conflict):
            await plant.data.start(job_of("data/ä", PROMPTS[1:]))
        status = await plant.ended("data/ä")
        assert (status.status, status.failure, status.kind) == (
            Status.completed,
            None,
            "synthetic_data",
        )
        assert (status.model, status.attempt) == ("scripted", 1)
        assert status.progress is not None
        assert (status.progress.done, status.progress.total) == (24, 24)
        assert status.progress.figures["accepted"] == 6
        results = await plant.results("data/ä")
        expected = (await plant.generation.generate(job.request)).synthetic_data
        assert results == expected
        counts = await plant.data.statistics("data/ä")
        assert (counts.candidates, counts.accepted) == (24, 6)

        dataset = await plant.datasets.get("made")
        rows = [
            json.loads(line)
            for line in local_path(dataset.content_url).read_text().split("\n")
            if line
        ]
        assert len(rows) == 6
        for row, result in zip(rows, results, strict=True):
            before = [message["content"] for message in row["dialog"]["message_history"]]
            assert before == ["context", result.prompt.content]
            best = result.k_scored_generations[0].message
            assert row["dialog"]["message"] == {"role": "assistant", "content": best.content}
        lines = [line async for log in plant.told.logs("data/ä") for line in log.log_lines]
        assert "the dataset made: 6 examples" in lines
        assert [one.job_uuid async for one in plant.told.list()] == ["data/ä"]
        assert await plant.jobs.queue("data") == []


@pytest.mark.requirement("synthetic-dataset")
async def test_pairs_are_made_of_the_best_and_the_worst(tmp_path: Path) -> None:
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        preference = SyntheticDataset("pairs", "preference")
        await plant.data.start(job_of("a", PROMPTS, dataset=preference))
        assert (await plant.ended("a")).status is Status.completed
        dataset = await plant.datasets.get("pairs")
        text = local_path(dataset.content_url).read_text()
        for row in map(json.loads, text.splitlines()):
            numbers = [int(row[name][0]["content"].split()[-1]) for name in ("chosen", "rejected")]
            assert numbers[0] > numbers[1]
        unscored = job_of(
            "b",
            PROMPTS,
            reward_scoring=None,
            filtering_function=FilteringFunction.none,
            k=None,
            dataset=preference,
        )
        with pytest.raises(InvalidRequest, match=r"^dataset\.form: "):
            await plant.data.start(unscored)


@pytest.mark.requirement("synthetic-dataset", "synthetic-refused")
async def test_a_dataset_that_is_there_is_refused_before_anything_is_generated(
    tmp_path: Path,
) -> None:
    made = SyntheticDataset("made")
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        await plant.data.start(job_of("a", PROMPTS, dataset=made))
        assert (await plant.ended("a")).status is Status.completed
        await plant.data.start(job_of("a", PROMPTS, dataset=made))  # It is the same job.
        with pytest.raises(Conflict, match=r"^dataset\.uuid: "):
            await plant.data.start(job_of("b", PROMPTS, dataset=made))
        with pytest.raises(NotFound):
            await plant.told.status("b")


@pytest.mark.requirement("synthetic-dataset")
async def test_a_job_is_accepted_while_datasets_are_away(tmp_path: Path) -> None:
    async with local_bus() as bus:
        plant = Plant(
            await open_jobs(bus),
            Generator(bus, anyio.CapacityLimiter(1)),
            SyntheticDataConfig(),
            tmp_path,
        )
        job = job_of("a", PROMPTS, dataset=SyntheticDataset("made"))
        await SyntheticDataActor(plant).start(job)
        assert await plant.jobs.queue("data") == ["a"]


@pytest.mark.requirement("synthetic-item-errors")
async def test_what_cannot_be_generated_or_scored_affects_nothing_else(tmp_path: Path) -> None:
    prompts = ["first", "impossible", "odd", "refused", "last"]
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        await plant.data.start(
            job_of("a", prompts, filtering_function=FilteringFunction.none, k=None)
        )
        assert (await plant.ended("a")).status is Status.completed
        first, impossible, odd, refused, last = await plant.results("a")
        assert len(first.k_scored_generations) == len(last.k_scored_generations) == 4
        assert not impossible.k_scored_generations
        assert not impossible.unscored
        assert odd.unscored
        assert len(odd.k_scored_generations) + len(odd.unscored) == 4
        assert {one.code for one in [*odd.unscored, *refused.unscored]} == {"invalid_request"}
        assert len(refused.unscored) == 4
        counts = await plant.data.statistics("a")
        assert counts.failed == 4
        assert counts.unscored == 4 + len(odd.unscored)
        assert counts.errors == {"invalid_request": 8 + len(odd.unscored)}


@pytest.mark.requirement("synthetic-item-errors")
@pytest.mark.parametrize("field", ["model", "reward_scoring"])
async def test_a_model_that_nobody_serves_fails_the_job(field: str, tmp_path: Path) -> None:
    named = {"model": "other", "reward_scoring": RewardScoringConfig("other")}[field]
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        await plant.data.start(job_of("a", PROMPTS, **{field: named}))
        status = await plant.ended("a")
        assert status.failure is not None
        assert (status.status, status.failure.code) == (Status.failed, "model_not_found")
        assert ("double" if field == "reward_scoring" else "scripted") in status.failure.message


@pytest.mark.requirement("synthetic-target")
async def test_generation_goes_on_until_the_target_or_the_budget(tmp_path: Path) -> None:
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        await plant.data.start(job_of("a", PROMPTS, target=20, max_similarity=1.0))
        assert (await plant.ended("a")).status is Status.completed
        counts = await plant.data.statistics("a")
        assert counts.accepted == 20
        assert counts.surplus == 24 - 20
        assert sum(len(one.k_scored_generations) for one in await plant.results("a")) == 20
        # The budget is kept to the candidate.
        await plant.data.start(job_of("b", PROMPTS, target=20, max_candidates=33))
        assert (await plant.ended("b")).status is Status.completed
        counts = await plant.data.statistics("b")
        assert (counts.candidates, counts.accepted) == (33, 9)


@pytest.mark.requirement("synthetic-cancel")
async def test_what_was_finished_before_a_cancel_stays(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(200)]
    async with local_bus() as bus, running_generation(bus, tmp_path, pace=PACE) as plant:
        await plant.data.start(job_of("a", prompts))
        await plant.until("a", 8)
        await plant.told.cancel("a")
        status = await plant.ended("a")
        assert status.failure is not None
        assert (status.status, status.failure.code) == (Status.failed, "cancelled")
        results = await plant.results("a")
        assert 0 < len(results) < 200
        assert all(len(one.k_scored_generations) == 1 for one in results)


@pytest.mark.requirement("synthetic-resume")
async def test_a_worker_that_takes_over_generates_only_what_is_missing(
    kind: str, tmp_path: Path
) -> None:
    engine = ScriptedEngine(answer(PACE))
    prompts = [f"prompt {number}" for number in range(40)]
    async with (
        buses(kind, tmp_path) as bus,
        running_generation(bus, tmp_path, engine=engine, workers=1) as plant,
    ):
        # The worker of the block is not told to stop: another one, that is, is cancelled in the midst of its job.
        expected = (await plant.generation.generate(request_of(prompts))).synthetic_data
        started = engine.started
        await plant.data.start(job_of("a", prompts))
        await plant.until("a", 20)
        async with background_tasks() as tasks:
            await tasks.start(run_worker, bus, tmp_path, 4)
        assert (await plant.ended("a")).status is Status.completed
        assert await plant.results("a") == expected
        assert engine.started - started == 160


@pytest.mark.requirement("synthetic-resume")
async def test_a_reward_model_may_be_away_for_a_while(tmp_path: Path) -> None:
    class Stumbling(DoubleRewards):
        """A double that is lost in the midst of its first calls."""

        async def stream_score(self, request: object) -> AsyncIterator[KScoredPromptGenerations]:
            from ayllu.schemas import ActorLost

            async for scored in super().stream_score(request):  # type: ignore[arg-type]
                yield scored
                if len(self.calls) < 3:
                    raise ActorLost("it fell")

    async with local_bus() as bus:
        rewards = Stumbling()
        async with running_generation(bus, tmp_path, rewards=rewards) as plant:
            response = await plant.generation.generate(request_of(PROMPTS))
            assert len(response.synthetic_data) == 6
            assert len(rewards.calls) >= 3


@pytest.mark.requirement("synthetic-job")
async def test_jobs_of_other_kinds_have_no_data(tmp_path: Path) -> None:
    from support.jobs import running_training, sft_request

    async with (
        local_bus() as bus,
        running_generation(bus, tmp_path) as plant,
        running_training(bus, tmp_path) as training,
    ):
        await training.training.supervised_fine_tune(sft_request("t"))
        with pytest.raises(InvalidRequest, match="it is of kind sft"):
            await plant.data.statistics("t")
        with pytest.raises(NotFound):
            await plant.data.statistics("other")


@pytest.mark.requirement("synthetic-job")
async def test_attempts_that_add_nothing_are_not_tried_again_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "TELL_SECONDS", 0.01)
    async with local_bus() as bus, running_generation(bus, tmp_path, workers=0) as plant:
        await bus.storage.streams.ensure(DATA)
        generator = Generator(bus, anyio.CapacityLimiter(2), patience=0.2)
        impatient = Plant(plant.jobs, generator, SyntheticDataConfig(), tmp_path)

        async def run_of(record: JobRecord) -> Run:
            return DataRun(impatient, record.job)

        async with background_tasks() as tasks:
            await tasks.start(serve, bus, SyntheticDataActor(impatient))
            await tasks.start(Runner(plant.jobs, "data", "data", run_of).run)
            await plant.data.start(job_of("a", PROMPTS))  # Nobody serves any model.
            status = await plant.ended("a")
        assert status.failure is not None
        assert (status.status, status.failure.code) == (Status.failed, "crashed")
        assert status.attempt == ATTEMPTS
        events = [event async for event in plant.told.events("a", follow=False)]
        assert sum(event.progress is not None for event in events) >= ATTEMPTS


@pytest.mark.requirement("synthetic-generate")
async def test_the_choice_among_candidates_does_not_hold_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    add = Sieve.add

    def adding(sieve: Sieve, group: Group) -> None:
        threads.add(threading.get_ident())
        add(sieve, group)

    monkeypatch.setattr(Sieve, "add", adding)
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        response = await plant.generation.generate(request_of(PROMPTS, max_similarity=0.7))
        assert len(response.synthetic_data) == len(PROMPTS)
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.requirement("synthetic-job")
async def test_a_job_means_what_it_meant_when_it_was_accepted(tmp_path: Path) -> None:
    async with local_bus() as bus, running_generation(bus, tmp_path) as plant:
        folder = tmp_path / "synthetic"
        before = SyntheticDataConfig("scripted", "double")
        first, _ = await open_synthetic_data(bus, folder, before)
        await first.start(job_of("a", PROMPTS, model=None, reward_scoring=None))
        assert (await plant.ended("a")).status is Status.completed
        # Other defaults by now: neither is who answered, nor does the job need a reward model that there is.
        later, _ = await open_synthetic_data(bus, folder, SyntheticDataConfig("other"))
        expected = await plant.generation.generate(request_of(PROMPTS))
        assert [one async for one in later.results("a")] == expected.synthetic_data
        assert (await later.statistics("a")).accepted == 6
