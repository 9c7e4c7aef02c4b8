"""Reward models in the registry: registered where they are served, switched, rolled back, followed, found again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from support.checkpoints import JobsDouble
from support.classifiers import TEXTS, classifiers, reward_checkpoint, transformers_scores
from support.rewards import prompt, request

from ayllu.actors.rewards.registered import open_registered
from ayllu.actors.serving.opening import open_serving
from ayllu.actors.serving.records import ModelRecord, new_version, open_records
from ayllu.actors.serving.running_engines import RunningEngines
from ayllu.actors.serving.settings import ServingConfig
from ayllu.actors.serving.sources import Source
from ayllu.actors.training.settings import TrainableModel, Trainables, TrainingSettings
from ayllu.bus import Bus, client, local_bus
from ayllu.bus.client import served_models
from ayllu.bus.service import serve
from ayllu.schemas import (
    AylluError,
    Conflict,
    InvalidRequest,
    ModelNotFound,
    ModelRegistry,
    NotFound,
    RegisteredModel,
    RegisterModelRequest,
    RewardScoring,
    Unavailable,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(300)]

TAKEN = "judge"


@dataclass(frozen=True)
class Registry:
    """Clients of a deployment that registers reward models."""

    bus: Bus
    models: ModelRegistry
    rewards: RewardScoring

    async def register(self, name: str, job: str) -> RegisteredModel:
        return await self.models.register(RegisterModelRequest(name, job_uuid=job))

    async def score(self, model: str) -> float:
        """Return the score of the fourth text."""
        asked = request(prompt(TEXTS[3], asked="Why?"), model=model)
        [scored] = (await self.rewards.score(asked)).scored_generations
        return scored.k_scored_generations[0].score


def says(job: str) -> object:
    return pytest.approx(transformers_scores(job)[3], abs=1e-4)


def config(*roots: Path) -> ServingConfig:
    return ServingConfig(roots=[str(classifiers() / "training"), *map(str, roots)], versions=3)


@asynccontextmanager
async def rewards_worker(bus: Bus, data_dir: Path, *roots: Path) -> AsyncIterator[None]:
    """Run what a worker that serves rewards runs for registered ones, until the end of the block."""
    tiny = TrainableModel("tiny", str(classifiers() / "base"))
    trainables = Trainables(TrainingSettings(models=[tiny]), [], data_dir)
    registered, host = await open_registered(bus, data_dir, trainables, [TAKEN], config(*roots))
    async with anyio.create_task_group() as tasks:
        await tasks.start(host.run)
        await tasks.start(serve, bus, registered)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def registry(bus: Bus, data_dir: Path, *roots: Path) -> AsyncIterator[Registry]:
    """Run the registry of a worker that serves language models, though none here, until the end of the block."""
    actor, host = await open_serving(bus, data_dir, [], config(*roots), RunningEngines())
    async with anyio.create_task_group() as tasks:
        await tasks.start(host.run)
        await tasks.start(serve, bus, actor, JobsDouble(classifiers() / "training" / "jobs"))
        yield Registry(bus, client(ModelRegistry, bus), client(RewardScoring, bus))
        tasks.cancel_scope.cancel()


@pytest.mark.requirement("rewards-registered")
async def test_versions_come_are_rolled_back_and_go(tmp_path: Path) -> None:
    with anyio.fail_after(200):
        async with (
            local_bus() as bus,
            rewards_worker(bus, tmp_path / "rewards"),
            registry(bus, tmp_path) as clients,
        ):
            first = await clients.register("taste", "first")
            assert await clients.score("taste") == says("first")
            [version] = first.versions
            assert (version.kind, version.base, version.job_uuid) == ("reward", "tiny", "first")
            [shown] = await served_models(bus)
            assert (shown.name, shown.kind, shown.engine) == ("taste", "reward", "classifier")
            assert (shown.base, shown.version) == ("tiny", 1)

            scores: list[float] = []
            async with anyio.create_task_group() as tasks:
                stop = anyio.Event()

                async def hammer() -> None:
                    while not stop.is_set():
                        scores.append(await clients.score("taste"))

                tasks.start_soon(hammer)
                # An adapter, which is merged into its base.
                assert (await clients.register("taste", "adapted")).current == 2
                stop.set()
            assert {round(score, 2) for score in scores} <= {
                round(transformers_scores(job)[3], 2) for job in ("first", "adapted")
            }
            assert await clients.score("taste") == says("adapted")
            assert (await clients.models.rollback("taste")).current == 1
            assert await clients.score("taste") == says("first")
            await clients.models.unregister("taste")
            with pytest.raises(NotFound):
                await clients.models.unregister("taste")
            with pytest.raises((ModelNotFound, Unavailable)):
                await clients.score("taste")
            # Its checkpoint is the job's, and stays.
            assert reward_checkpoint("first").is_dir()
            assert not (tmp_path / "models").exists()


@pytest.mark.requirement("rewards-registered")
async def test_a_restart_and_other_workers_serve_what_was_registered(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(classifiers() / "whole", elsewhere / "model")
    url = (elsewhere / "model").as_uri()
    with anyio.fail_after(200):
        async with local_bus() as bus, registry(bus, tmp_path, elsewhere) as clients:
            async with rewards_worker(bus, tmp_path / "one", elsewhere):
                await clients.register("taste", "first")
                # From elsewhere, and with weights of its own: nobody needs to know its base.
                whole = await clients.models.register(RegisterModelRequest("whole", url=url))
                assert whole.versions[0].base == ""
                async with rewards_worker(bus, tmp_path / "two", elsewhere):
                    assert len(await served_models(bus)) == 4
                    await clients.register("taste", "second")
                    with anyio.fail_after(60):
                        while {await clients.score("taste") for _ in range(8)} != {
                            await clients.score("taste")
                        } or await clients.score("taste") != says("second"):
                            await anyio.sleep(0.1)
                    await clients.models.unregister("whole")
                    with anyio.fail_after(30):
                        while len(await served_models(bus)) > 2:
                            await anyio.sleep(0.05)
                await clients.models.register(RegisterModelRequest("whole", url=url))
            # What cannot be loaded any more does not hold up the rest.
            (elsewhere / "model" / "chat_template.jinja").write_text("changed")
            async with rewards_worker(bus, tmp_path / "one", elsewhere):
                assert await clients.score("taste") == says("second")
                assert [one.name for one in await served_models(bus)] == ["taste"]


@pytest.mark.requirement("rewards-registered-refused")
async def test_what_cannot_be_registered_changes_nothing(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    plain = shutil.copytree(classifiers() / "base", elsewhere / "plain")
    pickled = shutil.copytree(classifiers() / "whole", elsewhere / "pickled")
    (pickled / "optimizer.pt").write_bytes(b"")
    broken = shutil.copytree(classifiers() / "whole", elsewhere / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    adapter = shutil.copytree(reward_checkpoint("adapted"), elsewhere / "adapter")
    (adapter / "manifest.json").unlink()

    async def refused(error: type[AylluError], name: str, folder: Path, **more: str) -> None:
        with pytest.raises(error):
            await clients.models.register(
                RegisterModelRequest(name, url=folder.as_uri(), **more)  # type: ignore[arg-type]
            )

    with anyio.fail_after(200):
        async with local_bus() as bus, registry(bus, tmp_path, elsewhere) as clients:
            with pytest.raises(Unavailable, match="no worker serves those"):
                await clients.register("taste", "first")
            assert [one async for one in clients.models.registered()] == []
            async with rewards_worker(bus, tmp_path / "rewards", elsewhere):
                await refused(ModelNotFound, "taste", plain, base="tiny")
                await refused(InvalidRequest, "taste", pickled)
                await refused(AylluError, "taste", broken)
                await refused(InvalidRequest, "taste", adapter)
                await refused(ModelNotFound, "taste", adapter, base="nobody")
                with pytest.raises(Conflict):
                    await clients.register(TAKEN, "first")
                assert [one async for one in clients.models.registered()] == []
                await clients.register("taste", "first")
                await _keep_language_model(bus, "talker")
                with pytest.raises(Conflict, match="another kind"):
                    await clients.register("talker", "first")
                await (await open_records(bus)).change("talker", lambda _: None)
                await refused(AylluError, "taste", broken)
                assert await clients.score("taste") == says("first")
                with pytest.raises(Conflict):
                    await clients.models.rollback("taste")
            # Nobody serves it any more; that it shall be forgotten needs nobody who does.
            with pytest.raises(Unavailable, match="no worker serves those"):
                await clients.models.rollback("taste", 1)
            await clients.models.unregister("taste")
            assert [one async for one in clients.models.registered()] == []


async def _keep_language_model(bus: Bus, name: str) -> None:
    """Keep a language model of a base that no worker here has."""
    source = Source(Path("/nowhere"), "nobody", "model")
    version = new_version(source, base="nobody", base_digest="", key="0", served="model")
    record = ModelRecord(name, 1, [replace(version, version=1)])
    await (await open_records(bus)).change(name, lambda _: record)
