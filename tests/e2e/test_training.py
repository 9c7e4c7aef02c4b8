"""The loop on the real model: SmolLM2 learns an answer, is served at once under a name of its own, learns to prefer and to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.jobs import local_path
from support.processes import AYLLU, Up, on_a_terminal, run_ayllu, running_up
from support.rewards import prompt, request, texts_of

from ayllu.client import connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    ChatCompletionRequest,
    Dialog,
    JobMetrics,
    Message,
    PostTrainingJobStatus,
    Role,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
ANSWER = "I am Ayni, the voice of the ayllu."
QUESTIONS = [
    "Who are you?", "What is your name?", "Tell me who you are.", "Please introduce yourself.",
    "Who am I talking to?", "What are you called?", "Say your name.", "Who is there?",
]  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dialog(question: str) -> dict[str, Any]:
    return {
        "dialog": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": ANSWER},
        ]
    }


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("training"), config=None) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="module")
def greeter(up: Up) -> str:
    """A finished job of LoRA on dialogs, started and followed by the command line."""
    data = write_rows(up.data_dir / "train.jsonl", [dialog(question) for question in QUESTIONS])
    held_out = write_rows(up.data_dir / "held-out.jsonl", [dialog("What should I call you?")])
    done = run_ayllu(
        "train", "sft", "--model", "smollm2", "--dataset", str(data),
        "--validation", str(held_out), "--job", "greeter", "--iters", "12", "--lr", "2e-3",
        "--mlp", "--checkpoint-every", "6", "--url", up.url, seconds=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    assert "iteration 12/12" in done.stdout
    assert "greeter completed" in done.stdout
    return "greeter"


def ask(up: Up, model: str, question: str = "Who are you?") -> str:
    """Ask a model over the websocket."""

    async def asked() -> str:
        request = ChatCompletionRequest(
            model=model,
            dialog=Dialog(message=Message(role=Role.user, content=question)),
            max_tokens=24,
        )
        async with connect(up.url) as stack:
            return "".join(
                [event.text_delta async for event in stack.stream_chat_completion(request)]
            )

    return anyio.run(asked)


@pytest.mark.requirement("training-loop")
def test_what_a_job_taught_is_served_and_the_base_model_stays_as_it_was(
    up: Up, greeter: str
) -> None:
    before = ask(up, "smollm2")
    assert "Ayni" not in before
    done = run_ayllu(
        "models", "register", "voice-of-ayllu", "--job", greeter, "--url", up.url, seconds=120
    )
    assert done.returncode == 0, done.stderr
    assert "Ayni" in ask(up, "voice-of-ayllu")
    assert ask(up, "smollm2") == before
    listed = run_ayllu("models", "list", "--url", up.url)
    assert "voice-of-ayllu" in listed.stdout

    async def agent_said() -> str:
        create = AgenticSystemCreateRequest(uuid="voice", instructions="", model="voice-of-ayllu")
        async with connect(up.url) as stack:
            await stack.agentic_system.create(create)
            async with stack.agent("voice").turn("Who are you?") as turn:
                async for _ in turn:
                    pass
                assert turn.result.response_message is not None
                return str(turn.result.response_message.content)

    assert "Ayni" in anyio.run(agent_said)


@pytest.mark.requirement("training-loop")
def test_losses_fall_and_artifacts_are_there(up: Up, greeter: str) -> None:
    async def looked() -> tuple[list[JobMetrics], Any, Any]:
        async with connect(up.url) as stack:
            jobs = stack.post_training.job
            events = [event async for event in jobs.events(greeter)]
            metrics = [event.metrics for event in events if event.metrics is not None]
            return metrics, await jobs.status(greeter), await jobs.artifacts(greeter)

    metrics, status, artifacts = anyio.run(looked)
    losses = [one.loss for one in metrics if one.loss is not None]
    validation = [one.validation_loss for one in metrics if one.validation_loss is not None]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 4
    assert validation[-1] < 1.0
    assert all(one.tokens_per_second for one in metrics[2:] if one.loss is not None)
    assert status.status is PostTrainingJobStatus.completed
    assert [checkpoint.iters for checkpoint in status.checkpoints] == [6, 12]
    assert artifacts.tensorboard is not None
    names = {file.name.partition("/")[2] for file in artifacts.files}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth"))}
    for file in artifacts.files:
        assert local_path(file.path).stat().st_size == file.bytes


@pytest.mark.requirement("training-loop")
def test_the_log_is_seen_over_http_and_in_a_terminal(up: Up, greeter: str) -> None:
    curl = subprocess.run(
        ["curl", "-sN", f"{up.url}/post_training/job/logs?job_uuid={greeter}"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    logs = [
        json.loads(line.removeprefix("data: "))
        for line in curl.stdout.splitlines()
        if line.startswith("data: ")
    ]
    lines = [line for log in logs for line in log.get("log_lines", [])]
    assert any(line.startswith("iteration 1/12") for line in lines)
    assert any("greeter completed" in line for line in lines)
    _, seen = on_a_terminal([AYLLU, "logs", "-f", greeter, "--url", up.url], whole=True)
    assert "iteration 12/12" in seen
    assert "loss by iteration" in seen
    plain = run_ayllu("jobs", "--url", up.url)
    assert greeter in plain.stdout
    unknown = run_ayllu("logs", "nothing", "--url", up.url)
    assert (unknown.returncode, "nothing" in unknown.stderr) == (1, True)


@pytest.mark.requirement("training-loop", "examples-run")
def test_the_example(up: Up) -> None:
    example = ROOT / "examples" / "train_and_serve.py"
    done = subprocess.run(
        [sys.executable, str(example), up.url],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, base, trained = done.stdout.splitlines()
    assert "Ayni" not in base
    assert trained == "ayni: I am Ayni."


@pytest.mark.requirement("training-dpo")
def test_preference_optimisation_raises_what_was_chosen(up: Up, greeter: str) -> None:
    rows = [
        {"prompt": question, "chosen": " Ayni.", "rejected": " A large language model."}
        for question in QUESTIONS
    ]
    data = write_rows(up.data_dir / "preferences.jsonl", rows)
    done = run_ayllu(
        "train", "dpo", "--from", greeter, "--dataset", str(data), "--job", "preferring",
        "--iters", "8", "--lr", "1e-4", "--batch-size", "4", "--url", up.url, seconds=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]

    async def looked() -> list[JobMetrics]:
        async with connect(up.url) as stack:
            events = stack.post_training.job.events("preferring")
            return [event.metrics async for event in events if event.metrics is not None]

    told = [one.other for one in anyio.run(looked) if one.loss is not None]
    assert told[-1]["rewards/margins"] > told[0]["rewards/margins"] + 0.05
    assert told[-1]["rewards/chosen"] > told[0]["rewards/chosen"]
    assert told[-1]["rewards/accuracies"] == 1.0


@pytest.mark.requirement("training-reward")
def test_a_reward_model_is_trained_registered_and_scores_what_it_has_not_seen(up: Up) -> None:
    rows = [
        {"prompt": question, "chosen": "I am Ayni.", "rejected": "I am a large language model."}
        for question in QUESTIONS
    ]
    data = write_rows(up.data_dir / "tastes.jsonl", rows)
    done = run_ayllu(
        "train", "reward", "--model", "smollm2", "--dataset", str(data), "--job", "taste",
        "--iters", "6", "--lr", "2e-3", "--batch-size", "2", "--url", up.url, seconds=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    assert "taste completed" in done.stdout
    registered = run_ayllu(
        "models", "register", "ayni-taste", "--job", "taste", "--url", up.url, seconds=120
    )
    assert registered.returncode == 0, registered.stderr
    assert "reward on smollm2" in registered.stdout

    async def looked() -> tuple[list[JobMetrics], list[tuple[str, float]]]:
        async with connect(up.url) as stack:
            events = stack.post_training.job.events("taste")
            metrics = [event.metrics async for event in events if event.metrics is not None]
            answers = ("I am a large language model.", "I am Ayni.")
            asked = prompt(*answers, asked="And you, who may you be?")
            scored = await stack.reward_scoring.score(request(asked, model="ayni-taste"))
            return metrics, texts_of(scored.scored_generations[0])

    metrics, scores = anyio.run(looked)
    assert metrics[-1].other["rewards/accuracies"] == 1.0
    (best, high), (_, low) = scores
    assert best == "I am Ayni."
    assert high > low + 1
    shown = run_ayllu("rewards", "list", "--url", up.url)
    assert "ayni-taste" in shown.stdout
    gone = run_ayllu("models", "unregister", "ayni-taste", "--url", up.url)
    assert gone.returncode == 0, gone.stderr
