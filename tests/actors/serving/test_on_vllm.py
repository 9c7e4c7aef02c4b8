"""What was trained on bases of vLLM: adapters on the running engine, what it cannot apply merged; on a double of the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from safetensors.numpy import load_file
from support.engines import scripted
from support.serving import chat
from support.small_folders import (
    Change,
    configured,
    cut,
    no_number,
    numbers,
    on_another_module,
    small_adapter,
    small_base,
    small_dora,
    with_tensor,
)
from support.vllm_double import BASE, WAITS, VllmWorker, vllm_worker

from ayllu.actors.serving.running_engines import RunningEngines, watched
from ayllu.bus.bus import local_bus
from ayllu.schemas import (
    AylluError,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


@asynccontextmanager
async def served(tmp_path: Path, **settings: Any) -> AsyncIterator[VllmWorker]:
    base = tmp_path / "base"
    if not base.exists():
        small_base(base)
    with anyio.fail_after(60):
        async with local_bus() as bus, vllm_worker(bus, tmp_path, base, **settings) as worker:
            yield worker


async def until_answered(worker: VllmWorker, model: str) -> str:
    with anyio.fail_after(20):
        while True:
            try:
                return await worker.registry.ask(model)
            except AylluError as error:
                assert error.retryable, error.info
                await anyio.lowlevel.checkpoint()


@pytest.mark.requirement("vllm-adapters")
async def test_adapters_come_are_switched_and_go_on_the_one_engine(tmp_path: Path) -> None:
    async with served(tmp_path) as worker:
        ask, root = worker.registry.ask, worker.root
        model = await worker.register("inca", small_adapter(root / "a", lora_alpha=4))
        [version] = model.versions
        assert (version.kind, version.base) == ("adapter", BASE)
        await worker.register("chaski", small_adapter(root / "b", lora_alpha=6))
        assert [await ask(name) for name in ("inca", "chaski", BASE)] == ["4", "6", "base"]
        shown = (await worker.registry.served())["inca"]
        assert (shown.engine, shown.base, shown.context) == ("vllm", BASE, 64)

        await worker.register("inca", small_adapter(root / "c", lora_alpha=8))
        assert await ask("inca") == "8"
        assert (await worker.registry.models.rollback("inca")).current == 1
        assert await ask("inca") == "4"
        assert len(list((tmp_path / "models").iterdir())) == 3
        for name in ("inca", "chaski"):
            await worker.registry.models.unregister(name)
            with pytest.raises(ModelNotFound):
                await ask(name)
        with anyio.fail_after(5):
            while worker.base.adapters:
                await anyio.lowlevel.checkpoint()
        assert list((tmp_path / "models").iterdir()) == []
        assert (len(worker.bases), worker.merged) == (1, [])


@pytest.mark.requirement("vllm-adapters")
async def test_a_stream_on_a_version_goes_on_while_another_takes_its_place(tmp_path: Path) -> None:
    async with served(tmp_path) as worker:
        await worker.register("inca", small_adapter(worker.root / "a", lora_alpha=4))
        stream = worker.registry.inference.stream_chat_completion(chat("inca", WAITS))
        first = await anext(stream)
        await worker.register("inca", small_adapter(worker.root / "b", lora_alpha=6))
        assert await worker.registry.ask("inca") == "6"
        worker.base.go.set()
        rest = [chunk.text_delta async for chunk in stream]
        assert first.text_delta + "".join(rest) == "4 and on"


@pytest.mark.requirement("vllm-merged")
@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [
        (small_dora, {}),
        (small_adapter, {"adapters": 0}),
        (lambda folder: small_adapter(folder, rank_of(16), r=16), {"max_lora_rank": 8}),
        (lambda folder: small_adapter(folder, {"lm_head.weight": numbers(16, 8)}), {}),
        (small_base, {}),
    ],
)
async def test_what_cannot_be_applied_is_merged_and_a_model(
    checkpoint: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    async with served(tmp_path, dtype="float32", **settings) as worker:
        model = await worker.register("inca", checkpoint(worker.root / "a"))
        assert model.versions[0].kind == "model"
        assert await worker.registry.ask("inca") == "model"
        [engine] = worker.merged
        assert (engine.context, engine.slots, engine.settings.dtype) == (64, 2, "float32")
        assert engine.settings.adapters == 0
        assert (engine.folder / "tokenizer.json").is_file()
        assert load_file(engine.folder / "model.safetensors")
        assert worker.base.adapters == {}


def rank_of(rank: int) -> dict[str, Any]:
    module = "model.layers.0.self_attn.q_proj"
    return {
        f"{module}.lora_A.weight": numbers(rank, 8),
        f"{module}.lora_B.weight": numbers(8, rank),
    }


@pytest.mark.requirement("vllm-merged")
async def test_what_the_engine_refuses_is_merged(tmp_path: Path) -> None:
    async with served(tmp_path) as worker:
        worker.base.refuses = True
        model = await worker.register("inca", small_adapter(worker.root / "a"))
        assert model.versions[0].kind == "model"
        assert await worker.registry.ask("inca") == "model"
        worker.base.refuses = False
        await worker.register("chaski", small_adapter(worker.root / "b"))
        await worker.register("chaski", small_adapter(worker.root / "c", lora_alpha=6))
        # By now it refuses what it took: the caller learns why, and what was served goes on.
        worker.base.refuses = True
        with pytest.raises(AylluError, match="look into its folder") as refused:
            await worker.registry.models.rollback("chaski")
        assert str(tmp_path) not in str(refused.value)
        assert await worker.registry.ask("chaski") == "6"


@pytest.mark.requirement("vllm-adapters-return")
async def test_adapters_come_back_with_their_base(tmp_path: Path) -> None:
    async with served(tmp_path) as worker:
        await worker.register("inca", small_adapter(worker.root / "a", lora_alpha=4))
        await worker.register("chaski", small_adapter(worker.root / "b", lora_alpha=6))
        await worker.register("mita", small_dora(worker.root / "c"))
        stream = worker.registry.inference.stream_chat_completion(chat("inca", WAITS))
        await anext(stream)
        worker.base.die()
        with pytest.raises(EngineDead) as died:
            async for _ in stream:
                pass
        assert died.value.retryable
        # Nobody asked this one; it is gone all the same, and what stands on nothing goes on.
        with anyio.fail_after(10):
            while "chaski" in await worker.registry.served():
                await anyio.lowlevel.checkpoint()
        assert await worker.registry.ask("mita") == "model"
        with pytest.raises(Unavailable) as refused:
            await worker.register("late", small_adapter(worker.root / "d"))
        assert refused.value.retryable
        worker.restart.set()
        for name, said in (("inca", "4"), ("chaski", "6"), (BASE, "base")):
            assert await until_answered(worker, name) == said
        assert len(worker.bases) == 2
        assert len(worker.base.adapters) == 2
        await worker.register("late", worker.root / "d")
        assert await worker.registry.ask("late") == "4"


@pytest.mark.requirement("vllm-adapters-return")
async def test_a_merged_model_comes_back_by_itself(tmp_path: Path) -> None:
    async with served(tmp_path) as worker:
        await worker.register("inca", small_dora(worker.root / "a"))
        worker.merged[0].die()
        with anyio.fail_after(20):
            while len(worker.merged) == 1:
                await anyio.lowlevel.checkpoint()
        assert await until_answered(worker, "inca") == "model"
        assert len(worker.bases) == 1


@pytest.mark.requirement("registered-survives")
async def test_a_worker_that_starts_again_serves_what_was_registered(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")
    with anyio.fail_after(60):
        async with local_bus() as bus:
            async with vllm_worker(bus, tmp_path, base) as worker:
                await worker.register("inca", small_adapter(worker.root / "a"))
                await worker.register("mita", small_dora(worker.root / "b"))
            async with vllm_worker(bus, tmp_path, base) as worker:
                assert await worker.registry.ask("inca") == "4"
                assert await worker.registry.ask("mita") == "model"
            # Adapters are refused where the base takes none any more, or is another one.
            for settings in ({"adapters": 0}, {}):
                async with vllm_worker(bus, tmp_path, base, **settings) as worker:
                    assert "inca" not in await worker.registry.served()
                    assert await worker.registry.ask("mita") == "model"
                (base / "config.json").write_text('{"model_type": "quipu", "other": 1}')


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def with_file(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(b"\x80\x04.")

    return change


def with_link(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to("/etc/passwd")


@pytest.mark.requirement("vllm-bad-adapters", "serving-no-pickles")
async def test_hostile_folders_are_refused_and_change_nothing(tmp_path: Path) -> None:
    changes: list[tuple[Change, type[AylluError]]] = [
        (without("adapter_config.json"), InvalidRequest),
        (without("adapter_model.safetensors"), InvalidRequest),
        (with_file("adapter_model.bin"), InvalidRequest),
        (with_file("training_args.pt"), InvalidRequest),
        (with_file("modeling.py"), InvalidRequest),
        (with_link, InvalidRequest),
        (cut, InvalidRequest),
        (on_another_module, InvalidRequest),
        (with_tensor("lora_A", lambda values: values[:, :4].copy()), InvalidRequest),
        (with_tensor("lora_B", no_number), InvalidRequest),
        (configured(r=1 << 40), InvalidRequest),
        (configured(use_dora=True), InvalidRequest),
        (configured(peft_type="LOHA"), Unsupported),
    ]
    async with served(tmp_path) as worker:
        await worker.register("inca", small_adapter(worker.root / "good"))
        before = set((tmp_path / "models").iterdir())
        for number, (change, error) in enumerate(changes):
            folder = small_adapter(worker.root / f"bad-{number}")
            change(folder)
            with pytest.raises(AylluError) as caught:
                await worker.register("inca", folder)
            assert caught.type is error, (number, caught.value)
            assert str(tmp_path) not in str(caught.value), number
        (worker.root / "out").symlink_to(small_adapter(tmp_path / "outside"))
        with pytest.raises(PermissionDenied):
            await worker.register("inca", worker.root / "out")
        assert set((tmp_path / "models").iterdir()) == before
        assert [one.current for one in await worker.registry.registered()] == [1]
        assert await worker.registry.ask("inca") == "4"


async def test_an_engine_waits_for_those_that_use_it() -> None:
    async def use(ended: list[str]) -> None:
        with pytest.raises(Unavailable):
            async with engines.using(BASE):
                try:
                    begun.set()
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.lowlevel.checkpoint()
                    ended.append("user")

    engines, begun, ended = RunningEngines(), anyio.Event(), list[str]()
    with pytest.raises(Unavailable):
        engines.check(BASE)
    with anyio.fail_after(10):
        async with scripted() as engine, anyio.create_task_group() as tasks:
            tasks.start_soon(use, ended)
            async with engines.running(BASE, engine):
                engines.check(BASE)
                await begun.wait()
            ended.append("engine")
    assert ended == ["user", "engine"]


async def test_an_engine_that_cannot_watch_itself_is_not_watched() -> None:
    async with scripted() as engine, watched(engine):
        pass
