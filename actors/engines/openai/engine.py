"""The engine for any server that speaks OpenAI's protocol: vLLM's, llama.cpp's, Ollama, SGLang, a hosted one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from functools import partial

import anyio
import msgspec

from ....schemas import AylluError, EngineDead, EngineError, encode
from ..engine import Capability, Delta, Generation, Prompt
from ..settings import OpenAISettings
from .answer import Answer
from .call import CLOSE_SECONDS, Call
from .requests import capabilities_of, request_of
from .server import BROKEN, Server

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""How long the list of models may take, at the start."""
MODELS = "/models"
MAX_TOLD = 20


class _Listed(msgspec.Struct):
    """An entry of the list of models."""

    id: str


class _ModelList(msgspec.Struct):
    """What a server says that it serves."""

    data: list[_Listed] | None = None


class OpenAIEngine:
    """Lets a server generate. It needs no model here, so it is ready at once, and never dies.

    Args:
        url: of the server's API, for example ``http://127.0.0.1:8000/v1``.
        model: what the server calls the model.
        context: what is told of the model; the server checks it.
        slots: how many requests the server gets at once.
        settings: how it is asked.
        key: what it lets in by; it goes into a header and nowhere else.
    """

    name = "openai"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        context: int = 4096,
        slots: int = 4,
        settings: OpenAISettings | None = None,
        key: str | None = None,
    ) -> None:
        self.context = context
        self.slots = slots
        settings = settings or OpenAISettings()
        self.capabilities: frozenset[Capability] = capabilities_of(settings)
        self._model = model
        self._settings = settings
        self._server = Server(
            url, key=key, connections=slots, connect_seconds=settings.connect_seconds
        )
        self._free = anyio.Semaphore(slots)
        self._running: set[Call] = set()
        self._death: str | None = "the engine was not started"

    @property
    def running(self) -> int:
        """How many generations hold a slot."""
        return len(self._running)

    async def __aenter__(self) -> OpenAIEngine:
        """Be ready, and look what the server serves.

        A server that is away now may be back when it is needed, so that is only logged. A wrong key and a wrong name stay wrong.

        Raises:
            EngineError: the server refuses the key, or lists its models and ours is not among them.
        """
        self._server.open()
        try:
            await self._look()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._server.aclose()
            raise
        self._death = None
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Close all connections; what still runs gets `EngineDead`."""
        self._death = f"the engine of {self._model} was closed"
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            killed = [call for call in self._running if call.kill(EngineDead(self._death))]
            for call in killed:
                await call.ended.wait()
            await self._server.aclose()

    async def _look(self) -> None:
        """Check that the server knows the model.

        Raises:
            EngineError: it does not, or refuses the key.
        """
        try:
            with anyio.fail_after(LOOK_SECONDS):
                answer = await self._server.get(MODELS)
            listed = msgspec.json.decode(answer, type=_ModelList).data or []
        except (*BROKEN, TimeoutError, AylluError, msgspec.DecodeError, UnicodeError) as error:
            if isinstance(error, EngineError) and error.details.get("status") == 401:
                raise
            reason = self._server.quote(error) or type(error).__name__
            log.warning("%s does not tell its models now: %s", self._server.url, reason)
            return
        names = [model.id for model in listed]
        if names and self._model not in names:
            told = ", ".join(sorted(names)[:MAX_TOLD])
            raise EngineError(f"the server does not have the model {self._model!r}, but {told}")

    def _raise_if_dead(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)

    async def generate(self, prompt: Prompt, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Generate text; see `InferenceEngine.generate`.

        A request that fails before its answer begins is sent again, as often as the settings say; one that fails later is
        not. The counts of tokens are the server's, or, where it does not count, the pieces of text that came.

        Raises:
            InvalidRequest: the server refuses the request.
            ContextLengthExceeded: it says that the prompt does not fit, or that ``max_tokens`` does not fit beside it.
            Overloaded: it says so; ``details["retry_after"]`` are the seconds that it asks for, if it does.
            EngineError: it fails, is away, is silent for too long or sends what is no answer.
        """
        path, fields = request_of(prompt, generation, self._settings, self._model, self.context)
        self._raise_if_dead()
        new_answer = partial(
            Answer,
            self._server.quote,
            logprobs=generation.logprobs,
            forced="tools" in fields and fields["tool_choice"] != "auto",
        )
        call = Call(self._server, path, encode(fields), new_answer, self._settings)
        await self._free.acquire()
        self._running.add(call)
        try:
            self._raise_if_dead()
            while deltas := await call.read():
                for delta in deltas:
                    yield delta
                # What a fast server has sent ahead must not keep the first token, and others, waiting.
                await asyncio.sleep(0)
        finally:
            # No task group may stand around a yield, so the connection is closed here, and the slot free when it is.
            try:
                await call.aclose()
            finally:
                self._running.discard(call)
                self._free.release()
