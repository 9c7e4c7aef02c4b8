"""A fine-tuning job beside the same TRL script run by hand; from its last iteration to the first token of the model that it made;
what a killed child costs.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import anyio
import msgspec

from ayllu.client import Stack, connect
from ayllu.schemas import (
    ChatCompletionRequest,
    Dataset,
    DatasetColumnType,
    Dialog,
    FinetuningAlgorithm,
    HyperparameterSearch,
    JobEvent,
    LoggerConfig,
    LoraFinetuningConfig,
    Message,
    OptimizerConfig,
    OptimizerType,
    PostTrainingSFTRequest,
    RegisterModelRequest,
    Role,
    TrainingConfig,
)

from .child import AYLLU, running
from .numbers import alternate, ratios, spread
from .topology import REAL, Place

ITERATIONS = 60
WORDS = [
    "mountain",
    "river",
    "stone",
    "bread",
    "water",
    "field",
    "house",
    "road",
    "llama",
    "potato",
    "maize",
    "sun",
    "moon",
    "rain",
]


def dialogs(count: int = 32) -> list[dict[str, Any]]:
    """Return dialogs of some dozens of tokens."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me of the {WORDS[n % 14]} and of number {n}."},
                {
                    "role": "assistant",
                    "content": f"The {WORDS[n % 14]} is near the {WORDS[(n * 3 + 1) % 14]}, and {n} is a number.",
                },
            ]
        }
        for n in range(count)
    ]


