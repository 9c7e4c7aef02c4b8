"""Which of the scored candidates of a prompt are kept, and the seeds that make every choice repeatable."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import sha256
from itertools import accumulate
from random import Random

from ...schemas import FilteringFunction, InvalidRequest, SyntheticDataGenerationRequest

NEEDS_SCORES = frozenset(FilteringFunction) - {FilteringFunction.none, FilteringFunction.random}
"""What makes no sense without a reward model."""
NEEDS_K = frozenset({FilteringFunction.top_k, FilteringFunction.top_k_top_p})
NEEDS_P = frozenset({FilteringFunction.top_p, FilteringFunction.top_k_top_p})
TAKES_K = NEEDS_K | {FilteringFunction.random}

SEEDS = 2**32 - 1
"""How many seeds `SamplingParams` can have."""


def chosen(
    function: FilteringFunction,
    scores: Sequence[float],
    *,
    k: int | None = None,
    p: float | None = None,
    generator: Random,
) -> list[int]:
    """Return which candidates of a group are kept: their places in it, best first; equal scores keep their order.

    - ``none``: all.
    - ``random``: ``k`` of them, every such subset being as likely; without ``k``, any subset, all being as likely: each
      candidate is kept with probability one half. With ``k``, it is what ``top_k`` is to be compared with.
    - ``top_k``: the ``k`` best.
    - ``top_p``: the fewest of the best whose share of the softmax of all scores reaches ``p``; 1 keeps all.
    - ``top_k_top_p``: ``top_k``, then ``top_p`` of what is left: the softmax is that of the ``k`` best.
    - ``sigmoid``: each with probability sigmoid(score).

    Args:
        function: how to choose.
        scores: the scores of one group.
        k: the most that are kept, where the function takes it; None sets no bound.
        p: the share that is enough, where the function takes it; None is 1.
        generator: of the choices, made from the group's seed.

    Raises:
        InvalidRequest: a score is infinite or not a number.
    """
    check_scores(scores)
    ranked = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    match function:
        case FilteringFunction.none:
            return ranked
        case FilteringFunction.random:
            return _at_random(ranked, k, generator)
        case FilteringFunction.top_k:
            return ranked[:k]
        case FilteringFunction.top_p:
            return _with_share(ranked, scores, p)
        case FilteringFunction.top_k_top_p:
            return _with_share(ranked[:k], scores, p)
        case _:
            return [place for place in ranked if generator.random() < _sigmoid(scores[place])]


def check_scores(scores: Sequence[float]) -> None:
    """Refuse scores that have no rank among others.

    Raises:
        InvalidRequest: a score is infinite or not a number.
    """
    for score in scores:
        if not math.isfinite(score):
            raise InvalidRequest(f"the score {score} of a candidate is no finite number")


def _at_random(ranked: list[int], k: int | None, generator: Random) -> list[int]:
    # Only `random()` gives the same numbers in every version of Python; `sample()` and `shuffle()` may not.
    draws = [generator.random() for _ in ranked]
    if k is None:
        return [place for place, draw in zip(ranked, draws, strict=True) if draw < 0.5]
    drawn = sorted(range(len(ranked)), key=draws.__getitem__)[:k]
    return [ranked[number] for number in sorted(drawn)]


def _with_share(ranked: list[int], scores: Sequence[float], p: float | None) -> list[int]:
    # What is far below the best has no share that a float could tell from 0; that 1 keeps all has to be said.
    if not ranked or p is None or p >= 1:
        return ranked
    best = scores[ranked[0]]
    shares = list(accumulate(math.exp(scores[place] - best) for place in ranked))
    return ranked[: bisect_left(shares, p * shares[-1]) + 1]


def _sigmoid(score: float) -> float:
    # Of the two forms, the one whose exponential cannot overflow.
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    power = math.exp(score)
    return power / (1 + power)


def group_seed(seed: int, prompt: int, wave: int) -> int:
    """Return the seed by which the candidates of one group are filtered; it depends on nothing else."""
    return _hashed("group", seed, prompt, wave)


def candidate_seed(seed: int, prompt: int, wave: int, number: int) -> int:
    """Return the seed by which one candidate is sampled; it depends on nothing else.

    The thousand candidates of a prompt all have different ones, but for one prompt in ten thousand; were two the same, the
    one candidate would repeat the other.
    """
    return _hashed("candidate", seed, prompt, wave, number) % SEEDS


def _hashed(*parts: str | int) -> int:
    text = "/".join(map(str, parts))
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


def check_filter(request: SyntheticDataGenerationRequest) -> None:
    """Refuse a request that contradicts itself, or has fields that would not count.

    Raises:
        InvalidRequest: something is wrong; the message names the field.
    """
    if not request.prompts:
        raise InvalidRequest("prompts: there are none")
    if request.references and len(request.references) != len(request.prompts):
        raise InvalidRequest(
            f"references: {len(request.references)} for {len(request.prompts)} prompts; there is one for each, or none"
        )
    _check_bounds(request)
    _check_target(request)


def _check_bounds(request: SyntheticDataGenerationRequest) -> None:
    function = request.filtering_function
    for name, value, needed, taken in (
        ("k", request.k, NEEDS_K, TAKES_K),
        ("p", request.p, NEEDS_P, NEEDS_P),
    ):
        if value is None and function in needed:
            raise InvalidRequest(f"{name}: the filtering function {function} needs it")
        if value is not None and function not in taken:
            raise InvalidRequest(f"{name}: the filtering function {function} does not use it")


def _check_target(request: SyntheticDataGenerationRequest) -> None:
    if request.max_candidates is None:
        return
    if request.target is None:
        raise InvalidRequest("max_candidates: only generation until a target has this bound")
    if request.max_candidates < request.target:
        raise InvalidRequest(
            f"max_candidates: {request.max_candidates} candidates cannot reach the target of {request.target}"
        )
