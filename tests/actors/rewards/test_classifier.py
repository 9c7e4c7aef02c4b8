"""Classification models: the scores are transformers' own, and what cannot be scored, loaded or kept alive is said to be so."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.classifiers import (
    CONTEXT,
    TEXTS,
    asked,
    classifiers,
    reward_checkpoint,
    transformers_scores,
)
from support.rewards import error_of, request, results_of, values_of
from support.rewards import prompt as prompt_of

from ayllu.actors.rewards.actor import RewardScoringActor
from ayllu.actors.rewards.classifier.engine import ClassifierEngine
from ayllu.actors.supervision import supervise
from ayllu.actors.training.protocol import BaseModel
from ayllu.bus import client, local_bus
from ayllu.bus.service import serve
from ayllu.schemas import (
    AylluError,
    ContextLengthExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    RewardScoring,
    Unsupported,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(200)]

WITHIN = 1e-4


def base() -> BaseModel:
    return BaseModel("tiny", str(classifiers() / "base"))


@pytest.mark.requirement("classifier-parity")
@pytest.mark.parametrize("batch_size", [1, 3, 16])
async def test_scores_are_those_of_transformers_whatever_the_batching(batch_size: int) -> None:
    expected = transformers_scores("whole")
    assert max(expected) - min(expected) > 1, "all texts have about the same score"
    async with ClassifierEngine(classifiers() / "whole", batch_size=batch_size) as engine:
        assert values_of(await results_of(engine, asked())) == pytest.approx(expected, abs=WITHIN)
        order = list(range(len(TEXTS)))
        random.Random(1).shuffle(order)
        mixed = await results_of(engine, asked([TEXTS[number] for number in order]))
        assert values_of(mixed) == pytest.approx([expected[n] for n in order], abs=WITHIN)
        # Many calls that share batches.
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(_scores_alone, engine, number, expected[number])


async def _scores_alone(engine: ClassifierEngine, number: int, expected: float) -> None:
    [score] = values_of(await results_of(engine, asked([TEXTS[number]])))
    assert score == pytest.approx(expected, abs=WITHIN)


@pytest.mark.requirement("classifier-parity")
async def test_a_model_without_a_token_that_pads_is_batched_all_the_same() -> None:
    async with ClassifierEngine(classifiers() / "padless") as engine:
        found = values_of(await results_of(engine, asked()))
    assert found == pytest.approx(transformers_scores("padless"), abs=WITHIN)


@pytest.mark.requirement("classifier-parity")
async def test_an_adapter_is_merged_into_its_base_and_brings_its_head() -> None:
    async with ClassifierEngine(reward_checkpoint("adapted"), base=base()) as engine:
        found = values_of(await results_of(engine, asked()))
    assert found == pytest.approx(transformers_scores("adapted"), abs=WITHIN)


@pytest.mark.requirement("classifier-lengths")
async def test_what_is_too_long_is_refused_whole_and_the_rest_is_scored() -> None:
    async with ClassifierEngine(classifiers() / "whole") as engine:
        assert engine.context == CONTEXT
        fits = asked(["x"])[0]
        frame = CONTEXT - len("Why?") - await _frame(engine)
        longest, longer, short = await results_of(
            engine, asked(["x" * frame, "x" * (frame + 1), str(fits.message.content)])
        )
        assert len(values_of([longest, short])) == 2
        assert isinstance(error_of(longer), ContextLengthExceeded)
        assert f"{CONTEXT + 1} tokens" in error_of(longer).message
        assert await results_of(engine, []) == []
    async with ClassifierEngine(classifiers() / "whole", max_length=60) as engine:
        assert engine.context == 60
        [refused] = await results_of(engine, asked(["x" * 100]))
        assert isinstance(error_of(refused), ContextLengthExceeded)


async def _frame(engine: ClassifierEngine) -> int:
    """Return how many tokens the chat template adds to a question and its answer."""
    [refused] = await results_of(engine, asked(["x" * 1000]))
    told = int(error_of(refused).message.split(" tokens")[0].split()[-1])
    return told - 1000 - len("Why?")


@pytest.mark.requirement("classifier-dies")
async def test_a_process_that_dies_is_told_to_whoever_waits_and_is_started_again() -> None:
    async def start(*, task_status: Any) -> None:
        async with ClassifierEngine(classifiers() / "whole") as engine:
            engines.append(engine)
            actor = RewardScoringActor(engine, "m")
            await serve(bus, actor, task_status=task_status)

    engines: list[ClassifierEngine] = []
    with anyio.fail_after(120):
        async with local_bus() as bus, anyio.create_task_group() as tasks:
            await tasks.start(supervise, "reward model", start)
            api = client(RewardScoring, bus)
            many = [prompt_of(*["so it is, " * 15] * 50) for _ in range(50)]
            async with aclosing(api.stream_score(request(*many))) as stream:  # type: ignore[type-var]
                await anext(stream)
                os.kill(engines[0].pid, signal.SIGKILL)
                with pytest.raises(EngineDead):
                    async for _ in stream:
                        pass
            while len(engines) < 2:
                await anyio.sleep(0.1)
            scored = None
            while scored is None:
                try:
                    scored = await api.score(request(prompt_of(TEXTS[3], asked="Why?")))
                except AylluError as error:
                    assert error.retryable
            [answer] = scored.scored_generations[0].k_scored_generations
            assert answer.score == pytest.approx(transformers_scores("whole")[3], abs=WITHIN)
            # So it is where nobody waits for a score.
            os.kill(engines[1].pid, signal.SIGKILL)
            while len(engines) < 3:
                await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()
    for engine in engines:
        with pytest.raises(ProcessLookupError):
            os.kill(engine.pid, 0)


@pytest.mark.requirement("classifier-dies")
async def test_an_engine_whose_process_is_dead_says_so() -> None:
    engine = ClassifierEngine(classifiers() / "whole")
    with pytest.raises(EngineDead):
        async with engine:
            os.kill(engine.pid, signal.SIGKILL)
            await anyio.sleep(60)
    with pytest.raises(EngineDead):
        await results_of(engine, asked())


@pytest.mark.requirement("classifier-dies")
async def test_an_engine_whose_process_hangs_over_its_work_is_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ayllu.actors.rewards.classifier.engine.SILENT_SECONDS", 0.3)
    with anyio.fail_after(60), pytest.raises(EngineDead):
        async with ClassifierEngine(classifiers() / "whole") as engine:
            # Silence without work is none.
            await anyio.sleep(1)
            os.kill(engine.pid, signal.SIGSTOP)
            with pytest.raises(EngineDead):
                await results_of(engine, asked())
            await anyio.sleep(30)  # The block is told, too.


@pytest.mark.requirement("classifier-cancel")
async def test_whoever_leaves_ends_the_work() -> None:
    long = asked(["so it is, " * 15] * 3000)
    async with ClassifierEngine(classifiers() / "whole", batch_size=1) as engine:
        async with aclosing(engine.score(long)) as scores:
            await anext(scores)
        # Behind the whole of it, this would take many times as long.
        with anyio.fail_after(5):
            assert values_of(await results_of(engine, asked([TEXTS[3]])))


def _pickled(folder: Path) -> None:
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")


def _program(folder: Path) -> None:
    (folder / "modeling.py").write_text("print('hello')")


def _mute(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _headless(folder: Path) -> None:
    shutil.copy(classifiers() / "base" / "model.safetensors", folder)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _broken(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no weights")


REFUSED: dict[str, tuple[Callable[[Path], None], type[AylluError], str]] = {
    "pickle": (_pickled, InvalidRequest, "training_args.bin may hold code"),
    "program": (_program, InvalidRequest, "modeling.py may hold code"),
    "template": (_mute, Unsupported, "no chat template"),
    "head": (_headless, InvalidRequest, "no score.weight"),
    "empty": (_empty, InvalidRequest, "no config.json"),
    "broken": (_broken, EngineError, "cannot be loaded"),
}


@pytest.mark.requirement("classifier-refused")
@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_reward_model_is_refused(name: str, tmp_path: Path) -> None:
    damage, error, why = REFUSED[name]
    folder = shutil.copytree(classifiers() / "whole", tmp_path / "model")
    damage(folder)
    await _is_refused(ClassifierEngine(folder), error, why, tmp_path)


@pytest.mark.requirement("classifier-refused")
async def test_checkpoints_that_are_not_whole_or_lack_something_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(reward_checkpoint("first"), tmp_path / "model")
    (folder / "config.json").write_text("{}")
    damaged = ClassifierEngine(folder)
    await _is_refused(damaged, InvalidRequest, "config.json in model is not what", tmp_path)
    adapted = ClassifierEngine(reward_checkpoint("adapted"))
    await _is_refused(adapted, InvalidRequest, "whose base is not known", tmp_path)
    two = ClassifierEngine(classifiers() / "two")
    await _is_refused(two, Unsupported, "2 outputs", tmp_path)
    elsewhere = ClassifierEngine(tmp_path / "nowhere")
    await _is_refused(elsewhere, InvalidRequest, "no folder", tmp_path)
    there = ClassifierEngine(classifiers() / "whole", device="cuda")
    await _is_refused(there, EngineError, "no CUDA", tmp_path)


async def _is_refused(
    engine: ClassifierEngine, error: type[AylluError], why: str, folder: Path
) -> None:
    with pytest.raises(error, match=why) as raised:
        async with engine:
            pass
    assert str(folder) not in raised.value.message
    with pytest.raises(ProcessLookupError):
        os.kill(engine.pid, 0)
