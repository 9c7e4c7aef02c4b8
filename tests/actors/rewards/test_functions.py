"""Reward functions of operators: what they do to their child costs their answer, and nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.processes import descendants, wait_for
from support.rewards import answers, error_of, functions, results_of, values_of

from ayllu.actors.rewards.engine import RewardEngine
from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import ProgramSpec
from ayllu.bus import local_bus
from ayllu.schemas import InvalidRequest

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("reward-functions")]
__all__ = ["functions"]


async def engine_of(**values: object) -> RewardEngine:
    spec = ProgramSpec(name="p", **values)  # type: ignore[arg-type]
    async with local_bus() as bus:
        return build_reward(spec, bus, [spec])


def children() -> set[int]:
    return {pid for pid, line in descendants(os.getpid()).items() if "programs.child" in line}


async def test_it_is_called_with_params_and_may_be_async(functions: str) -> None:
    params = {"most": 10}
    async with await engine_of(function=f"{functions}:length", params=params) as engine:
        assert values_of(await results_of(engine, answers("12345"))) == [0.5]
    async with await engine_of(function=f"{functions}:slowly") as engine:
        assert values_of(await results_of(engine, answers("good", "fair"))) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("does", "code"),
    [
        ("raise", "engine_error"),
        ("exit", "engine_error"),
        ("die", "engine_error"),
        ("segfault", "engine_error"),
        ("text", "engine_error"),
        ("nothing", "engine_error"),
        ("nan", "engine_error"),
        ("inf", "engine_error"),
        ("outside", "engine_error"),
        ("hang", "deadline_exceeded"),
        ("busy", "deadline_exceeded"),
    ],
)
async def test_what_goes_wrong_is_the_error_of_its_answer(
    functions: str, does: str, code: str
) -> None:
    async with await engine_of(function=f"{functions}:odd", timeout=0.5, at_once=1) as engine:
        first, wrong, last = await results_of(engine, answers("fine", does, "true"))
        assert values_of([first, last]) == [0.5, 1.0]
        error = error_of(wrong)
        assert error.info.code == code
        # Neither the traceback nor what the exception says: it may name files.
        assert "secret" not in error.message
        assert "Traceback" not in error.message
        assert len(children()) == 1
    assert not children()


async def test_an_error_of_ours_keeps_its_message(functions: str) -> None:
    async with await engine_of(function=f"{functions}:by_word") as engine:
        [result] = await results_of(engine, answers("unheard of"))
    assert error_of(result).info.code == "invalid_request"
    assert error_of(result).message == "there is no word that is known"


async def test_children_are_kept_and_as_many_as_may_be(functions: str) -> None:
    async with await engine_of(function=f"{functions}:by_word", at_once=2) as engine:
        await results_of(engine, answers(*["good"] * 20))
        before = children()
        assert 1 <= len(before) <= 2
        await results_of(engine, answers(*["good"] * 20))
        assert before <= children()
        assert len(children()) <= 2
    assert not children()


async def test_a_child_that_ended_by_itself_costs_no_answer(functions: str) -> None:
    async with await engine_of(function=f"{functions}:odd", at_once=1) as engine:
        [pid] = children()
        os.kill(pid, signal.SIGKILL)
        await anyio.to_thread.run_sync(wait_for, "its end", lambda: not children())
        assert values_of(await results_of(engine, answers("fine", "fine"))) == [0.5, 0.5]


async def test_leaving_ends_the_functions(functions: str) -> None:
    async with await engine_of(function=f"{functions}:odd", at_once=2) as engine:
        with anyio.fail_after(30):
            scores = engine.score(answers("fine", "hang", "hang"))
            assert (await anext(scores))[0] == 0
            await scores.aclose()
        assert len(children()) == 1  # The idle one.
        assert values_of(await results_of(engine, answers("fine"))) == [0.5]


async def test_a_cancelled_call_leaves_no_stale_score(functions: str) -> None:
    async with await engine_of(function=f"{functions}:odd", at_once=1) as engine:
        with anyio.move_on_after(0.2):
            await results_of(engine, answers("hang"))
        assert values_of(await results_of(engine, answers("true", "fine"))) == [1.0, 0.5]
    assert not children()


@pytest.mark.parametrize(
    ("function", "params", "said"),
    [
        ("no_such_module_at_all:f", {}, "cannot be imported"),
        ("support.reward_functions:missing", {}, "no function missing"),
        ("support.reward_functions:number", {}, "no function number"),
        ("support.reward_functions:without_reference", {}, "does not take"),
        ("support.reward_functions:length", {"least": 1}, "does not take"),
    ],
)
async def test_a_function_that_is_none_is_refused_at_the_start(
    functions: str, function: str, params: dict[str, object], said: str
) -> None:
    engine = await engine_of(function=function, params=params)
    with pytest.raises(InvalidRequest, match=said):
        async with engine:
            pass
    assert not children()


async def test_children_know_no_secrets_of_ours(
    functions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AYLLU_BUS_URL", "nats://user:hush@nowhere")
    async with await engine_of(function=f"{functions}:by_word"):
        [pid] = children()
        assert b"hush" not in Path(f"/proc/{pid}/environ").read_bytes()  # noqa: ASYNC240
