"""The embedded engine: llama.cpp in this process, through xllamacpp. It serves GGUF models, needs no torch.

Whoever looks for how llama.cpp behaves: requests and answers are those of its server's HTTP API, as Python dicts.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anyio
import anyio.to_thread
import xllamacpp as _xllamacpp

from ...schemas import (
    EngineDead,
    EngineError,
    InvalidRequest,
    SamplingParams,
    SamplingStrategy,
    Unsupported,
)
from .engine import TOP_LOGPROBS, Capability, Delta, Generation, Prompt
from .grammar import grammar_of
from .llama_cpp_call import LlamaCppCall

log = logging.getLogger(__name__)
xllamacpp: Any = _xllamacpp  # an extension module without type information

CLOSE_SECONDS = 5.0
"""How long a cancelled generation is waited for. llama.cpp notices within one batch, mostly below a second."""
BATCH_TOKENS = 128
"""Tokens of one step of the prefill: a cancel is noticed after each, so larger ones are faster and deafer."""
PROMPT_CACHE_MIB = 512
"""Memory for prompts that lost their slot; llama.cpp's own limit is 8 GiB."""
_PADDING = 1024

_SAMPLERS = MappingProxyType(
    {
        SamplingStrategy.greedy: ["top_k"],
        SamplingStrategy.top_p: ["temperature", "top_p"],
        SamplingStrategy.top_k: ["top_k", "temperature"],
    }
)
"""All that is applied, in this order: llama.cpp's own defaults (min_p, penalties, ...) are left out, so that a
strategy means what it says."""


