"""The model registry on real engines: registered, switched under load, rolled back, followed, found again."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from support.checkpoints import SAYS, STEPS, checkpoint_of, foreign_copy
from support.serving import SPEC, Registry, chat, deployment, running_worker

from ayllu.actors.registry import ModelSpec
from ayllu.bus import Bus
from ayllu.bus.bus import local_bus
from ayllu.schemas import (
    AylluError,
    Conflict,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    RegisterModelRequest,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(300)]


@asynccontextmanager
async def served(tmp_path: Path, **config: object) -> AsyncIterator[Registry]:
    with anyio.fail_after(100):
        async with local_bus() as bus, deployment(bus, tmp_path, **config) as registry:
            yield registry


async def until_says(registry: Registry, model: str, answer: str) -> None:
    """Ask until a model gives an answer: another worker follows when it has loaded it."""
    with anyio.fail_after(30):
        while True:
            try:
                if await registry.ask(model) == answer:
                    return
            except AylluError:
                pass


def files(folder: Path) -> list[Path]:
    return sorted((folder / "models").glob("*"))


@pytest.mark.requirement("registered-at-once", "registered-versions", "registered-gone")
async def test_versions_come_are_rolled_back_and_go(tmp_path: Path) -> None:
    async with served(tmp_path) as registry:
        before = await registry.ask("smollm2")
        first = await registry.register("inca", "lora")
        assert await registry.ask("inca") == SAYS["lora"]
        assert await registry.ask("smollm2") == before
        [version] = first.versions
        assert (first.name, first.current, version.version) == ("inca", 1, 1)
        assert (version.base, version.kind) == (SPEC.name, "adapter")
        assert (version.job_uuid, version.iters) == ("lora", STEPS)
        shown = (await registry.served())["inca"]
        assert (shown.engine, shown.base, shown.version) == ("llama_cpp", SPEC.name, 1)
        with pytest.raises(Conflict):
            await registry.models.rollback("inca")

        second = await registry.register("inca", "other")
        assert (second.current, len(second.versions)) == (2, 2)
        assert await registry.ask("inca") == SAYS["other"]
        assert (await registry.models.rollback("inca")).current == 1
        assert await registry.ask("inca") == SAYS["lora"]
        assert (await registry.models.rollback("inca", 2)).current == 2
        assert await registry.ask("inca") == SAYS["other"]
        with pytest.raises(NotFound):
            await registry.models.rollback("inca", 3)
        assert [one.current for one in await registry.registered()] == [2]
        assert len(files(tmp_path)) == 2

        await registry.models.unregister("inca")
        with pytest.raises(ModelNotFound):
            await registry.ask("inca")
        assert await registry.registered() == []
        assert files(tmp_path) == []
        with pytest.raises(NotFound):
            await registry.models.unregister("inca")


@pytest.mark.parametrize("job", ["dora", "output", "whole"])
@pytest.mark.requirement("serving-merge")
async def test_what_is_merged_is_served(job: str, tmp_path: Path) -> None:
    async with served(tmp_path) as registry:
        model = await registry.register("inca", job)
        assert model.versions[0].kind == "model"
        assert await registry.ask("inca") == SAYS[job]


@pytest.mark.requirement("switch-loses-nothing")
async def test_a_switch_loses_no_request(tmp_path: Path) -> None:
    answers: list[str] = []

    async def hammer() -> None:
        while not stop.is_set():
            answers.append(await registry.ask("inca"))

    async with served(tmp_path) as registry:
        await registry.register("inca", "lora")
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(hammer)
            await registry.register("inca", "other")
            for _ in range(3):
                await registry.models.rollback("inca", 1)
                await registry.models.rollback("inca", 2)
            stop.set()
        assert set(answers) == {SAYS["lora"], SAYS["other"]}
        assert await registry.ask("inca") == SAYS["other"]


@pytest.mark.requirement("switch-loses-nothing")
async def test_a_stream_goes_on_with_the_version_that_it_began_with(tmp_path: Path) -> None:
    async with served(tmp_path) as registry:
        await registry.register("inca", "other")
        question = "Count from 1 to 100."
        whole = await registry.ask("inca", question, most=60)
        begun = registry.inference.stream_chat_completion(chat("inca", question, most=60))
        text = (await anext(begun)).text_delta
        await registry.register("inca", "lora")
        assert await registry.ask("inca") == SAYS["lora"]
        text += "".join([chunk.text_delta async for chunk in begun])
        assert text == whole
        begun = registry.inference.stream_chat_completion(chat("inca", question, most=60))
        text = (await anext(begun)).text_delta
        await registry.models.unregister("inca")
        assert text + "".join([chunk.text_delta async for chunk in begun])


@pytest.mark.requirement("registered-survives")
async def test_a_restart_serves_what_was_registered(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    with anyio.fail_after(100):
        async with local_bus() as bus:
            async with deployment(bus, tmp_path, roots=[str(elsewhere)]) as registry:
                await registry.register("inca", "other")
                url = foreign_copy("lora", elsewhere).as_uri()
                request = RegisterModelRequest("other", url=url, base="smollm2")
                await registry.models.register(request)
            async with deployment(bus, tmp_path, roots=[str(elsewhere)]) as registry:
                assert await registry.ask("inca") == SAYS["other"]
                assert await registry.ask("other") == SAYS["lora"]
            # The files are made anew where they are gone, and what cannot be made does not hold up the rest.
            shutil.rmtree(tmp_path / "models")
            shutil.rmtree(elsewhere)
            async with deployment(bus, tmp_path, roots=[str(elsewhere)]) as registry:
                assert await registry.ask("inca") == SAYS["other"]
                with pytest.raises(ModelNotFound):
                    await registry.ask("other")
                assert len(await registry.registered()) == 2
                await registry.models.unregister("other")


@pytest.mark.requirement("registered-by-all")
async def test_other_workers_follow(tmp_path: Path) -> None:
    async def follows(bus: Bus, registry: Registry) -> None:
        async with running_worker(bus, tmp_path / "second"):
            # It had not been there when this was registered.
            assert (await registry.served())["inca"].actors == 2
            await registry.register("inca", "other")
            with anyio.fail_after(30):
                while len(files(tmp_path / "first")) + len(files(tmp_path / "second")) < 4:
                    await registry.ask("inca")
            # Each has a version that its own folder has a file of; one of them came by following.
            await until_switched(registry)
            await registry.models.unregister("inca")
            with anyio.fail_after(30):
                while "inca" in await registry.served():
                    pass

    async def until_switched(registry: Registry) -> None:
        with anyio.fail_after(30):
            while {await registry.ask("inca") for _ in range(12)} != {SAYS["other"]}:
                pass

    with anyio.fail_after(100):
        async with local_bus() as bus, deployment(bus, tmp_path / "first") as registry:
            await registry.register("inca", "lora")
            await follows(bus, registry)


@pytest.mark.requirement("registered-by-all")
async def test_a_worker_without_the_base_leaves_a_model_to_others(tmp_path: Path) -> None:
    echo = ModelSpec(name="echo", engine="scripted", source="echo")
    async with served(tmp_path) as registry:
        await registry.register("inca", "other")
        async with running_worker(registry.bus, tmp_path / "second", specs=[echo]):
            assert (await registry.served())["inca"].actors == 1
            assert await registry.ask("inca") == SAYS["other"]


@pytest.mark.requirement("failed-load-changes-nothing")
async def test_a_version_that_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as registry:
        await registry.register("inca", "other")
        [first] = files(tmp_path)
        await registry.register("inca", "lora")
        first.write_bytes(b"GGUF, not really")
        with pytest.raises(EngineError):
            await registry.models.rollback("inca")
        assert [one.current for one in await registry.registered()] == [2]
        assert await registry.ask("inca") == SAYS["lora"]


def by_url(path: Path | str, base: str | None = "smollm2", name: str = "x") -> RegisterModelRequest:
    url = path.as_uri() if isinstance(path, Path) else path
    return RegisterModelRequest(name, url=url, base=base)


@pytest.mark.requirement("serving-bad-requests", "serving-no-pickles", "serving-bad-checkpoints")
async def test_bad_requests_are_refused_and_change_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    pickled = foreign_copy("other", root / "pickled")
    (pickled / "optimizer.pt").write_bytes(b"\x80\x04.")
    foreign = foreign_copy("other", root / "foreign")
    damaged = root / "damaged"
    shutil.copytree(checkpoint_of("other"), damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"")
    other = foreign_copy("other", tmp_path / "outside")
    requests: list[tuple[RegisterModelRequest, type[AylluError]]] = [
        (by_url(pickled), InvalidRequest),
        (by_url(damaged), InvalidRequest),
        (by_url(foreign, base=None), InvalidRequest),
        (by_url(foreign, base="llama3_8b"), ModelNotFound),
        (by_url(foreign, name="smollm2"), Conflict),
        (by_url(foreign, name=SPEC.name), Conflict),
        (by_url(root), InvalidRequest),
        (by_url(root / "nothing"), NotFound),
        (by_url(other), PermissionDenied),
        (by_url(root / "link"), PermissionDenied),
        (by_url(f"{root.as_uri()}/../outside"), PermissionDenied),
        (by_url("https://example.org/checkpoint"), InvalidRequest),
        (by_url(f"file://example.org{foreign}"), InvalidRequest),
        (RegisterModelRequest("x", job_uuid="nobody"), NotFound),
        (RegisterModelRequest("x", job_uuid="lora", iters=3), NotFound),
        (RegisterModelRequest("x", job_uuid="lora", base="llama3_8b"), ModelNotFound),
        (RegisterModelRequest("x"), InvalidRequest),
        (RegisterModelRequest("x", job_uuid="lora", url=foreign.as_uri()), InvalidRequest),
        (RegisterModelRequest("x", url=foreign.as_uri(), iters=3), InvalidRequest),
    ]
    async with served(tmp_path, roots=[str(root)], models=1) as registry:
        for request, error in requests:
            with pytest.raises(error) as caught:
                await registry.models.register(request)
            assert caught.type is error, request
        assert await registry.registered() == []
        assert files(tmp_path) == []
        # The limit counts names, not versions.
        await registry.models.register(by_url(foreign))
        await registry.models.register(by_url(foreign))
        with pytest.raises(Conflict):
            await registry.models.register(by_url(foreign, name="y"))


@pytest.mark.requirement("registered-versions")
async def test_the_oldest_versions_are_forgotten(tmp_path: Path) -> None:
    async with served(tmp_path, versions=2) as registry:
        for job in ("lora", "other", "lora", "other"):
            model = await registry.register("inca", job)
        assert [one.version for one in model.versions] == [3, 4]
        assert len(files(tmp_path)) == 2  # Those of the versions before are the same.
        assert await registry.ask("inca") == SAYS["other"]


@pytest.mark.requirement("registered-at-once")
async def test_registrations_of_one_name_at_once_are_versions(tmp_path: Path) -> None:
    async with served(tmp_path) as registry:
        async with anyio.create_task_group() as tasks:
            for job in ("lora", "other"):
                tasks.start_soon(registry.register, "inca", job)
        [model] = await registry.registered()
        assert [one.version for one in model.versions] == [1, 2]
        current = model.versions[-1].job_uuid
        assert current is not None
        assert await registry.ask("inca") == SAYS[current]


@pytest.mark.requirement("failed-load-changes-nothing")
async def test_a_registration_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as registry:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(registry.register, "inca", "whole")
            with anyio.fail_after(30):
                while not files(tmp_path):  # Until it converts.
                    await registry.ask("smollm2", most=1)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(30):
            while files(tmp_path):
                await registry.ask("smollm2", most=1)
        assert await registry.registered() == []
