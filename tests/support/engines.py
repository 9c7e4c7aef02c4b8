"""Engines for tests: what the contract suite needs to know of each, and how answers are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any

import anyio

from ayllu.actors.engines.engine import ChatMessage, Delta, Generation, InferenceEngine, Prompt
from ayllu.actors.engines.scripted import ScriptedEngine, Step
from ayllu.actors.registry import build_engine, default_models
from ayllu.schemas import SamplingParams, SamplingStrategy, StopReason

CONTEXT = 512
SLOTS = 2
GREEDY = SamplingParams()
COUNT = Prompt(text="1, 2, 3, 4, 5, 6, 7,")
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    deltas: list[Delta]

    @property
    def last(self) -> Delta:
        return self.deltas[-1]

    @property
    def logprobs(self) -> list[dict[str, Any]]:
        return [token for delta in self.deltas for token in delta.logprobs or ()]


def sampled(strategy: str, **values: Any) -> SamplingParams:
    return SamplingParams(strategy=SamplingStrategy(strategy), **values)


def user(text: str, prefix: str | None = None) -> Prompt:
    messages = [ChatMessage("user", text)]
    if prefix is not None:
        messages.append(ChatMessage("assistant", prefix))
    return Prompt(messages=messages, continues=prefix is not None)


async def answer(
    engine: InferenceEngine, prompt: Prompt, generation: Generation | None = None, **values: Any
) -> Answer:
    """Generate to the end, within a deadline that suits a busy machine."""
    generation = generation or Generation(**{"sampling": GREEDY, "max_tokens": 8, **values})
    with anyio.fail_after(60):
        async with aclosing(engine.generate(prompt, generation)) as deltas:
            found = [delta async for delta in deltas]
    assert all(delta.stop_reason is None for delta in found[:-1])
    assert isinstance(found[-1].stop_reason, StopReason)
    return Answer("".join(delta.text for delta in found), found)


def small_model(*, context: int = CONTEXT, slots: int = SLOTS) -> InferenceEngine:
    """Return the real model in a small context."""
    default = default_models()[0]
    return build_engine(
        type(default)(
            name=default.name,
            engine=default.engine,
            source=default.source,
            context=context,
            slots=slots,
        )
    )


def contract_script(prompt: Prompt, generation: Generation) -> Iterator[Step]:
    """Answer what the contract suite asks, much as the real model does."""
    asked = prompt.text or next(m.text for m in prompt.messages if m.role == "user")
    said = prompt.messages[-1].text if prompt.continues else ""
    if len(asked) > 1000:
        yield anyio.Event()  # a prefill that never ends
    if generation.json_schema is not None:
        yield from ('{"city"', ': "Paris"', "}")
    elif generation.answer_choices is not None:
        yield generation.answer_choices[0].text
        yield from generation.answer_choices[0].list_of[:1]
    elif "llama" in asked:
        yield "A llama is an animal."
    else:
        numbers = count(1)
        while said and next(numbers) < int(said.rstrip(", ").rpartition(" ")[2]):
            pass
        stalls = generation.max_tokens == 0 and asked == COUNT.text
        for number in numbers:
            if stalls and number > 20:
                yield anyio.Event()  # so that whoever wants to cancel it is never too late
            yield f" {number}," if number > 1 else f"{number},"


def scripted() -> ScriptedEngine:
    return ScriptedEngine(contract_script, context=CONTEXT, slots=SLOTS)
