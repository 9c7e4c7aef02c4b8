"""Candidates of synthetic data, in a call and in a job, beside the engine called directly with the same batch.

``python -m benchmarks.synthesis`` is the process in which the engine is called directly.
"""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import anyio
import msgspec

from ayllu.actors.engines.engine import ChatMessage, Generation, Prompt
from ayllu.actors.registry import ModelSpec, build_engine
from ayllu.actors.synthetic.filters import candidate_seed
from ayllu.bus import connect
from ayllu.bus.client import client
from ayllu.runtime.supervisor import BUS_URL_VARIABLE
from ayllu.schemas import (
    FilteringFunction,
    Message,
    PostTrainingJobs,
    RewardScoringConfig,
    Role,
    SamplingParams,
    SamplingStrategy,
    SyntheticDataGeneration,
    SyntheticDataGenerationRequest,
    SyntheticDataJobRequest,
    SyntheticDataJobs,
)

from .child import AYLLU, answer_lines, helper, run, running
from .model import question
from .numbers import alternate, ratios, spread
from .topology import REAL, Place, inference

PROMPTS, CANDIDATES, MAX_TOKENS = 8, 4, 32
SEED = 7
REWARDS = """
[synthetic_data]
at_once = 16
[[rewards]]
name = "exact"
engine = "program"
function = "exact_answer"
"""


class Batch(msgspec.Struct):
    """What the engine is asked for."""

    prompts: int
    candidates: int
    max_tokens: int


class Done(msgspec.Struct):
    """What came of it."""

    seconds: float
    tokens: int


async def serve_engine(spec: str) -> None:
    """Answer lines with an engine and nothing else: all candidates of a batch at once, with the seeds that ayllu gives them."""
    async with build_engine(msgspec.json.decode(spec, type=ModelSpec)) as engine:

        async def answer(line: bytes) -> Done:
            batch = msgspec.json.decode(line, type=Batch)
            tokens = 0

            async def generate(prompt: int, number: int) -> None:
                nonlocal tokens
                asked = Prompt(messages=[ChatMessage("user", question(prompt))])
                seed = candidate_seed(SEED, prompt, 0, number)
                sampling = SamplingParams(1.0, SamplingStrategy.top_p, seed=seed)
                async for delta in engine.generate(asked, Generation(sampling, batch.max_tokens)):
                    tokens += delta.completion_tokens

            begun = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for prompt in range(batch.prompts):
                    for number in range(batch.candidates):
                        tasks.start_soon(generate, prompt, number)
            return Done(time.perf_counter() - begun, tokens)

        await answer_lines(answer)


def request(spec: dict[str, Any], batch: Batch) -> SyntheticDataGenerationRequest:
    """Return what the engine is asked for directly, as a request; its answers are scored by a program too."""
    return SyntheticDataGenerationRequest(
        [Message(Role.user, question(number)) for number in range(batch.prompts)],
        filtering_function=FilteringFunction.top_k,
        reward_scoring=RewardScoringConfig("exact"),
        model=spec["name"],
        num_candidates=batch.candidates,
        k=1,
        temperature=1.0,
        seed=SEED,
        max_tokens=batch.max_tokens,
        references=["an answer"] * batch.prompts,
    )


async def measure_synthesis(
    place: Place, pairs: int, *, models: str = REAL, batch: Batch | None = None
) -> dict[str, Any]:
    """Measure candidates a second."""
    batch = batch or Batch(PROMPTS, CANDIDATES, MAX_TOKENS)
    [spec] = msgspec.toml.decode(models)["models"]
    count = batch.prompts * batch.candidates
    asked = request(spec, batch)
    config = place.config(models + REWARDS)
    worker = [AYLLU, "worker", "rewards", "datasets", "training", "synthetic_data"]
    environment = {BUS_URL_VARIABLE: place.bus}
    data = ["--config", str(config), "--data-dir", str(place.folder / "data")]
    direct_command = helper("synthesis", msgspec.json.encode(spec).decode())
    async with (
        running(direct_command, place.log("direct")) as direct,
        inference(place, models),
        running([*worker, *data], place.log("data"), environment=environment),
        connect(place.bus) as bus,
    ):
        tokens: set[int] = set()

        async def call() -> dict[str, float]:
            begun = time.perf_counter()
            response = await client(SyntheticDataGeneration, bus).generate(asked)
            seconds = time.perf_counter() - begun
            assert response.statistics is not None
            tokens.add(response.statistics["completion_tokens"])
            return {"candidates_per_second": count / seconds}

        async def job() -> dict[str, float]:
            begun, name = time.perf_counter(), uuid4().hex
            await client(SyntheticDataJobs, bus).start(SyntheticDataJobRequest(name, asked))
            async for _ in client(PostTrainingJobs, bus).events(name):
                pass
            seconds = time.perf_counter() - begun
            counts = await client(SyntheticDataJobs, bus).statistics(name)
            assert counts.before.count == count
            return {"candidates_per_second": count / seconds}

        async def engine() -> dict[str, float]:
            done = await direct.ask(batch, Done)
            tokens.add(done.tokens)
            return {"candidates_per_second": count / done.seconds}

        values = await alternate({"call": call, "job": job, "engine": engine}, pairs)
    rates = {name: values[name]["candidates_per_second"] for name in values}
    return {
        **{name: {"candidates_per_second": spread(runs)} for name, runs in rates.items()},
        "tokens": sorted(tokens),
        "call_ratio": ratios(rates["call"], rates["engine"]),
        "job_ratio": ratios(rates["job"], rates["engine"]),
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        *(
            (f"{name}: candidates/s", str(result[name]["candidates_per_second"]))
            for name in ("call", "job", "engine")
        ),
        ("tokens of all candidates", ", ".join(map(str, result["tokens"]))),
        ("call / engine", str(result["call_ratio"])),
        ("job / engine", str(result["job_ratio"])),
    ]


if __name__ == "__main__":
    import sys

    run(serve_engine, sys.argv[1])