def request(job: str, data: Path, iterations: int, **training: Any) -> PostTrainingSFTRequest:
    """Return what `trl_by_hand.py` does, as a job. Validation is one dialog, at the end."""
    dataset = Dataset({"messages": DatasetColumnType.dialog}, data.as_uri())
    held_out = data.with_name("held-out.jsonl")
    return PostTrainingSFTRequest(
        job_uuid=job,
        model="smollm2",
        dataset=dataset,
        validation_dataset=Dataset(dataset.columns, held_out.as_uri()),
        algorithm=FinetuningAlgorithm.lora,
        algorithm_config=LoraFinetuningConfig(["q_proj", "v_proj"], False, False, 8, 16),
        optimizer_config=OptimizerConfig(OptimizerType.adamw, 2e-4, 0.0, 0.0),
        training_config=TrainingConfig(
            n_epochs=0,
            batch_size=4,
            shuffle=True,
            n_iters=iterations,
            enable_activation_checkpointing=False,
            memory_efficient_fsdp_wrap=False,
            fsdp_cpu_offload=False,
            checkpoint_every=max(1, iterations // 10),
            evaluate_every=iterations,
            **training,
        ),
        hyperparam_search_config=HyperparameterSearch(),
        logger_config=LoggerConfig(tensorboard=False),
    )


@asynccontextmanager
async def deployment(place: Place, folder: Path) -> AsyncIterator[Stack]:
    """Run ``ayllu up`` with the real model, and connect to it."""
    data = folder / "train.jsonl"
    lines = [msgspec.json.encode(row) + b"\n" for row in dialogs()]
    data.write_bytes(b"".join(lines))
    data.with_name("held-out.jsonl").write_bytes(lines[0])
    config = place.config(REAL, f"\n[datasets]\nroots = [{str(folder)!r}]\n")
    command = [AYLLU, "up", "--port", "0", "--data-dir", str(folder / "data")]
    async with (
        running([*command, "--config", str(config)], place.log("up")) as up,
        connect(up.ready.split()[-1]) as stack,
    ):
        yield stack


async def follow(stack: Stack, job: str) -> AsyncIterator[JobEvent]:
    """Yield the events of a job to its end."""
    async for event in stack.post_training.job.events(job):
        yield event


async def measure_training(
    place: Place, pairs: int, *, iterations: int = ITERATIONS
) -> dict[str, Any]:
    """Measure a job and the script in turn, then the way to the first token, then what a killed child costs."""
    folder = Path(mkdtemp(dir=place.folder))
    async with deployment(place, folder) as stack:
        data = folder / "train.jsonl"
        # The first one makes torch weights of the GGUF file, which both then start from.
        await run_job(stack, request("first", data, 1))
        (made,) = (folder / "data" / "training" / "weights").glob("*/config.json")
        weights = made.parent

        async def job() -> dict[str, float]:
            return await run_job(stack, request(f"job-{uuid4().hex[:8]}", data, iterations))

        async def by_hand() -> dict[str, float]:
            return await run_by_hand(weights, data, folder / "out", iterations)

        # What a first round would warm up, the first job has.
        values = await alternate({"job": job, "by_hand": by_hand}, pairs, warm=False)
        served = [await serve(stack, "first") for _ in range(pairs)]
        resumed = await killed(stack, request("killed", data, iterations))
    seconds = {name: runs["seconds"] for name, runs in values.items()}
    return {
        "iterations": iterations,
        "job": spread(seconds["job"]),
        "by_hand": spread(seconds["by_hand"]),
        "ratio": ratios(seconds["job"], seconds["by_hand"]),
        "last_step_to_job_end": spread(values["job"]["end"]),
        "register_to_first_token": spread(served),
        "killed_to_next_iteration": resumed,
    }


async def run_job(stack: Stack, wanted: PostTrainingSFTRequest) -> dict[str, float]:
    """Run a job: the seconds from its request to its end, and from its last iteration to its end."""
    begun = time.perf_counter()
    await stack.post_training.supervised_fine_tune(wanted)
    last = begun
    async for event in follow(stack, wanted.job_uuid):
        if event.metrics is not None and event.metrics.loss is not None:
            last = time.perf_counter()
    ended = time.perf_counter()
    status = await stack.post_training.job.status(wanted.job_uuid)
    assert status.failure is None, status.failure
    return {"seconds": ended - begun, "end": ended - last}


async def run_by_hand(weights: Path, data: Path, out: Path, iterations: int) -> dict[str, float]:
    """Run the script: the seconds from its start to its end."""
    script = [sys.executable, "-W", "ignore", "-m", f"{__package__}.trl_by_hand"]
    begun = time.perf_counter()
    await anyio.run_process([*script, str(weights), str(data), str(out), str(iterations)])
    return {"seconds": time.perf_counter() - begun}


async def serve(stack: Stack, job: str) -> float:
    """Serve what a job made: the seconds from the wish to the first token. The name goes again."""
    name = f"model-{uuid4().hex[:8]}"
    chat = ChatCompletionRequest(
        model=name, dialog=Dialog(message=Message(role=Role.user, content="Hello")), max_tokens=2
    )
    begun = time.perf_counter()
    await stack.models.register(RegisterModelRequest(name=name, job_uuid=job))
    async for _ in stack.stream_chat_completion(chat):
        break
    taken = time.perf_counter() - begun
    await stack.models.unregister(name)
    return taken


async def killed(stack: Stack, wanted: PostTrainingSFTRequest) -> float:
    """Kill a child after a third of its iterations: the seconds until the next attempt has done one."""
    await stack.post_training.supervised_fine_tune(wanted)
    at, found = wanted.training_config.n_iters // 3, None
    begun = 0.0
    async for event in follow(stack, wanted.job_uuid):
        if event.metrics is None or event.metrics.loss is None:
            continue
        if found is None and event.metrics.iteration >= at:
            found = child_of(wanted.job_uuid)
            os.kill(found, signal.SIGKILL)
            begun = time.perf_counter()
        elif found is not None and event.attempt == 2:
            return time.perf_counter() - begun
    raise RuntimeError("the job ended before it went on")


def child_of(job: str) -> int:
    """Return the process that trains a job."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_text().split("\0")
            except OSError:
                continue  # It has just ended.
            if "ayllu.actors.training.child" in words and f"/jobs/{job}" in " ".join(words):
                return int(folder.name)
    raise RuntimeError(f"nothing trains {job}")


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        (f"a job of {result['iterations']} iterations, s", str(result["job"])),
        ("the script by hand, s", str(result["by_hand"])),
        ("job / script", str(result["ratio"])),
        ("last iteration to the job's end, s", str(result["last_step_to_job_end"])),
        ("register to the first token, s", str(result["register_to_first_token"])),
        ("killed child to the next iteration, s", f"{result['killed_to_next_iteration']:.3g}"),
    ]
