"""vLLM behind `InferenceEngine`: continuous batching on GPUs (and CPUs), adapters unmerged beside their base."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from msgspec.structs import replace

from ....schemas import (
    AylluError,
    ContextLengthExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    Unsupported,
)
from ..engine import Capability, Delta, Generation, Prompt
from ..settings import VllmSettings
from .calls import Calls
from .dialogs import Dialogs, described

if TYPE_CHECKING:
    from . import contact

log = logging.getLogger(__name__)

CLOSE_SECONDS = 20.0
"""How long vLLM's processes may take to end."""
ABORT_SECONDS = 5.0
WATCH_SECONDS = 1.0
"""How often an engine that does nothing is asked whether it lives."""
TOKENIZERS = 4
"""How many prompts are made into tokens at once, each in a thread."""


class VllmEngine:
    """Runs a model in Hugging Face's format. Requests are batched by vLLM; the engine core, and each rank, is a process.

    Args:
        model: the folder.
        context: the longest prompt and answer together, in tokens.
        slots: how many generations run at once.
        settings: vLLM's.
    """

    name = "vllm"

    def __init__(
        self, model: Path, *, context: int, slots: int, settings: VllmSettings | None = None
    ) -> None:
        self.context = context
        self.slots = slots
        self.settings = settings or VllmSettings()
        self.capabilities: frozenset[Capability] = frozenset(
            ("json_schema", "answer_choices", "logprobs", "continuation")
            + (("tools",) if self.settings.tool_parser else ())
        )
        self._model = model
        self._free = anyio.Semaphore(slots)
        self._running: set[contact.Run] = set()
        self._held = 0
        self._core: contact.Core | None = None
        self._dialogs: Dialogs | None = None
        self._parser: contact.CallParser | None = None
        self._death: str | None = None
        self._limiter = anyio.CapacityLimiter(TOKENIZERS)

    @property
    def running(self) -> int:
        """How many generations hold a slot."""
        return self._held

    async def __aenter__(self) -> VllmEngine:
        """Start vLLM and load the model: half a minute for a small one. A cancel kills what was started.

        Raises:
            EngineError: it cannot be loaded, or not within ``start_seconds``.
        """
        started = _Started()
        try:
            with anyio.fail_after(self.settings.start_seconds):
                await anyio.to_thread.run_sync(
                    self._load, started, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                )
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(started.give_up)
                await self._close()
            if isinstance(error, TimeoutError):
                seconds = self.settings.start_seconds
                raise EngineError(f"vLLM did not start within {seconds:g} s") from error
            raise
        return self

    def _load(self, started: _Started) -> None:
        with started:
            from . import contact

            try:
                self._core = contact.Core(self._model, self.context, self.slots, self.settings)
                tokenizer = self._core.tokenizer
                self._dialogs = Dialogs(tokenizer, self.settings.chat_template)
                if self.settings.tool_parser:
                    self._parser = contact.CallParser(self.settings.tool_parser, tokenizer)
                    if not self._dialogs.knows_tools():
                        raise EngineError(
                            "the model's chat template knows no tools: no tool_parser"
                        )
            except AylluError:
                raise
            except Exception as error:
                raise EngineError(f"vLLM cannot load {self._model.name}: {error}") from error

    async def __aexit__(self, *exc: object) -> None:
        """End vLLM's processes; generations that still run get `EngineDead`."""
        with anyio.CancelScope(shield=True):
            await self._close()

    async def _close(self) -> None:
        self._death = self._death or f"the engine of {self._model.name} was closed"
        for run in self._running:
            run.fail(EngineDead(self._death))
        core, self._core = self._core, None
        if core is not None:
            with anyio.move_on_after(CLOSE_SECONDS) as late:
                await anyio.to_thread.run_sync(
                    core.close, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                )
            if late.cancelled_caught:
                log.error("vLLM's processes did not end in time")

    async def watch(self) -> None:
        """Wait until vLLM's processes are no more, though no generation tells; whoever supervises it starts it anew.

        Raises:
            EngineDead: they are.
        """
        # A thread of vLLM's sets a flag, and tells nobody else.
        while self._core is not None and not self._core.dead:  # noqa: ASYNC110
            await anyio.sleep(WATCH_SECONDS)
        raise EngineDead(self._death or "vLLM's engine core died")

    def generate(self, prompt: Prompt, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Generate text; see `InferenceEngine.generate`.

        An answer under a constraint cannot be continued. Where tokens are parts of one character, its log probability is that
        of the last one.

        Raises:
            InvalidRequest: vLLM cannot read the JSON schema, or the chat template the dialog.
        """
        return self.generate_with(None, prompt, generation)

    async def generate_with(
        self, adapter: Any, prompt: Prompt, generation: Generation
    ) -> AsyncGenerator[Delta, None]:
        """Generate text with an adapter (None for the base alone)."""
        self._check(prompt, generation)
        tokens = await anyio.to_thread.run_sync(self._tokens, prompt, limiter=self._limiter)
        room = self.context - len(tokens)
        if room <= 0:
            raise ContextLengthExceeded(
                f"the prompt has {len(tokens)} tokens; the context holds {self.context}, answer included",
                details={"prompt_tokens": len(tokens), "context": self.context},
            )
        most = min(generation.max_tokens or room, room)
        async with self._free:
            self._held += 1
            run: contact.Run | None = None
            try:
                run = await self._begin(tokens, prompt, generation, most, adapter)
                async with aclosing(self._deltas(run, prompt, generation)) as deltas:
                    async for delta in deltas:
                        yield delta
            except EngineDead as error:
                self._death = self._death or error.message
                raise
            finally:
                self._held -= 1
                if run is not None:
                    self._running.discard(run)
                    with anyio.move_on_after(ABORT_SECONDS, shield=True):
                        await run.abort()

    def _check(self, prompt: Prompt, generation: Generation) -> None:
        if prompt.text == "":
            raise InvalidRequest("the prompt is empty")
        if prompt.continues and prompt.messages[-1].text and generation.constrained:
            raise Unsupported("vllm: an answer under a constraint cannot be continued")
        self._alive()

    def _alive(self) -> contact.Core:
        if self._death is not None:
            raise EngineDead(self._death)
        if self._core is None:
            raise EngineDead(f"the engine of {self._model.name} was not started")
        return self._core

    def _tokens(self, prompt: Prompt) -> Sequence[int]:
        tokenizer = self._alive().tokenizer
        tokens: Sequence[int]
        if prompt.text is not None:
            tokens = tokenizer.encode(prompt.text)
        else:
            assert self._dialogs is not None
            # The template has written the control tokens that the tokenizer would add.
            tokens = tokenizer.encode(self._dialogs.text(prompt), add_special_tokens=False)
        return tokens

    async def _begin(
        self,
        tokens: Sequence[int],
        prompt: Prompt,
        generation: Generation,
        most: int,
        adapter: Any,
    ) -> contact.Run:
        from . import contact

        core = self._alive()
        params = contact.sampling_params(generation, most, shows_control=bool(prompt.tools))
        run = await core.begin(tokens, params, adapter)
        self._running.add(run)
        return run

    async def _deltas(
        self, run: contact.Run, prompt: Prompt, generation: Generation
    ) -> AsyncGenerator[Delta, None]:
        calls: Calls | None = None
        if prompt.tools and not generation.constrained:
            assert self._parser is not None
            calls = Calls(self._parser, [described(tool) for tool in prompt.tools])
        while True:
            delta, tokens = await run.take()
            ended = delta.stop_reason is not None
            if calls is not None:
                text = calls.feed(delta.text, tokens)
                if ended:
                    rest, found = calls.finish()
                    if text or rest:
                        yield Delta(text + rest)
                    for call in found:
                        yield Delta(tool_call=call)
                    text = ""
                delta = replace(delta, text=text)
            if ended or delta.text or delta.logprobs:
                yield delta
            if ended:
                return

    async def load_adapter(self, name: str, folder: Path) -> Any:
        """Load a LoRA; see `contact.Core.add_adapter`."""
        return await self._alive().add_adapter(name, folder)

    async def unload_adapter(self, adapter: Any) -> None:
        """Unload a LoRA, if there is still something that has it."""
        if self._core is not None:
            await self._core.remove_adapter(adapter)


class VllmAdapter:
    """The model of a `VllmEngine` with a LoRA, which is not merged: requests of several run in one batch.

    It has the slots of its base, and ends with it.

    Args:
        base: the engine, which is running.
        name: what the adapter is called.
        folder: ``adapter_model.safetensors`` with ``adapter_config.json``, as PEFT writes them; it stays where it is.
    """

    name = "vllm"

    def __init__(self, base: VllmEngine, name: str, folder: Path) -> None:
        self.context = base.context
        self.slots = base.slots
        self.capabilities = base.capabilities
        self._base = base
        self._name = name
        self._folder = folder
        self._adapter: Any = None

    @property
    def running(self) -> int:
        """How many generations hold a slot of the base."""
        return self._base.running

    async def __aenter__(self) -> VllmAdapter:
        """Load the adapter while requests run.

        Raises:
            EngineError: vLLM cannot load it.
        """
        self._adapter = await self._base.load_adapter(self._name, self._folder)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Unload it."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            try:
                await self._base.unload_adapter(self._adapter)
            except AylluError as error:
                log.warning("the adapter %s was not unloaded: %s", self._name, error)
        self._adapter = None

    def generate(self, prompt: Prompt, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Generate text; see `VllmEngine.generate`."""
        return self._base.generate_with(self._adapter, prompt, generation)


class _Started:
    """The thread that starts vLLM, and how it is given up."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._ended.set()
        self._others: set[int | None] = set()

    def __enter__(self) -> None:
        self._others = {process.pid for process in multiprocessing.active_children()}
        self._ended.clear()

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def give_up(self) -> None:
        """Kill the processes that were started meanwhile, until the thread has noticed; blocks."""
        while not self._ended.wait(0.5):
            for process in multiprocessing.active_children():
                if process.pid not in self._others:
                    process.kill()
