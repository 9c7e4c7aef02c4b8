"""A real llama.cpp HTTP server on the small model, in a process of its own: ``python -m support.openai_servers CONTEXT SLOTS``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.processes import read_ready_line

from ayllu.actors.engines.engine import InferenceEngine
from ayllu.actors.engines.openai.engine import OpenAIEngine
from ayllu.actors.engines.settings import OpenAISettings
from ayllu.actors.files import locate
from ayllu.actors.registry import default_models

KEY = "sk-llama-0123456789"
MODEL = "smollm2"
SETTINGS = OpenAISettings(
    tools=False, continuation="trailing", extra={"top_k": 0, "min_p": 0.0}, first_token_seconds=60.0
)
"""What llama.cpp's server can do with this model; its own defaults filter tokens."""


@contextmanager
def llama_server(*, context: int, slots: int) -> Iterator[str]:
    """Run the server until the end of the block, with the address of its API."""
    command = [sys.executable, "-m", "support.openai_servers", str(context), str(slots)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        try:
            yield read_ready_line(process) + "/v1"
        finally:
            process.terminate()


def openai_engine(
    url: str, *, context: int, slots: int, settings: OpenAISettings = SETTINGS
) -> InferenceEngine:
    """Return the engine in front of a server."""
    return OpenAIEngine(url, MODEL, context=context, slots=slots, settings=settings, key=KEY)


def serve(context: int, slots: int) -> None:
    """Serve the small model until stdin ends, with the settings of the engine ``llama_cpp``."""
    import xllamacpp as _xllamacpp

    xllamacpp: Any = _xllamacpp  # an extension module without type information
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(locate(default_models()[0].source))
    parameters.model_alias = {MODEL}
    parameters.n_ctx = context * slots
    parameters.n_parallel = slots
    parameters.n_batch = parameters.n_ubatch = 128
    threads = max(1, (os.cpu_count() or 1) // 2)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.ctx_shift = False
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [KEY]
    parameters.ui = False
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    print(f"ready {server.listening_address}", flush=True)  # noqa: T201
    sys.stdin.read()


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
