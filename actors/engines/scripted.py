"""An engine that plays what it is told, for tests and for benchmarks of the overhead around a model; never a default."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import anyio

from ...schemas import (
    AylluError,
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    StopReason,
    Unsupported,
)
from .engine import Capability, Delta, Generation, Prompt
from .stops import Stops

Step = str | Delta | anyio.Event | float | AylluError
"""What a script does next: say a token, give out a delta as it is, wait for an event or some seconds, or fail. `EngineDead` is
final: the engine is dead from then on."""

Script = Callable[[Prompt, Generation], Iterable[Step]]
"""Returns the steps that answer a prompt."""

SLOW_SECONDS = 0.02
_ALL: frozenset[Capability] = frozenset(
    ("json_schema", "answer_choices", "logprobs", "continuation")
)


class ScriptedEngine:
    """Plays a script. Tokens are words with the space before them; every step of text counts as one token.

    Attributes:
        running: how many generations hold a slot.
        started: how many generations ever got a slot.
        cancelled: how many of them were closed before their end.
        prompts: what the last of them were asked, in order.
    """

    name = "scripted"

    def __init__(
        self,
        script: Script,
        *,
        context: int = 4096,
        slots: int = 4,
        capabilities: frozenset[Capability] = _ALL,
    ) -> None:
        self.context = context
        self.slots = slots
        self.capabilities = capabilities
        self.running = 0
        self.started = 0
        self.cancelled = 0
        self.prompts: deque[tuple[Prompt, Generation]] = deque(maxlen=100)
        self._script = script
        self._free = anyio.Semaphore(slots)
        self._changed = anyio.Event()
        self._died = anyio.Event()
        self._open = False

    async def __aenter__(self) -> ScriptedEngine:
        """Be ready."""
        self._open = True
        self._died = anyio.Event()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End; generations that still run get `EngineDead`."""
        self.die()

    def die(self) -> None:
        """Be dead from now on: whatever runs gets `EngineDead`, also while it waits."""
        self._open = False
        self._died.set()

    async def wait_for(self, condition: Callable[[ScriptedEngine], bool]) -> None:
        """Wait until a condition on the counts holds, for example ``lambda engine: engine.running == 2``."""
        while not condition(self):
            self._changed = anyio.Event()
            await self._changed.wait()

    async def generate(self, prompt: Prompt, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Play the script; see `InferenceEngine.generate`."""
        self._check(prompt, generation)
        async with self._free:
            with self._counted():
                self.prompts.append((prompt, generation))
                length, said = _length(prompt), 0
                room = self.context - length
                most = min(generation.max_tokens or room, room)
                reason = StopReason.finished_ok
                stops = Stops(generation.sampling.stop)
                for step in self._script(prompt, generation):
                    # Cheaper than anyio's checkpoint, which would show in benchmarks of what is around the engine.
                    await asyncio.sleep(0)
                    self._raise_if_dead()
                    if isinstance(step, anyio.Event | AylluError | float):
                        await self._stop_at(step)
                        continue
                    if isinstance(step, Delta) and step.stop_reason is not None:
                        yield step
                        return
                    if said == most:
                        reason = StopReason.max_tokens
                        break
                    said += 1
                    if not isinstance(step, str):
                        yield step
                    elif text := stops.feed(step):
                        yield _token(text, generation)
                    if stops.ended:
                        break
                if text := stops.finish():
                    yield _token(text, generation)
                yield Delta(stop_reason=reason, prompt_tokens=length, completion_tokens=said)

    def _check(self, prompt: Prompt, generation: Generation) -> None:
        if generation.logprobs and "logprobs" not in self.capabilities:
            raise Unsupported("scripted: this engine has no log probabilities")
        if generation.json_schema is not None and "json_schema" not in self.capabilities:
            raise Unsupported("scripted: this engine knows no JSON schemas")
        if generation.answer_choices is not None and "answer_choices" not in self.capabilities:
            raise Unsupported("scripted: this engine knows no choices of answers")
        if prompt.continues and "continuation" not in self.capabilities:
            raise Unsupported("scripted: this engine continues no answers")
        if not _asked(prompt):
            raise InvalidRequest("the prompt is empty")
        if _length(prompt) >= self.context:
            raise ContextLengthExceeded(
                f"the prompt has {_length(prompt)} tokens; the context holds {self.context}, answer included"
            )
        self._raise_if_dead()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._raise_if_dead()
        self.running += 1
        self.started += 1
        self._changed.set()
        try:
            yield
        except (GeneratorExit, anyio.get_cancelled_exc_class()):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self._changed.set()

    def _raise_if_dead(self) -> None:
        if not self._open:
            raise EngineDead("the scripted engine is dead")

    async def _stop_at(self, step: anyio.Event | AylluError | float) -> None:
        if isinstance(step, float):
            await anyio.sleep(step)
            return
        if isinstance(step, anyio.Event):
            await self._pass(step)
            return
        if isinstance(step, EngineDead):
            self.die()
        raise step

    async def _pass(self, gate: anyio.Event) -> None:
        """Wait at a gate, or for the death of the engine."""

        async def wait_for(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for, gate)
            tasks.start_soon(wait_for, self._died)
        self._raise_if_dead()


def script_from(source: str) -> Script:
    """Return the script that a configuration names.

    ``echo`` repeats the last message word by word, ``count:N`` says the numbers from 1 to N, ``slow:N`` too, one every 20 ms,
    and ``stall:N`` too and then waits until it is cancelled. Where an answer is to be continued, they go on after what was said.

    Raises:
        InvalidRequest: there is no such script.
    """
    kind, _, number = source.partition(":")
    if source == "echo":
        return lambda prompt, _: _rest(_words(_asked(prompt)), prompt)
    if kind in {"count", "slow", "stall"} and number.isdecimal():
        numbers = [str(n) if n == 1 else f" {n}" for n in range(1, int(number) + 1)]
        end: Sequence[Step] = [anyio.Event()] if kind == "stall" else []
        if kind == "slow":
            return lambda prompt, _: _slowly(_rest(numbers, prompt))
        return lambda prompt, _: [*_rest(numbers, prompt), *end]
    raise InvalidRequest(f"there is no script {source!r}: echo, count:<n>, slow:<n> or stall:<n>")


def _slowly(tokens: Iterable[str]) -> Iterator[Step]:
    for token in tokens:
        yield SLOW_SECONDS
        yield token


def script_of(answers: dict[str, Sequence[Step]]) -> Script:
    """Return a script that gives the first answer whose key is part of the last message; of ``""`` all are parts."""

    def answer(prompt: Prompt, _: Generation) -> Sequence[Step]:
        asked = _asked(prompt)
        for part, steps in answers.items():
            if part in asked:
                return steps
        return [InvalidRequest(f"the script has no answer to {asked!r}")]

    return answer


def _asked(prompt: Prompt) -> str:
    """Return the text of a raw prompt, or of the last message of a dialog that is not to be continued."""
    if prompt.text is not None:
        return prompt.text
    messages = prompt.messages[:-1] if prompt.continues else prompt.messages
    if not messages:
        return ""
    return messages[-1].text or "\n".join(answer.text for answer in messages[-1].tool_answers)


def _rest(tokens: Sequence[str], prompt: Prompt) -> list[str]:
    """Return what remains of an answer after the part that was already said, if it is to be continued."""
    said = prompt.messages[-1].text if prompt.continues else ""
    text = "".join(tokens)
    if not said or not text.startswith(said):
        return list(tokens)
    return _words(text[len(said) :])


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _length(prompt: Prompt) -> int:
    texts = [message.text for message in prompt.messages] if prompt.text is None else [prompt.text]
    return sum(len(_words(text)) for text in texts)


def _token(text: str, generation: Generation) -> Delta:
    if not generation.logprobs:
        return Delta(text)
    known = {"token": text, "logprob": 0.0, "bytes": list(text.encode())}
    return Delta(text, [known | {"top_logprobs": [known]}])
