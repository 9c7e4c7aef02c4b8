"""Reward models for tests: answers, engines that do as they are told, and reward models on a bus."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from ayllu.actors.engines.engine import Delta, Generation, Prompt
from ayllu.actors.engines.scripted import ScriptedEngine, Step
from ayllu.actors.inference import InferenceActor
from ayllu.actors.rewards.actor import RewardScoringActor
from ayllu.actors.rewards.engine import Answer, RewardEngine, Score
from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import AnyRewardSpec, check_rewards
from ayllu.bus import Bus, client
from ayllu.bus.service import serve
from ayllu.schemas import (
    AylluError,
    Dialog,
    EngineDead,
    KPromptGenerations,
    KScoredPromptGenerations,
    Message,
    RewardScoring,
    RewardScoringRequest,
    Role,
)

Result = Score | AylluError
TESTS = Path(__file__).parents[1]


def dialog(text: str = "A question?") -> Dialog:
    return Dialog(message=Message(role=Role.user, content=text))


def said(text: str) -> Message:
    return Message(role=Role.assistant, content=text)


def answers(*texts: str, reference: Any = None) -> list[Answer]:
    return [Answer(dialog(), said(text), reference) for text in texts]


def prompt(*texts: str, reference: Any = None, asked: str = "A question?") -> KPromptGenerations:
    return KPromptGenerations(dialog(asked), [said(text) for text in texts], reference)


def request(*prompts: KPromptGenerations, model: str = "m", **values: Any) -> RewardScoringRequest:
    return RewardScoringRequest(prompt_generations=list(prompts), model=model, **values)


def texts_of(prompt: KScoredPromptGenerations) -> list[tuple[str, float]]:
    """Return the answers of a scored prompt with their scores, as they came back."""
    return [(str(one.message.content), one.score) for one in prompt.k_scored_generations]


async def results_of(engine: RewardEngine, asked: Sequence[Answer]) -> list[Result]:
    """Score answers, and return what came of each, in their order."""
    found: dict[int, Result] = {}
    with anyio.fail_after(60):
        async with aclosing(engine.score(asked)) as scores:
            async for index, result in scores:
                assert index not in found
                found[index] = result
    assert sorted(found) == list(range(len(asked)))
    return [found[index] for index in range(len(asked))]


def values_of(results: Iterable[Result]) -> list[float]:
    found = []
    for result in results:
        assert isinstance(result, Score), result
        found.append(result.value)
    return found


def error_of(result: Result) -> AylluError:
    assert isinstance(result, AylluError), result
    return result


class RewardDouble:
    """A reward engine that does as it is told: an answer's score is the number that its text is.

    Attributes:
        asked: the texts of each call.
        gates: texts whose score has to wait.
        results: what comes of other texts.
    """

    name = "double"
    description = "what the answer says"
    lowest: float | None = None
    highest: float | None = None
    context = 0

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.gates: dict[str, anyio.Event] = {}
        self.results: dict[str, Result] = {}
        self.closed = 0

    async def __aenter__(self) -> RewardDouble:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def score(self, answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Result], None]:
        texts = [str(answer.message.content) for answer in answers]
        self.asked.append(texts)
        try:
            # What waits comes last.
            for index in sorted(range(len(texts)), key=lambda index: texts[index] in self.gates):
                text = texts[index]
                if text in self.gates:
                    await self.gates[text].wait()
                result = self.results.get(text)
                if isinstance(result, EngineDead):
                    raise result
                yield index, result if result is not None else Score(float(text))
        finally:
            self.closed += 1


def verdicts(**probabilities: float) -> Delta:
    """Return what a model says whose first token has these likeliest alternatives; ``_`` is a space before one."""
    top = [
        {"token": token.replace("_", " "), "logprob": math.log(p), "bytes": []}
        for token, p in probabilities.items()
    ]
    return Delta(str(top[0]["token"]), [top[0] | {"top_logprobs": top}])


def judging(
    by_text: Mapping[str, Sequence[Step]],
) -> Callable[[Prompt, Generation], Sequence[Step]]:
    """Return a script that judges by the first text that stands in what it is asked."""

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        asked = next(message.text for message in prompt.messages if message.role == "user")
        return next(
            (steps for text, steps in by_text.items() if text in asked), [verdicts(maybe=1)]
        )

    return script


@asynccontextmanager
async def language_model(
    bus: Bus, by_text: Mapping[str, Sequence[Step]], name: str = "lm", **values: Any
) -> AsyncIterator[ScriptedEngine]:
    """Serve a language model that judges as it is told, until the end of the block."""
    async with ScriptedEngine(judging(by_text), **values) as engine:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, InferenceActor(engine, name))
            yield engine
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def rewards(
    bus: Bus, *specs: AnyRewardSpec, **engines: RewardEngine
) -> AsyncIterator[RewardScoring]:
    """Serve reward models, configured ones and others by their names, until the end of the block."""
    check_rewards(specs, ())
    made = engines | {spec.name: build_reward(spec, bus, specs) for spec in specs}
    aliases = {spec.name: spec.aliases for spec in specs}
    async with anyio.create_task_group() as tasks:
        for name, engine in made.items():
            await tasks.start(_serve, bus, engine, name, aliases.get(name, ()))
        yield client(RewardScoring, bus)
        tasks.cancel_scope.cancel()


async def _serve(
    bus: Bus, engine: RewardEngine, name: str, aliases: Sequence[str], *, task_status: Any
) -> None:
    async with engine:
        await serve(bus, RewardScoringActor(engine, name, aliases), task_status=task_status)


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let children find `support.reward_functions`, and return its name."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    return "support.reward_functions"
