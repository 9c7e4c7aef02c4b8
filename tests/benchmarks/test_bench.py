"""The harness of the benchmarks works; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


SCENARIOS = [
    "streams-1", "streams-32", "upstream-1", "upstream-32", "openai-streams", "turns-1", "turns-32", "resume", "executors", "waiting", "teams",
    "llama-server", "model", "vectors",
    "ingest", "restart", "retrieval", "unread", "idle", "startup", "synthesis",
    "sharing", "code",
]  # fmt: skip
"""All but those that train."""


def run_module(*arguments: str, seconds: float = 110) -> str:
    """Run a module in the project's root, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYTHONWARNINGS": "default"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_spread(found: dict[str, Any], runs: int) -> None:
    assert found["low"] <= found["median"] <= found["high"]
    assert len(found["runs"]) == runs


@pytest.mark.slow
@pytest.mark.timeout(320)
@pytest.mark.requirement("benchmark")
def test_the_benchmark_measures_everything_and_writes_it_down(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    table = run_module(
        "benchmarks", "--tiny", "--pairs", "1", "--out", str(out), "--only", *SCENARIOS, seconds=300
    )
    report = json.loads(out.read_text())
    assert report["machine"].keys() == {"processor", "cores", "memory", "system"}
    assert {"python", "ayllu", "nats-server", "uvloop"} <= report["versions"].keys()
    assert len(report["load_before"]) == len(report["load_after"]) == 3
    results = report["results"]
    assert list(results) == SCENARIOS
    for name in ("streams-1", "streams-32"):
        for system in ("ayllu", "single", "pipe"):
            for quantity in ("tokens_per_second", "first_token_ms", "gateway_cpu_us_per_token"):
                assert_spread(results[name][system][quantity], 1)
        assert results[name]["single"]["events_per_frame"]["high"] == 1
        assert results[name]["pipe"]["events_per_frame"]["high"] == 1
        for ratio in ("ratio_merged", "ratio_single_frames", "first_token_later_ms"):
            assert_spread(results[name][ratio], 1)
    for name in ("upstream-1", "upstream-32"):
        for system in ("ayllu", "direct"):
            assert_spread(results[name][system]["tokens_per_second"], 1)
            assert_spread(results[name][system]["first_token_ms"], 1)
        assert_spread(results[name]["ratio"], 1)
        assert_spread(results[name]["first_token_later_ms"], 1)
    for system in ("openai", "sse", "websocket"):
        assert_spread(results["openai-streams"][system]["tokens_per_second"], 1)
    assert_spread(results["openai-streams"]["ratio_sse"], 1)
    for name in ("turns-1", "turns-32"):
        assert_spread(results[name]["ratio"], 1)
        assert_spread(results[name]["first_token_later_ms"], 1)
    assert results["resume"]["events"] > 2000
    assert_spread(results["executors"]["ratio"], 1)
    assert results["waiting"]["turns"] == 16
    assert results["waiting"]["waiting"]["resident_mib"] > 10
    assert results["waiting"]["asked"]["resident_mib"] > 10
    assert_spread(results["teams"]["executors"]["ratio_4"], 1)
    assert_spread(results["teams"]["hop"]["more_than_plain_ms"], 1)
    assert results["teams"]["inbox"]["messages"] == 40
    assert results["teams"]["inbox"]["peak_mib"] >= results["teams"]["inbox"]["before_mib"] > 10
    assert_spread(results["model"]["ratio"], 1)
    for chats in ("1", "2"):
        assert_spread(results["llama-server"][chats]["ratio"], 1)
        assert_spread(results["llama-server"][chats]["first_token_later_ms"], 1)
    assert [step["connections"] for step in results["idle"]["steps"]] == [10, 20]
    for share in ("100 %", "10 %", "1 %", "0.1 %"):
        for name in ("index", "actor", "bus", "numpy"):
            assert results["vectors"][share][name]["recall"][0] > 0.9
    assert_spread(results["ingest"]["real"]["documents_per_second"], 1)
    assert_spread(results["restart"]["ready with a snapshot, s"], 1)
    assert min(results["retrieval"]["ndcg_at_10"].values()) > 0.7
    assert_spread(results["unread"]["ratio_p99_first_ms"], 1)
    assert_spread(results["startup"]["scripted"], 1)
    assert_spread(results["sharing"]["two"]["even_wait_p95_ms"], 1)
    assert_spread(results["sharing"]["ratio_two_one_busy"], 1)
    for name in ("tool", "session", "sandbox", "python"):
        assert_spread(results["code"]["ms"][name], 1)
    assert "ayllu / pipe" in table


@pytest.mark.slow
@pytest.mark.timeout(320)
@pytest.mark.requirement("benchmark")
def test_the_benchmark_of_training_measures_a_job_beside_the_script(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--only", "training", "--tiny", "--pairs", "1", "--out", str(out)]
    table = run_module("benchmarks", *arguments, seconds=300)
    result = json.loads(out.read_text())["results"]["training"]
    for name in ("job", "by_hand", "ratio", "last_step_to_job_end", "register_to_first_token"):
        assert_spread(result[name], 1)
    assert result["killed_to_next_iteration"] > 0
    assert "job / script" in table


@pytest.mark.slow
@pytest.mark.timeout(320)
@pytest.mark.requirement("benchmark")
def test_the_benchmark_of_rewards_measures_a_classifier_beside_a_loop(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--only", "rewards", "--tiny", "--pairs", "1", "--out", str(out)]
    table = run_module("benchmarks", *arguments, seconds=300)
    result = json.loads(out.read_text())["results"]["rewards"]
    for name in ("actor", "batched", "singly"):
        assert_spread(result["scores_per_second"][name], 1)
    assert_spread(result["actor_to_batched"], 1)
    assert "bus / loop one by one" in table


@pytest.mark.requirement("profile")
@pytest.mark.parametrize("kind", ["gateway", "inference"])
def test_the_profile_tells_what_a_token_costs(kind: str) -> None:
    # So many that what a process does to start is little beside them.
    table = run_module("benchmarks.profile", kind, "--streams", "2", "--rounds", "16")
    assert f"{kind}, 2 streams: 4096 tokens" in table
    assert "aio/client.py" in table.partition("by own time")[2]
