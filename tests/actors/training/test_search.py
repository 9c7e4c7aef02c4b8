"""Hyperparameter searches: trials are jobs. A double trains, whose loss is lowest at a learning rate of 0.01."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from support.jobs import Training, running_training, sft_request

from ayllu.actors.training.validation import with_parameters
from ayllu.bus import local_bus
from ayllu.schemas import (
    HyperparameterSearch,
    InvalidRequest,
    JobEventKind,
    PostTrainingJobStatus,
    SearchParameter,
)

pytestmark = pytest.mark.asyncio
LR = "optimizer_config.lr"
Status = PostTrainingJobStatus


def search_of(**fields: object) -> HyperparameterSearch:
    parameters = {LR: SearchParameter(choices=[0.5, 0.01, 0.1])}
    defaults: dict[str, object] = {"parameters": parameters, "n_trials": 3, "sampler": "random"}
    return HyperparameterSearch(**{**defaults, **fields})  # type: ignore[arg-type]


async def submit(training: Training, search: HyperparameterSearch, **changes: object) -> None:
    request = sft_request("s", hyperparam_search_config=search, **changes)
    await training.training.supervised_fine_tune(request)


@pytest.mark.requirement("job-search")
async def test_every_trial_is_a_job_and_the_best_one_is_marked(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path) as training:
        await submit(training, search_of(n_trials=6, pruner="none"))
        status = await training.ended("s")
        assert status.status == Status.completed
        assert [trial.job_uuid for trial in status.trials] == [f"s/trial-{n}" for n in range(1, 7)]
        losses = {trial.job_uuid: trial.validation_loss for trial in status.trials}
        (best,) = [trial for trial in status.trials if trial.best]
        assert best.validation_loss == min(loss for loss in losses.values() if loss is not None)
        for trial in status.trials:
            assert (await training.told.status(trial.job_uuid)).status == Status.completed
            metrics = [e for e in await training.events(trial.job_uuid) if e.metrics is not None]
            assert metrics
        # What the search made is what its best trial made.
        assert status.checkpoints == (await training.told.status(best.job_uuid)).checkpoints
        artifacts = await training.told.artifacts("s")
        assert artifacts.checkpoints == status.checkpoints
        assert artifacts.files
        told = [event.trial for event in await training.events("s") if event.trial is not None]
        assert told == [trial.job_uuid for trial in status.trials for _ in range(2)]
        assert await training.jobs.queue("job") == []


@pytest.mark.requirement("job-search")
async def test_trials_that_promise_less_are_pruned(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path) as training:
        choices: list[bool | int | float | str] = [0.01, 0.02, 5.0]
        await submit(
            training,
            search_of(parameters={LR: SearchParameter(choices=choices)}, n_trials=8, seed=3),
            iters=40,
        )
        status = await training.ended("s", seconds=60)
        assert status.status == Status.completed
        ends = [await training.told.status(trial.job_uuid) for trial in status.trials]
        pruned = [end for end in ends if end.failure is not None]
        assert pruned
        assert all(end.failure is not None and end.failure.code == "pruned" for end in pruned)
        assert {t.parameters[LR] for t in status.trials if t.status == Status.failed} == {5.0}


@pytest.mark.requirement("job-search", "job-cancel")
async def test_a_cancelled_search_ends_its_trial_too(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path, {"pace": 0.05}) as training:
        await submit(training, search_of(), iters=1000)
        await training.until_trial("s/trial-1", 2)
        await training.told.cancel("s")
        for job in ("s/trial-1", "s"):
            status = await training.ended(job)
            assert status.failure is not None
            assert status.failure.code == "cancelled"
        assert len((await training.told.status("s")).trials) == 1


@pytest.mark.requirement("job-search", "job-resume")
async def test_a_search_goes_on_where_its_trainer_was_lost(tmp_path: Path) -> None:
    async with local_bus() as bus:
        async with running_training(bus, tmp_path, {"pace": 0.03}) as training:
            await submit(training, search_of(seed=1), iters=20)
            await training.until_trial("s/trial-2", 7)
        async with running_training(bus, tmp_path) as training:
            status = await training.ended("s")
            assert status.status == Status.completed
            assert len(status.trials) == 3
            assert (await training.told.status("s/trial-1")).attempt == 1
            assert (await training.told.status("s/trial-2")).attempt == 2
            assert sum(trial.best for trial in status.trials) == 1


@pytest.mark.requirement("job-search")
async def test_a_search_without_a_completed_trial_fails_and_says_so(tmp_path: Path) -> None:
    plan = {"act": "fail", "at": 1}
    async with local_bus() as bus, running_training(bus, tmp_path, plan) as training:
        await submit(training, search_of(n_trials=2))
        status = await training.ended("s")
        assert status.failure is not None
        assert status.failure.code == "no_trial_completed"
        kinds = {event.kind for event in await training.events("s/trial-1")}
        assert JobEventKind.status in kinds


WRONG = [
    ({"nonsense": SearchParameter(choices=[1])}, "nonsense"),
    ({"optimizer_config.speed": SearchParameter(choices=[1])}, "speed"),
    ({"model.x": SearchParameter(choices=[1])}, "model.x"),
    ({LR: SearchParameter()}, "choices"),
    ({LR: SearchParameter(low=1.0, high=0.1)}, "larger high"),
    ({LR: SearchParameter(low=0.0, high=0.1, log=True)}, "above 0"),
    ({LR: SearchParameter(choices=[0.1], low=0.1)}, "alone"),
    ({LR: SearchParameter(low=-1.0, high=0.1)}, "-1.0"),
    ({LR: SearchParameter(choices=["fast"])}, "fast"),
    ({"optimizer_config.lr_min": SearchParameter(choices=[0.5])}, "lr_min"),
    ({"algorithm_config.rank": SearchParameter(low=0, high=4, integer=True)}, "rank"),
    ({"algorithm_config.rank": SearchParameter(low=1.5, high=4, integer=True)}, "integers"),
]


@pytest.mark.parametrize(("parameters", "said"), WRONG)
@pytest.mark.requirement("job-search-refused")
async def test_a_search_that_cannot_be_is_refused(
    parameters: dict[str, SearchParameter], said: str, tmp_path: Path
) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        with pytest.raises(InvalidRequest) as raised:
            await submit(training, search_of(parameters=parameters))
        assert said in raised.value.message
        assert "hyperparam_search_config" in raised.value.message


@pytest.mark.requirement("job-search-refused")
async def test_empty_objects_search_for_nothing(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path) as training:
        await submit(training, HyperparameterSearch())
        with anyio.fail_after(20):
            status = await training.ended("s")
        assert (status.status, status.trials) == (Status.completed, [])


async def test_parameters_replace_fields_of_the_request() -> None:
    request = sft_request("a", hyperparam_search_config=search_of())
    changed = with_parameters(request, {LR: 0.5, "algorithm_config.rank": 2})
    assert changed.optimizer_config.lr == 0.5
    assert changed == replace(
        request,
        hyperparam_search_config=HyperparameterSearch(),
        optimizer_config=replace(request.optimizer_config, lr=0.5),
        algorithm_config=replace(request.algorithm_config, rank=2),
    )
