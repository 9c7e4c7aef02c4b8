"""SmolLM2 in Hugging Face's format, small and soon started: for the engine vllm, and on vLLM's own server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from ayllu.actors.engines.openai.engine import OpenAIEngine
from ayllu.actors.engines.settings import OpenAISettings, VllmSettings
from ayllu.actors.engines.vllm.engine import VllmEngine
from ayllu.runtime.supervisor import open_listener

from .checkpoints import trained
from .engines import CONTEXT, SLOTS
from .processes import wait_for

SETTINGS: dict[str, Any] = {"dtype": "float32", "eager": True, "cache_gib": 1}
"""What suits two cores and a test: nothing is compiled."""


def model_folder() -> Path:
    """Return the folder of SmolLM2, with its tokenizer and chat template."""
    return trained() / "base"


def vllm_engine(*, context: int = CONTEXT, slots: int = SLOTS, **settings: Any) -> VllmEngine:
    """Return an engine that is not started; starting takes half a minute."""
    made = VllmSettings(**{**SETTINGS, **settings})
    return VllmEngine(model_folder(), context=context, slots=slots, settings=made)


@contextmanager
def vllm_server(*further: str) -> Iterator[str]:
    """Run vLLM's own server until the end of the block, perhaps with further arguments, with the address of its API."""
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--model", str(model_folder()), "--served-model-name", "m"]
    command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(SLOTS), "--enforce-eager"]
    command += ["--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 30), *further]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment["VLLM_LOGGING_LEVEL"] = "WARNING"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:

        def healthy() -> bool:
            assert process.poll() is None
            try:
                return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
            except httpx2.TransportError:
                return False

        try:
            wait_for("vLLM's server", healthy, 200)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def engine_before_vllm(url: str) -> OpenAIEngine:
    """Return the engine openai in front of vLLM's server."""
    settings = OpenAISettings(tools=False, continuation="vllm")
    return OpenAIEngine(url, "m", context=CONTEXT, slots=SLOTS, settings=settings)
