"""The servers that engines bring along, in processes of their own: ``python -m benchmarks.engine_servers KIND MODEL SLOTS CONTEXT``.

Prints ``ready URL``; ends with its stdin.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from urllib.error import URLError

from ayllu.runtime.supervisor import open_listener

START_SECONDS = 300.0


def free_port() -> int:
    """Return a port that is free now."""
    with open_listener("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


def serve_llama_cpp(model: str, slots: int, context: int) -> None:
    """Run llama.cpp's HTTP server: its own defaults, but for slots, context, and as many threads as our engine takes."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx = context * slots
    parameters.n_parallel = slots
    threads = max(1, (os.cpu_count() or 1) // 2)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = free_port()
    parameters.ui = False
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    _ready(f"http://127.0.0.1:{parameters.port}/v1/chat/completions")
    sys.stdin.read()
    del server


def serve_vllm(model: str, slots: int, context: int) -> None:
    """Run vLLM's OpenAI server, with the settings that `servers.VLLM` gives our engine."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--model", model]
    command += ["--served-model-name", "model", "--max-model-len", str(context)]
    command += ["--max-num-seqs", str(slots), "--dtype", "float32", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(1 << 30), "--disable-log-stats"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment["VLLM_LOGGING_LEVEL"] = "WARNING"
    with subprocess.Popen(command, stdout=sys.stderr, env=environment) as server:
        try:
            _wait(f"http://127.0.0.1:{port}/health", server)
            _ready(f"http://127.0.0.1:{port}/v1/chat/completions")
            sys.stdin.read()
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(URLError, OSError):
            urllib.request.urlopen(url, timeout=2).read()
            return
        time.sleep(0.5)
    raise RuntimeError("vLLM's server did not start")


def _ready(url: str) -> None:
    sys.stdout.write(f"ready {url}\n")
    sys.stdout.flush()


def _leave(*_: object) -> None:
    sys.exit(0)


if __name__ == "__main__":
    # So that what was started is ended, too.
    signal.signal(signal.SIGTERM, _leave)
    kind, path, count, length = sys.argv[1:]
    {"llama_cpp": serve_llama_cpp, "vllm": serve_vllm}[kind](path, int(count), int(length))
