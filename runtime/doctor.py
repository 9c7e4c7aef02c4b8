"""``ayllu doctor``: what is installed, configured, reachable and served, what is wrong, and what to do about it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

import anyio
import anyio.to_thread

from ..actors.embedding.registry import build_embedder
from ..actors.registry import build_engine
from ..actors.sandbox import require_sandbox
from ..bus.bus import Bus, connect
from ..bus.client import served_models
from ..bus.server import find_program
from ..bus.transport import Message
from ..schemas import AylluError, BusError, Wire, decode
from .config import Config, load_config
from .health import Readiness

ANSWER_SECONDS = 3.0
LOW_SPACE, NO_SPACE = 2 << 30, 200 << 20
"""Free bytes below which the data directory is worth a warning, and below which nothing should be started."""
EXTRAS = {
    "local": "to run gateway, nats-server and llama.cpp on this machine",
    "train": "to train models",
    "vllm": "to serve models on GPUs",
}

Status = Literal["ok", "warn", "fail"]


class Finding(Wire, frozen=True, omit_defaults=True):
    """One thing that was looked at.

    Attributes:
        name: what.
        status: ``ok``, ``warn`` (something will not work, or is not there yet) or ``fail`` (it is wrong).
        found: what was seen.
        advice: what to do about it.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """What to look at.

    Attributes:
        url: the gateway's address.
        url_given: whether somebody expects a gateway there; else its absence is only a warning.
        bus_url: the bus's address; None to look for that of ``ayllu up`` in the data directory.
        config: the configuration file.
        data_dir: where ``ayllu up`` keeps its data.
    """

    url: str
    url_given: bool
    bus_url: str | None
    config: Path | None
    data_dir: Path


async def examine(options: DoctorOptions, report: Callable[[Finding], None]) -> None:
    """Look at everything, and report each finding as it comes."""
    for finding in packages():
        report(finding)
    report(await anyio.to_thread.run_sync(nats_program, options.bus_url is not None))
    config, finding = configuration(options.config)
    report(finding)
    for finding in model_files(config):
        report(finding)
    report(await anyio.to_thread.run_sync(sandbox))
    report(data_directory(options.data_dir))
    for finding in await bus(options):
        report(finding)
    for finding in await gateway(options):
        report(finding)


def packages() -> Iterator[Finding]:
    """Look at what is installed: what every program needs, and the extras."""
    yield Finding("ayllu", "ok", f"{version('ayllu')} on Python {platform.python_version()}")
    wanted: dict[str, list[str]] = {}
    for line in requires("ayllu") or ():
        name = re.match(r"[\w.-]+", line)
        only_for = re.search(r"""extra == ["'](\w+)["']""", line)
        if name is not None:
            wanted.setdefault(only_for[1] if only_for else "", []).append(name[0])
    for extra, names in wanted.items():
        if extra and extra not in EXTRAS:
            continue
        versions = {name: _version(name) for name in names}
        missing = [name for name, found in versions.items() if found is None]
        found = ", ".join(f"{name} {number}" for name, number in versions.items() if number)
        if not extra:
            what, advice = "packages", "pip install ayllu"
            status: Status = "fail" if missing else "ok"
        else:
            what, advice = f"extra {extra}", f"{EXTRAS[extra]}: pip install 'ayllu[{extra}]'"
            # The others are for few machines, and their absence is no news.
            status = "warn" if missing and extra == "local" else "ok"
        if missing:
            gone = f"not installed: {', '.join(missing)}"
            yield Finding(what, status, f"{found}; {gone}" if found else gone, advice)
        else:
            yield Finding(what, status, found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def nats_program(external: bool) -> Finding:
    """Look for the nats-server program; one is needed unless the bus is external."""
    try:
        program = find_program()
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS,
            check=True,
        )
    except BusError as error:
        return Finding("nats-server", "warn" if external else "fail", "none", error.message)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("nats-server", "fail", f"it does not run: {error}", "install it anew")
    return Finding("nats-server", "ok", f"{done.stdout.strip()} at {program}")


def configuration(path: Path | None) -> tuple[Config, Finding]:
    """Read the configuration; where it is wrong, the others look at the defaults."""
    try:
        config = load_config(path)
    except AylluError as error:
        advice = "mend it; docs/configuration.md has every value"
        return Config(), Finding("configuration", "fail", error.message, advice)
    return config, Finding("configuration", "ok", str(path) if path else "none: the defaults hold")


def model_files(config: Config) -> Iterator[Finding]:
    """Look whether this machine could serve the configured models."""
    for spec in config.served_models:
        try:
            build_engine(spec)
        except AylluError as error:
            advice = "mend `source`, or install what is missing; other machines may serve it"
            yield Finding(f"model {spec.name}", "warn", error.message, advice)
        else:
            yield Finding(f"model {spec.name}", "ok", f"{spec.engine}, {spec.source}")
    for embedder in config.served_embedders:
        try:
            build_embedder(embedder)
        except AylluError as error:
            advice = "mend `source`, or install what is missing; memory banks need it"
            yield Finding(f"embedder {embedder.name}", "warn", error.message, advice)
        else:
            yield Finding(f"embedder {embedder.name}", "ok", embedder.source)


