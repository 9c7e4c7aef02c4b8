"""``ayllu rewards``: reward models from the command line."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import msgspec

from ..client import Stack, connect
from ..schemas import (
    Dialog,
    KPromptGenerations,
    KScoredPromptGenerations,
    Message,
    Model,
    RewardScoringRequest,
    Role,
    encode,
)

SHOWN = 100
"""Characters of an answer that the table shows."""


async def run_rewards(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu rewards`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    async with connect(url, token=token) as stack:
        if options.action == "score":
            await _score(stack, options)
        else:
            await _list(stack, options)


def request_of(options: argparse.Namespace) -> RewardScoringRequest:
    """Return what the command line asks to score."""
    dialog = Dialog(message=Message(role=Role.user, content=options.prompt))
    answers = [Message(role=Role.assistant, content=answer) for answer in options.answers]
    return RewardScoringRequest(
        prompt_generations=[KPromptGenerations(dialog, answers, _reference(options.reference))],
        model=options.model,
        threshold=options.threshold,
    )


def _reference(text: str | None) -> Any:
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


async def _list(stack: Stack, options: argparse.Namespace) -> None:
    models = [model async for model in stack.models() if model.kind == "reward"]
    if options.json:
        sys.stdout.write(encode(models).decode() + "\n")
        return
    for model in models:
        names = ", ".join([model.name, *model.aliases])
        sys.stdout.write(f"{names}\t{model.engine}\t{_range_of(model)}\t{model.description}\n")


def _range_of(model: Model) -> str:
    low, high = model.lowest_score, model.highest_score
    return f"{'-inf' if low is None else f'{low:g}'} to {'inf' if high is None else f'{high:g}'}"


async def _score(stack: Stack, options: argparse.Namespace) -> None:
    response = await stack.reward_scoring.score(request_of(options))
    if options.json:
        sys.stdout.write(encode(response).decode() + "\n")
        return
    for prompt in response.scored_generations:
        _write(prompt, options.answers)


def _write(prompt: KScoredPromptGenerations, answers: list[str]) -> None:
    for scored in prompt.k_scored_generations:
        parts = ", ".join(f"{name} {score:.4g}" for name, score in scored.parts.items())
        line = f"{scored.score:.4g}\t{_one_line(str(scored.message.content))}"
        sys.stdout.write(f"{line}\t{parts}\n" if parts else f"{line}\n")
    for failed in prompt.unscored:
        answer = _one_line(answers[failed.index])
        sys.stdout.write(f"-\t{answer}\t{failed.code}: {failed.message}\n")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
