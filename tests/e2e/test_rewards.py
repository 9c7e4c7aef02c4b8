"""Reward models as a deployment serves them, with the command line and with faults."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from support.processes import Up, alive, descendants, run_ayllu, running_up, running_worker
from support.rewards import TESTS, prompt, request, rewards, texts_of

from ayllu.actors.rewards.specs import ProgramSpec
from ayllu.bus import client
from ayllu.bus import connect as connect_bus
from ayllu.client import connect
from ayllu.schemas import ActorLost, KScoredPromptGenerations, RewardScoring

pytestmark = pytest.mark.slow

CONFIG = """
[[rewards]]
name = "exact"
engine = "program"
function = "exact_answer"
aliases = ["same"]

[[rewards]]
name = "tool"
engine = "program"
function = "tool_call"

[[rewards]]
name = "judge"
engine = "judge"
model = "smollm2"

[[rewards]]
name = "both"
engine = "combination"
weights = { exact = 3.0, judge = 1.0 }
"""
SLOW = """
[[rewards]]
name = "odd"
engine = "program"
function = "support.reward_functions:odd"
timeout = 600.0
at_once = 1
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("rewards"), config=CONFIG) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.requirement("reward-command")
def test_reward_models_are_listed(up: Up) -> None:
    listed = run_ayllu("rewards", "--url", up.url)
    assert listed.returncode == 0, listed.stderr
    rows = [line.split("\t") for line in listed.stdout.splitlines()]
    assert [row[:3] for row in rows] == [
        ["both", "combination", "0 to 1"],
        ["exact, same", "program", "0 to 1"],
        ["judge", "judge", "0 to 1"],
        ["tool", "program", "0 to 1"],
    ]
    assert "smollm2" in rows[2][3]
    told = json.loads(run_ayllu("rewards", "list", "--json", "--url", up.url).stdout)
    assert {one["kind"] for one in told} == {"reward"}


@pytest.mark.requirement("reward-command")
def test_answers_are_scored_best_first(up: Up) -> None:
    asked = ["--prompt", "2 + 2?", "--answer", "5", "--answer", "4.\n", "--url", up.url]
    done = run_ayllu("rewards", "score", "--model", "same", "--reference", "4", *asked)
    assert (done.returncode, done.stdout) == (0, "1\t4.\n0\t5\n"), done.stderr
    kept = run_ayllu(
        "rewards", "score", "--model", "same", "--reference", "4", "--threshold", "1", *asked
    )
    assert kept.stdout == "1\t4.\n"
    failed = run_ayllu("rewards", "score", "--model", "same", *asked)
    assert (failed.returncode, failed.stdout.count("invalid_request")) == (0, 2)
    both = run_ayllu("rewards", "score", "--model", "both", "--reference", '"4"', "--json", *asked)
    [scored] = json.loads(both.stdout)["scored_generations"]
    best, worst = scored["k_scored_generations"]
    assert best["message"]["content"] == "4.\n"
    assert best["parts"].keys() == {"exact", "judge"}
    assert best["score"] > worst["score"]


@pytest.mark.requirement("reward-command", "reward-refused")
def test_an_unknown_reward_model_is_told_which_there_are(up: Up) -> None:
    asked = ["--prompt", "2 + 2?", "--answer", "5", "--url", up.url]
    done = run_ayllu("rewards", "score", "--model", "smollm2", *asked)
    assert done.returncode == 1
    assert "both, exact, judge, same, tool" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.requirement("reward-command")
def test_help_teaches() -> None:
    for action in ("list", "score"):
        assert "example:" in run_ayllu("rewards", action, "--help").stdout


@pytest.mark.asyncio
@pytest.mark.requirement("reward-streamed")
async def test_prompts_are_streamed_to_clients(up: Up) -> None:
    asked = request(prompt("5", "4", reference=4), prompt("3", reference=3), model="exact")
    with anyio.fail_after(60):
        async with connect(up.url) as stack:
            stream = stack.reward_scoring.stream_score(asked)
            found = {scored.index: texts_of(scored) async for scored in stream}
    assert found == {0: [("4", 1.0), ("5", 0.0)], 1: [("3", 1.0)]}


@pytest.mark.asyncio
@pytest.mark.requirement("reward-faults")
async def test_a_killed_worker_is_told_and_another_one_answers(
    tmp_path: Path, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    config = tmp_path / "ayllu.toml"
    config.write_text(SLOW)
    worker = ["rewards", "--config", str(config), "--data-dir", str(tmp_path)]
    asked = request(prompt("fine"), prompt("hang"), model="odd")
    async with connect_bus(nats_url) as bus:
        scoring = client(RewardScoring, bus)
        with anyio.fail_after(100):
            with running_worker(worker, nats_url) as process:
                stream = aiter(scoring.stream_score(asked))
                first: KScoredPromptGenerations = await anext(stream)
                assert texts_of(first) == [("fine", 0.5)]
                below = descendants(process.pid)
                assert below  # The function hangs in one of them.
                os.kill(process.pid, signal.SIGKILL)
                with pytest.raises(ActorLost) as lost:
                    await anext(stream)
                assert lost.value.retryable
                assert not any(map(alive, below))
            with running_worker(worker, nats_url):
                again = await scoring.score(request(prompt("fine"), model="odd"))
                assert texts_of(again.scored_generations[0]) == [("fine", 0.5)]


@pytest.mark.asyncio
@pytest.mark.requirement("reward-faults")
async def test_a_combination_bears_with_a_part_that_is_restarted(
    tmp_path: Path, nats_url: str
) -> None:
    config = tmp_path / "ayllu.toml"
    config.write_text(
        '[[rewards]]\nname = "mean"\nengine = "combination"\nweights = { late = 1.0 }\n'
    )
    worker = ["rewards", "--config", str(config), "--data-dir", str(tmp_path)]
    found: list[KScoredPromptGenerations] = []
    with running_worker(worker, nats_url), anyio.fail_after(100):
        async with connect_bus(nats_url) as bus, anyio.create_task_group() as tasks:

            async def ask() -> None:
                asked = request(prompt("4", reference=4), model="mean")
                found.extend((await client(RewardScoring, bus).score(asked)).scored_generations)
                tasks.cancel_scope.cancel()

            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            async with rewards(bus, ProgramSpec(name="late", function="exact_answer")):
                await anyio.sleep_forever()
    assert texts_of(found[0]) == [("4", 1.0)]