class LlamaCppEngine:
    """Runs a GGUF model on this machine's CPU (or what xllamacpp was built for).

    Every generation blocks a thread of the engine's own pool, one a slot; it is loaded once and may be used from any
    event loop, one at a time.

    Args:
        model: the GGUF file; it is mapped, so that engines of one file share the memory of its weights.
        context: the longest prompt and answer together, in tokens.
        slots: how many generations run at once.
        adapter: a LoRA in GGUF that is applied to all of them.
    """

    name = "llama_cpp"

    def __init__(
        self, model: Path, *, context: int = 4096, slots: int = 4, adapter: Path | None = None
    ) -> None:
        self.context = context
        self.slots = slots
        self.capabilities: frozenset[Capability] = frozenset(
            ("json_schema", "answer_choices", "logprobs", "continuation")
        )
        self._model = model
        self._adapter = adapter
        self._folder: Path | None = None
        self._server: Any = None
        self._threads: ThreadPoolExecutor | None = None
        self._free = anyio.Semaphore(slots)
        self._running: set[LlamaCppCall] = set()
        self._death: str | None = None

    @property
    def running(self) -> int:
        """How many generations hold a slot."""
        return len(self._running)

    async def __aenter__(self) -> LlamaCppEngine:
        """Load the model (a second for a small one; cancelling waits for the end of the loading).

        Raises:
            EngineError: it cannot be loaded.
        """
        limiter = anyio.CapacityLimiter(1)  # loading takes no thread from others
        try:
            await anyio.to_thread.run_sync(self._load, limiter=limiter)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._unload, limiter=limiter)
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Unload the model; generations that still run are cancelled."""
        self._death = self._death or f"the engine of {self._model.name} was closed"
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(CLOSE_SECONDS):
                calls = tuple(self._running)
                for call in calls:
                    call.cancel(EngineDead(self._death))
                for call in calls:
                    await call.ended.wait()
            if self._running:
                # The threads keep the server alive until they end; it cannot be unloaded under them.
                log.error("%d generations did not end in time", len(self._running))
            await anyio.to_thread.run_sync(self._unload, limiter=anyio.CapacityLimiter(1))

    def _load(self) -> None:
        # mkdtemp: only this user may enter the folder with the socket of llama.cpp's HTTP listener.
        self._folder = Path(tempfile.mkdtemp(prefix="ayllu-llama-"))
        try:
            self._server = xllamacpp.Server(self._parameters(self._folder))
        except Exception as error:
            loaded = self._model.name
            if self._adapter is not None:
                loaded += f" with the adapter {self._adapter.name}"
            raise EngineError(f"llama.cpp cannot load {loaded}: {error}") from error
        self._check_context()
        self._threads = ThreadPoolExecutor(self.slots, thread_name_prefix="llama.cpp")
        self._death = None

    def _parameters(self, folder: Path) -> Any:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self._model)
        if self._adapter is not None:
            parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(self._adapter), 1.0)]
        parameters.n_ctx = self.context * self.slots  # llama.cpp divides it among the slots
        parameters.n_parallel = self.slots
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        # llama.cpp's threads spin at barriers: one that has no core to itself stalls all others. (Two threads on two cores
        # gave 80 tokens/s alone and 25 beside one busy process; one thread 68 and 62.) Half of the logical processors are
        # about the physical cores, or leave room for the bus and the gateway.
        threads = max(1, (os.cpu_count() or 1) // 2)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        parameters.cache_ram_mib = PROMPT_CACHE_MIB
        parameters.ctx_shift = False  # an answer ends at the context; nothing is forgotten silently
        parameters.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        # The server object cannot do without an HTTP listener; nobody is let in.
        parameters.hostnames = [str(folder / "closed.sock")]
        parameters.api_keys = [secrets.token_urlsafe(32)]
        parameters.n_threads_http = 1
        parameters.ui = parameters.endpoint_slots = False
        parameters.verbosity = 4 if log.isEnabledFor(logging.DEBUG) else -1
        return parameters

    def _check_context(self) -> None:
        """Let llama.cpp say how large a slot's context is: it silently caps it to what the model was trained for."""
        answers: list[dict[str, Any]] = []

        def take(answer: dict[str, Any]) -> bool:
            answers.append(answer)
            return True

        # A prompt that cannot fit is refused before any work.
        prompt = [0] * (self.context + _PADDING)
        self._server.handle_completions({"prompt": prompt, "stream": True}, take)
        context = answers[0].get("error", {}).get("n_ctx", 0) if answers else 0
        if context < self.context:
            raise EngineError(
                f"{self._model.name} has a context of {context} tokens, less than the {self.context} configured"
            )

    def _unload(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
        self._threads = self._server = None  # its destructor stops llama.cpp, and blocks
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _raise_if_dead(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)
        if self._server is None:
            raise EngineDead(f"the engine of {self._model.name} was not started")

    async def generate(self, prompt: Prompt, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Generate text; see `InferenceEngine.generate`.

        A JSON schema, or choices, constrain answers to dialogs only, and not their continuation. Where tokens are parts of one
        character, the log probability is that of the last one. Text that looks like a control token of the model is
        read as one.

        Raises:
            InvalidRequest: llama.cpp cannot read the JSON schema or the dialog.
        """
        request = _request(prompt, generation)
        self._raise_if_dead()
        await self._free.acquire()
        try:
            call = self._begin(request)
        except BaseException:
            self._free.release()
            raise
        try:
            async with aclosing(call.deltas()) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            # No task group may stand around a yield, so the thread belongs to the engine; here it is told to stop,
            # and waited for. Its slot is freed when it has ended, however long that takes.
            call.cancel()
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await call.ended.wait()

    def _begin(self, request: dict[str, Any]) -> LlamaCppCall:
        self._raise_if_dead()
        assert self._threads is not None
        server = self._server
        method = (
            server.handle_chat_completions if "messages" in request else server.handle_completions
        )
        call = LlamaCppCall(method, request, on_end=self._ended)
        self._threads.submit(call.run)
        self._running.add(call)
        return call

    def _ended(self, call: LlamaCppCall) -> None:
        self._running.discard(call)
        self._free.release()
        if isinstance(call.error, EngineDead):
            self._death = self._death or call.error.message


def _request(prompt: Prompt, generation: Generation) -> dict[str, Any]:
    request: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # callbacks during the prefill: without them it could not be cancelled
        "max_tokens": generation.max_tokens or -1,
        **_sampling(generation.sampling),
    }
    if prompt.text is not None:
        if not prompt.text:
            raise InvalidRequest("the prompt is empty")
        if generation.constrained:
            raise Unsupported("llama_cpp: a constraint needs a dialog, not a raw prompt")
        request["prompt"] = prompt.text
        if generation.logprobs:
            request["n_probs"] = TOP_LOGPROBS
        return request
    request["messages"] = _messages(prompt)
    if generation.constrained and request["messages"][-1]["role"] == "assistant":
        raise Unsupported("llama_cpp: an answer under a constraint cannot be continued")
    if generation.json_schema is not None:
        request["json_schema"] = generation.json_schema
    if generation.answer_choices is not None:
        request["grammar"] = grammar_of(generation.answer_choices)
    if generation.logprobs:
        request |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return request


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    messages = [{"role": message.role, "content": message.text} for message in prompt.messages]
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()  # nothing was written yet
    if not messages:
        raise InvalidRequest("the dialog is empty")
    if messages[-1]["role"] == "assistant" and not prompt.continues:
        # llama.cpp would continue it all the same.
        raise InvalidRequest("the dialog ends in an answer that shall not be continued")
    return messages


def _sampling(sampling: SamplingParams) -> dict[str, Any]:
    strategy = sampling.strategy
    values: dict[str, Any] = {"samplers": _SAMPLERS[strategy]}
    if strategy is SamplingStrategy.greedy:
        values |= {"temperature": 0.0, "top_k": 1}
    else:
        values["temperature"] = sampling.temperature
        values[strategy.value] = getattr(sampling, strategy.value)
    if sampling.stop:
        values["stop"] = sampling.stop
    if sampling.seed is not None:
        # A prompt that is partly cached is computed in other batches, which rounds differently.
        values |= {"seed": sampling.seed, "cache_prompt": False}
    return values
