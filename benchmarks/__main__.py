"""``make bench``: measures, prints a table, and writes everything as JSON. docs/performance.md says what it means."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgspec

from ayllu.bus.server import embedded_server

from . import (
    banks,
    code,
    idle,
    machine,
    model,
    openai_streams,
    retrieval,
    rewards,
    servers,
    sharing,
    startup,
    streams,
    synthesis,
    teams,
    training,
    turns,
    unread,
    upstream,
    vectors,
    waiting,
)
from .topology import REAL, SCRIPTED, Place

PAIRS = 7
START_UPS = 3


class Quick(msgspec.Struct):
    """How much to measure."""

    pairs: int
    tiny: bool


Result = dict[str, Any]
Rows = list[tuple[str, str]]


def _streams(count: int) -> Callable[[Place, Quick], Awaitable[Result]]:
    return lambda place, quick: streams.measure_streams(place, quick.pairs, count, tiny=quick.tiny)


def _upstream(count: int) -> Callable[[Place, Quick], Awaitable[Result]]:
    return lambda place, quick: upstream.measure_upstream(
        place, quick.pairs, count, tiny=quick.tiny
    )


def _openai_streams(place: Place, quick: Quick) -> Awaitable[Result]:
    return openai_streams.measure_openai_streams(place, quick.pairs, 32, tiny=quick.tiny)


def _turns(count: int) -> Callable[[Place, Quick], Awaitable[Result]]:
    return lambda place, quick: turns.measure_turns(place, quick.pairs, count, tiny=quick.tiny)


def _resume(place: Place, quick: Quick) -> Awaitable[Result]:
    return turns.measure_resume(place, quick.pairs)


def _executors(place: Place, quick: Quick) -> Awaitable[Result]:
    return turns.measure_executors(place, min(quick.pairs, 3))


def _waiting(place: Place, quick: Quick) -> Awaitable[Result]:
    return waiting.measure_waiting(place, 16 if quick.tiny else 1000, tiny=quick.tiny)


def _teams(place: Place, quick: Quick) -> Awaitable[Result]:
    return teams.measure_teams(place, quick.pairs, tiny=quick.tiny)


def _model(place: Place, quick: Quick) -> Awaitable[Result]:
    if quick.tiny:
        return model.measure_model(place, quick.pairs, models=SCRIPTED, chats=2, max_tokens=8)
    return model.measure_model(place, quick.pairs)


def _idle(place: Place, quick: Quick) -> Awaitable[Result]:
    return idle.measure_idle(place, (10, 20) if quick.tiny else idle.STEPS)


def _unread(place: Place, quick: Quick) -> Awaitable[Result]:
    return unread.measure_unread(place, quick.pairs, 2 if quick.tiny else unread.CLIENTS)


def _vectors(place: Place, quick: Quick) -> Awaitable[Result]:
    return vectors.measure_vectors(place, quick.pairs, 5_000 if quick.tiny else 100_000)


def _ingest(place: Place, quick: Quick) -> Awaitable[Result]:
    return banks.measure_ingest(place, quick.pairs, tiny=quick.tiny)


def _restart(place: Place, quick: Quick) -> Awaitable[Result]:
    return banks.measure_restart(place, quick.pairs, 300 if quick.tiny else 20_000)


def _retrieval(place: Place, _: Quick) -> Awaitable[Result]:
    return retrieval.measure_retrieval(place)


def _sharing(place: Place, quick: Quick) -> Awaitable[Result]:
    return sharing.measure_sharing(place, min(quick.pairs, 3), tiny=quick.tiny)


def _startup(place: Place, quick: Quick) -> Awaitable[Result]:
    models = {"scripted": SCRIPTED} if quick.tiny else None
    return startup.measure_startup(place, min(quick.pairs, START_UPS), models=models)


def _synthesis(place: Place, quick: Quick) -> Awaitable[Result]:
    batch = synthesis.Batch(2, 2, 4) if quick.tiny else None
    models = SCRIPTED if quick.tiny else REAL
    return synthesis.measure_synthesis(place, quick.pairs, models=models, batch=batch)


def _training(place: Place, quick: Quick) -> Awaitable[Result]:
    iterations = 3 if quick.tiny else training.ITERATIONS
    return training.measure_training(place, min(quick.pairs, 3), iterations=iterations)


def _rewards(place: Place, quick: Quick) -> Awaitable[Result]:
    return rewards.measure_rewards(place, quick.pairs, tiny=quick.tiny)


def _code(place: Place, quick: Quick) -> Awaitable[Result]:
    return code.measure_code(place, quick.pairs, tiny=quick.tiny)


def _llama_cpp(place: Place, quick: Quick) -> Awaitable[Result]:
    return servers.measure_llama_cpp(place, quick.pairs, tiny=quick.tiny)


def _vllm(place: Place, quick: Quick) -> Awaitable[Result]:
    return servers.measure_vllm(place, quick.pairs, tiny=quick.tiny)


SCENARIOS: dict[
    str, tuple[str, Callable[[Place, Quick], Awaitable[Result]], Callable[[Result], Rows]]
] = {
    "streams-1": ("1 stream of 128 scripted tokens", _streams(1), streams.rows),
    "streams-32": ("32 streams of 128 scripted tokens", _streams(32), streams.rows),
    "upstream-1": ("1 stream of 128 tokens of another server", _upstream(1), upstream.rows),
    "upstream-32": ("32 streams of 128 tokens of another server", _upstream(32), upstream.rows),
    "openai-streams": (
        "32 streams of 128 scripted tokens over OpenAI's protocol",
        _openai_streams,
        openai_streams.rows,
    ),
    "turns-1": ("1 turn of 128 scripted tokens", _turns(1), turns.rows),
    "turns-32": ("32 turns of 128 scripted tokens", _turns(32), turns.rows),
    "resume": ("a turn is followed again", _resume, turns.resume_rows),
    "executors": ("turns with slow tools", _executors, turns.executor_rows),
    "waiting": ("turns that wait for busy agents", _waiting, waiting.rows),
    "teams": ("agents that work together", _teams, teams.rows),
    "model": ("8 chats with the real model", _model, model.rows),
    "llama-server": ("chats: ayllu and llama.cpp's HTTP server", _llama_cpp, servers.rows),
    "vllm-server": ("chats: ayllu and vLLM's OpenAI server", _vllm, servers.rows),
    "vectors": ("search in 100,000 vectors of 384 numbers", _vectors, vectors.rows),
    "ingest": ("documents into a memory bank", _ingest, banks.ingest_rows),
    "restart": ("a memory actor with 20,000 documents restarts", _restart, banks.restart_rows),
    "retrieval": ("how well a memory bank finds", _retrieval, retrieval.rows),
    "unread": ("50 clients that never read beside 50 that do", _unread, unread.rows),
    "idle": ("idle websockets", _idle, idle.rows),
    "synthesis": ("32 candidates of 32 tokens with the real model", _synthesis, synthesis.rows),
    "training": ("a fine-tuning job", _training, training.rows),
    "rewards": ("a classification model as a reward model", _rewards, rewards.rows),
    "code": ("code that is not trusted", _code, code.rows),
    "sharing": ("two inference workers against one", _sharing, sharing.rows),
    "startup": ("start-up", _startup, startup.rows),
}


ELSEWHERE = ("vllm-server",)
"""What needs an environment of its own (``make bench-vllm``)."""


async def measure(names: list[str], quick: Quick) -> dict[str, Any]:
    """Measure, and print each table as soon as it is known."""
    report: dict[str, Any] = {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "pairs": quick.pairs,
        "load_before": machine.load(),
        "results": {},
    }
    print(f"{report['machine']}\n{report['versions']}\nload {report['load_before']}")
    with TemporaryDirectory(prefix="ayllu-bench") as folder:
        async with embedded_server(Path(folder) / "nats") as server:
            place = Place(Path(folder), server.url)
            for name in names:
                title, run, rows = SCENARIOS[name]
                result = report["results"][name] = await run(place, quick)
                print(f"\n{title}: median (lowest .. highest)")
                for what, value in rows(result):
                    print(f"  {what:40} {value}", flush=True)
    report["load_after"] = machine.load()
    return report


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    here = [name for name in SCENARIOS if name not in ELSEWHERE]
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=here)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="runs of each (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="(%(default)s)")
    parser.add_argument(
        "--tiny", action="store_true", help="try the harness; the figures mean nothing"
    )
    options = parser.parse_args()
    quick = Quick(options.pairs, options.tiny)
    report = anyio.run(partial(measure, options.only, quick), backend_options={"use_uvloop": True})
    options.out.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
