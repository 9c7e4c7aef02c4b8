"""What was trained on SmolLM2, served by vLLM in one worker process: adapters unmerged, DoRA merged, found again after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from support.checkpoints import SAYS, checkpoint_of, trained
from support.processes import alive, descendants, running_worker, wait_for
from support.serving import Registry, chat, clients
from support.vllm_models import SETTINGS, model_folder

from ayllu.bus import connect
from ayllu.bus.client import served_models
from ayllu.schemas import (
    AylluError,
    CompletionRequest,
    Model,
    RegisteredModel,
    RegisterModelRequest,
    encode,
)

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio, pytest.mark.timeout(400)]

START_SECONDS = 180.0
MODEL = "smollm2-with-adapters"


@pytest.fixture(scope="module")
def worker(
    nats_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    folder = tmp_path_factory.mktemp("adapters")
    settings = {**SETTINGS, "adapters": 2, "max_lora_rank": 8}
    lines = "\n".join(f"{name} = {encode(value).decode()}" for name, value in settings.items())
    (folder / "ayllu.toml").write_text(
        f'[[models]]\nname = "{MODEL}"\nengine = "vllm"\nsource = "{model_folder()}"\n'
        f"context = 512\nslots = 4\n[models.vllm]\n{lines}\n"
        f"[serving]\nroots = [{json.dumps(str(trained()))}]\n"
    )
    arguments = ["inference", "--config", str(folder / "ayllu.toml"), "--data-dir", str(folder)]
    with running_worker(arguments, nats_url, seconds=START_SECONDS) as process:
        yield process


def cores_of(worker: subprocess.Popen[str]) -> set[int]:
    """Return the process ids of vLLM's engine cores."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(worker.pid)}
    return {pid for pid, name in names.items() if name.startswith("VLLM::EngineCor")}


async def register(registry: Registry, name: str, job: str) -> RegisteredModel:
    request = RegisterModelRequest(name, url=checkpoint_of(job).as_uri(), base=MODEL)
    return await registry.models.register(request)


async def shown(registry: Registry) -> dict[str, Model]:
    return {one.name: one for one in await served_models(registry.bus)}


@pytest.mark.requirement("vllm-adapters")
async def test_adapters_come_and_answer_while_the_base_streams(
    worker: subprocess.Popen[str], nats_url: str
) -> None:
    cores = cores_of(worker)
    long = CompletionRequest(model=MODEL, content="1, 2, 3,", max_tokens=450)
    async with connect(nats_url) as bus:
        registry = clients(bus)
        async with aclosing(registry.inference.stream_completion(long)) as stream:  # type: ignore[type-var]
            await anext(stream)
            for name, job in (("inca", "lora"), ("chaski", "other")):
                model = await register(registry, name, job)
                assert [(one.kind, one.base) for one in model.versions] == [("adapter", MODEL)]
            answers: dict[str, str] = {}

            async def ask(name: str) -> None:
                answers[name] = await registry.ask(name)

            async with anyio.create_task_group() as tasks:
                for name in ("inca", "chaski"):
                    tasks.start_soon(ask, name)
            assert answers == {"inca": SAYS["lora"], "chaski": SAYS["other"]}
            # It ran all the while, and is the base's own still.
            await anext(stream)
        assert await registry.ask(MODEL) not in SAYS.values()
        served = await shown(registry)
        assert [(served[one].engine, served[one].base) for one in answers] == [("vllm", MODEL)] * 2
        assert cores_of(worker) == cores

        # Another version of the name, under the same prompt: nothing that vLLM remembers is taken for it.
        assert (await register(registry, "inca", "other")).current == 2
        assert await registry.ask("inca") == SAYS["other"]
        await registry.models.rollback("inca")
        assert await registry.ask("inca") == SAYS["lora"]


@pytest.mark.requirement("vllm-merged", "vllm-adapters-return")
async def test_dora_is_merged_and_all_come_back_after_a_kill(
    worker: subprocess.Popen[str], nats_url: str
) -> None:
    [core] = cores_of(worker)
    async with connect(nats_url) as bus:
        registry = clients(bus)
        model = await register(registry, "mita", "dora")
        assert [one.kind for one in model.versions] == ["model"]
        assert await registry.ask("mita") == SAYS["dora"]
        assert len(cores_of(worker)) == 2

        stream = registry.inference.stream_completion(
            CompletionRequest(model=MODEL, content="1, 2, 3,", max_tokens=400)
        )
        await anext(stream)
        os.kill(core, signal.SIGKILL)
        with pytest.raises(AylluError) as lost, anyio.fail_after(20):
            async for _ in stream:
                pass
        assert lost.value.retryable
        assert await registry.ask("mita") == SAYS["dora"]
        for name, said in (("inca", SAYS["lora"]), ("chaski", SAYS["other"])):
            assert await answered(registry, name) == said
        assert await registry.ask(MODEL) not in SAYS.values()
    assert worker.poll() is None
    assert core not in cores_of(worker)


async def answered(registry: Registry, name: str) -> str:
    """Ask as a client does that tries again while it is told that it may."""
    with anyio.fail_after(START_SECONDS):
        while True:
            try:
                return str((await registry.inference.chat_completion(chat(name))).content)
            except AylluError as error:
                assert error.retryable, error.info
                await anyio.sleep(0.5)


@pytest.mark.requirement("vllm-adapters")
async def test_what_is_unregistered_goes(worker: subprocess.Popen[str], nats_url: str) -> None:
    both = cores_of(worker)
    async with connect(nats_url) as bus:
        registry = clients(bus)
        for name in ("inca", "chaski", "mita"):
            await registry.models.unregister(name)
        assert (await shown(registry)).keys().isdisjoint({"inca", "chaski", "mita"})
        assert await registry.ask(MODEL)
    wait_for("the end of one engine", lambda: sum(map(alive, both)) == 1, 30)
