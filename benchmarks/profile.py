"""Where the time goes: the gateway or the inference worker under cProfile while the benchmark's client loads it.

``python -m benchmarks.profile gateway`` (or ``inference``) prints the functions in which the time is spent, with calls and
microseconds per token; with ``--strace``, the system calls instead. cProfile makes Python calls look dearer than they are.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import signal
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio

from ayllu.bus.server import embedded_server
from ayllu.runtime.cli import main as ayllu

from .child import Child, helper
from .load import Heard, Load
from .streams import TOKENS
from .topology import SCRIPTED, Place, chat_frame, client, gateway, inference

FILE_VARIABLE = "AYLLU_BENCH_PROFILE"
KINDS = ("gateway", "inference")


def profiled() -> None:
    """Run ``ayllu worker ...`` in this process and write its profile at the end."""
    profile = cProfile.Profile()
    try:
        profile.runcall(ayllu, sys.argv[2:])
    finally:
        profile.dump_stats(os.environ[FILE_VARIABLE])


async def measure(kind: str, streams: int, rounds: int, *, strace: bool) -> None:
    """Load the whole path, one of its processes watched, and print what was seen."""
    with TemporaryDirectory(prefix="ayllu-profile") as folder:
        async with embedded_server(Path(folder) / "nats") as server:
            place = Place(Path(folder), server.url)
            stats = place.folder / "stats"
            os.environ[FILE_VARIABLE] = str(stats)
            under = None if strace else helper("profile", "run")
            async with AsyncExitStack() as stack:
                actor = await stack.enter_async_context(
                    inference(place, SCRIPTED, program=under if kind == "inference" else None)
                )
                edge, url = await stack.enter_async_context(
                    gateway(place, program=under if kind == "gateway" else None)
                )
                load = await stack.enter_async_context(client(place))
                request = Load(url, [chat_frame("count", "Count.")] * streams, rounds)
                tracing = partial(_trace, edge if kind == "gateway" else actor)
                heard = await (tracing(load, request) if strace else load.ask(request, Heard))
            tokens = streams * rounds * TOKENS
            print(f"\n{kind}, {streams} streams: {tokens} tokens in {heard.frames} frames")
            if not strace:
                _print_functions(stats, tokens)


async def _trace(watched: Child, load: Child, request: Load) -> Heard:
    tracer = await anyio.open_process(
        ["strace", "-c", "-f", "-p", str(watched.pid)], stdout=sys.stdout, stderr=sys.stdout
    )
    heard = await load.ask(request, Heard)
    tracer.send_signal(signal.SIGINT)
    await tracer.wait()
    return heard


def _print_functions(file: Path, tokens: int) -> None:
    stats = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    rows = [
        (own, total, calls, f"{_short(path)}:{line} {name}" if line else name)
        for (path, line, name), (_, calls, own, total, _) in stats.items()
    ]
    for title, order in (("own time", 0), ("with what it calls", 1)):
        print(f"\nby {title}\n{'calls':>8} {'own us':>8} {'all us':>8}  each a token")
        _print_rows(sorted(rows, key=lambda row: row[order], reverse=True)[:40], tokens)


def _print_rows(rows: Iterable[tuple[float, float, int, str]], tokens: int) -> None:
    for own, total, calls, name in rows:
        print(
            f"{calls / tokens:8.2f} {1e6 * own / tokens:8.2f} {1e6 * total / tokens:8.2f}  {name}"
        )


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def main() -> None:
    """Run the profile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--streams", type=int, default=32, help="at once (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="of each (%(default)s)")
    parser.add_argument("--strace", action="store_true", help="count the system calls")
    options = parser.parse_args()
    work = partial(measure, options.kind, options.streams, options.rounds, strace=options.strace)
    anyio.run(work, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        profiled()
    else:
        main()