def sandbox() -> Finding:
    """Look whether code that is not trusted can be held here; it is tried, really."""
    try:
        program = require_sandbox()
    except AylluError as error:
        without = "without it there is no code_interpreter, and no code_tests"
        return Finding("sandbox", "warn", error.message, without)
    return Finding("sandbox", "ok", f"bubblewrap at {program}")


def data_directory(path: Path) -> Finding:
    """Look whether ``ayllu up`` could keep its data there."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding("data directory", "fail", f"{path} cannot be written", "choose a --data-dir")
    free = shutil.disk_usage(existing).free
    found = f"{path}, {free / (1 << 30):.1f} GiB free"
    if free < LOW_SPACE:
        status: Status = "fail" if free < NO_SPACE else "warn"
        return Finding(
            "data directory", status, found, "free some space: a full disk stops the bus"
        )
    return Finding("data directory", "ok", found)


async def bus(options: DoctorOptions) -> list[Finding]:
    """Look at the bus, and at what is served there."""
    url, file = options.bus_url, options.data_dir / "bus.url"
    if url is None:
        try:
            url = file.read_text(encoding="utf-8").strip()
        except OSError:
            return [Finding("bus", "ok", "none is running here", "`ayllu up` starts its own")]
    address = urlsplit(url).netloc.rpartition("@")[2]  # without the credentials
    try:
        with anyio.fail_after(ANSWER_SECONDS):
            async with connect(url, name="ayllu doctor") as found:
                stores = await _has_jetstream(found)
                models = await served_models(found)
    except (AylluError, TimeoutError) as error:
        why = error.message if isinstance(error, AylluError) else "no answer"
        if options.bus_url is None:  # What an `ayllu up` that has ended left behind.
            return [Finding("bus", "warn", f"{address}: {why}", "`ayllu up` starts it")]
        advice = "is the nats-server running, and are address and credentials right?"
        return [Finding("bus", "fail", f"{address}: {why}", advice)]
    if not stores:
        return [Finding("bus", "fail", f"{address}: no JetStream", "start nats-server with -js")]
    return [
        Finding("bus", "ok", f"{address}, with JetStream"),
        _served("models on the bus", [one.name for one in models if one.kind != "reward"]),
    ]


async def _has_jetstream(found: Bus) -> bool:
    answered = anyio.Event()
    answers: list[Message] = []

    def note(message: Message) -> None:
        answers.append(message)
        answered.set()

    inbox = found.transport.inbox()
    async with found.transport.subscribe(inbox, note):
        await found.transport.publish("$JS.API.INFO", b"", reply=inbox)
        await answered.wait()
    return not answers[0].no_responders and b'"error"' not in answers[0].payload


def _served(name: str, models: list[str]) -> Finding:
    if models:
        return Finding(name, "ok", ", ".join(sorted(set(models))))
    return Finding(name, "fail", "none", "start `ayllu worker inference`, and read what it says")


async def gateway(options: DoctorOptions) -> list[Finding]:
    """Look at the gateway: does it answer, and is it ready?"""
    url = options.url.rstrip("/")
    try:
        fetch = partial(_fetch, f"{url}/readyz")
        status, body = await anyio.to_thread.run_sync(fetch, abandon_on_cancel=True)
        readiness = decode(body, Readiness)
    except (OSError, HTTPException, ValueError) as error:
        why = f"{url}: {getattr(error, 'reason', None) or error}"
        gone: Status = "fail" if options.url_given else "warn"
        return [Finding("gateway", gone, why, "`ayllu up` starts one; --url says where it is")]
    except AylluError:
        what = f"{url} answers with {status}, but is no gateway of ours"
        return [Finding("gateway", "fail", what, "give the gateway's address as --url")]
    if readiness.ready:
        return [Finding("gateway", "ok", f"{url} is ready")]
    missing = "; ".join(check.why for check in readiness.checks.values() if not check.ok)
    advice = "start what is missing (`ayllu worker inference`), or read its log"
    return [Finding("gateway", "fail", f"{url} is not ready: {missing}", advice)]


def _fetch(url: str) -> tuple[int, bytes]:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("not an HTTP address")
    try:
        # A proxy of the environment is not asked: it would answer for the gateway.
        with build_opener(ProxyHandler({})).open(url, timeout=ANSWER_SECONDS) as reply:
            return reply.status, reply.read(1 << 20)
    except HTTPError as error:
        with error:
            return error.code, error.read(1 << 20)
