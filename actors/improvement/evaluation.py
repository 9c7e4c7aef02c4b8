"""What the scores of held-out answers say of a model: their mean, and how far it may be from what more prompts would give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from ...schemas import Evaluation, KScoredPromptGenerations

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""
RESAMPLES = 10_000
CHUNK = 1 << 20
"""How many indices are drawn at once."""


class Estimate(msgspec.Struct, frozen=True):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    interval: Literal["wilson", "bootstrap"] = "bootstrap"


def evaluate(
    model: str,
    job: str,
    results: Sequence[KScoredPromptGenerations],
    *,
    prompts: int,
    answers: int,
    lowest: float | None = None,
) -> Evaluation | None:
    """Return what scored answers say of a model; None where no answer has a score.

    A model must not look better for answers that failed: each answer that is missing, or could not be scored, counts with the
    lowest score that the reward model gives; where that is not known, with the lowest one here, or 0 if that is lower.

    Args:
        model: who answered.
        job: the job that made and scored the answers.
        results: the prompts with their scored answers.
        prompts: how many prompts there are.
        answers: how many answers each of them should have.
        lowest: the lowest score that the reward model gives, if there is one.
    """
    found = scores_of(results, prompts)
    scored = [score for scores in found for score in scores]
    if not scored:
        return None
    floor = min(0.0, *scored) if lowest is None else lowest
    means = [_mean([*scores, *[floor] * (answers - len(scores))]) for scores in found]
    estimate = estimate_of(means, binary=answers == 1)
    return Evaluation(
        model=model,
        job_uuid=job,
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        interval=estimate.interval,
        answers=len(scored),
    )


def scores_of(results: Sequence[KScoredPromptGenerations], prompts: int) -> list[list[float]]:
    """Return the scores of the answers to each prompt."""
    found: list[list[float]] = [[] for _ in range(prompts)]
    for place, result in enumerate(results):
        index = place if result.index is None else result.index
        found[index] += [answer.score for answer in result.k_scored_generations]
    return found


def estimate_of(values: Sequence[float], *, binary: bool = False) -> Estimate:
    """Return the mean of values, and its interval: Wilson's, where they are single trials and all of them are 0 or 1."""
    if binary and all(value in (0.0, 1.0) for value in values):
        low, high = wilson(round(sum(values)), len(values))
        return Estimate(_mean(values), low, high, "wilson")
    low, high = bootstrap(values)
    return Estimate(_mean(values), low, high)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a share (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953)."""
    share = successes / trials
    scale = 1 + Z**2 / trials
    middle = (share + Z**2 / (2 * trials)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    # At the ends the bound is the share itself, which rounding may miss.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean, by resampling (Efron 1979); the same each time."""
    known = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(0)
    rows = max(1, CHUNK // len(known))
    means: list[np.ndarray] = []
    for start in range(0, RESAMPLES, rows):
        size = (min(rows, RESAMPLES - start), len(known))
        means.append(known[random.integers(0, len(known), size)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def paired_gain(before: Sequence[float | None], after: Sequence[float | None]) -> Estimate | None:
    """Return by how much the scores of the same prompts differ, with the bootstrap over prompts.

    A prompt without a score on either side is left out here; None where none is left.
    """
    gains = [
        new - old
        for old, new in zip(before, after, strict=True)
        if old is not None and new is not None
    ]
    return estimate_of(gains) if gains else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
