"""What becomes of each candidate: the decision over all groups that are finished.

A group is the candidates of one prompt in one wave. Groups have an order, by wave and then by prompt, which is not the order in
which they finish; what is decided of a group depends on the request, the seed and the groups before it, on nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum
from random import Random

import msgspec

from ...schemas import (
    KScoredPromptGenerations,
    Message,
    PromptStatistics,
    ScoredMessage,
    SyntheticDataGenerationRequest,
    SyntheticDataStatistics,
    UnscoredGeneration,
    encode,
)
from .duplicates import Distinct
from .filters import TAKES_K, check_scores, chosen, group_seed
from .statistics import distribution

DEFAULT_WAVES = 16
"""A target without `max_candidates` may take that many times the waves that would do if only `k` left candidates out."""


class Failure(msgspec.Struct, frozen=True):
    """Why a candidate has no score."""

    code: str
    message: str


class Candidate(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer and its score; without an answer, `score` says why it could not be generated."""

    message: Message | None
    score: float | Failure
    parts: dict[str, float] = {}
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Group(msgspec.Struct, frozen=True):
    """The candidates of one prompt in one wave, by their number."""

    prompt: int
    wave: int
    candidates: list[Candidate]


class Selection(msgspec.Struct, frozen=True):
    """What is accepted, for each prompt that has a finished group, and what became of the others."""

    accepted: list[KScoredPromptGenerations]
    statistics: SyntheticDataStatistics


class Fate(StrEnum):
    """What can become of a candidate; the values are fields of `SyntheticDataStatistics`."""

    failed = "failed"
    unscored = "unscored"
    below_threshold = "below_threshold"
    duplicates = "duplicates"
    filtered_out = "filtered_out"
    accepted = "accepted"
    surplus = "surplus"


def select(
    request: SyntheticDataGenerationRequest, groups: Iterable[Group], *, seed: int
) -> Selection:
    """Return what is accepted of finished groups; the order in which they are given does not matter.

    Args:
        request: what was asked for; `check_filter` has passed it.
        groups: what is finished.
        seed: the request's, or one that was made for it.

    Raises:
        InvalidRequest: a score is infinite or not a number.
        ValueError: a group is there twice.
    """
    sieve = Sieve(request, seed)
    for group in sorted(groups, key=_order):
        sieve.add(group)
    return sieve.selection()


def is_reached(request: SyntheticDataGenerationRequest, selection: Selection) -> bool:
    """Tell whether so many are accepted as were asked for; without a target that is never so."""
    return request.target is not None and selection.statistics.accepted >= request.target


def most_candidates(request: SyntheticDataGenerationRequest, num_candidates: int) -> int:
    """Return how many candidates a request may take, all in all.

    Args:
        request: what was asked for.
        num_candidates: the request's, or the deployment's default.
    """
    wave = len(request.prompts) * num_candidates
    if request.target is None:
        return wave
    if request.max_candidates is not None:
        return request.max_candidates
    kept = num_candidates
    if request.filtering_function in TAKES_K and request.k is not None:
        kept = min(kept, request.k)
    fewest_waves = -(-request.target // (len(request.prompts) * kept))
    return wave * fewest_waves * DEFAULT_WAVES


class Sieve:
    """Decides of one group after the other, in their order; what was decided of one does not change by later ones.

    A candidate passes, in this order: that it was generated; that it was scored; the threshold; the comparison with what
    passed the threshold before, of the same prompt; the filter, which chooses among what is left of the group; the target.
    """

    def __init__(self, request: SyntheticDataGenerationRequest, seed: int) -> None:
        self.request = request
        self.seed = seed
        self.accepted = 0
        self._last = (-1, -1)
        self._judged: dict[int, list[tuple[Candidate, Fate]]] = {}
        self._distinct: dict[int, Distinct] = {}

    def add(self, group: Group) -> None:
        """Decide of a group.

        Raises:
            InvalidRequest: a score is infinite or not a number.
            ValueError: a later group was decided of, or this one.
        """
        if _order(group) <= self._last:
            raise ValueError(f"group {_order(group)} comes after group {self._last}")
        self._last = _order(group)
        fates = self._fates(group)
        self.accepted += fates.count(Fate.accepted)
        judged = self._judged.setdefault(group.prompt, [])
        judged.extend(zip(group.candidates, fates, strict=True))

    def _fates(self, group: Group) -> list[Fate]:
        check_scores(_scores(group.candidates))
        fates = [self._fate(group.prompt, candidate) for candidate in group.candidates]
        left = [place for place, fate in enumerate(fates) if fate is Fate.filtered_out]
        kept = chosen(
            self.request.filtering_function,
            _scores([group.candidates[place] for place in left]),
            k=self.request.k,
            p=self.request.p,
            generator=Random(group_seed(self.seed, group.prompt, group.wave)),  # noqa: S311
        )
        target = self.request.target
        room = len(kept) if target is None else target - self.accepted
        for rank, number in enumerate(kept):
            fates[left[number]] = Fate.accepted if rank < room else Fate.surplus
        return fates

    def _fate(self, prompt: int, candidate: Candidate) -> Fate:
        """Return what a candidate comes to if the filter does not choose it."""
        reward, bound = self.request.reward_scoring, self.request.max_similarity
        if candidate.message is None:
            return Fate.failed
        if isinstance(candidate.score, Failure):
            return Fate.unscored
        if reward and reward.threshold is not None and candidate.score < reward.threshold:
            return Fate.below_threshold
        if bound is not None:
            distinct = self._distinct.setdefault(prompt, Distinct(bound))
            if not distinct.add(_text(candidate.message)):
                return Fate.duplicates
        return Fate.filtered_out

    def selection(self) -> Selection:
        """Return what was decided so far; `seconds` is left to the caller."""
        prompts = sorted(self._judged.items())
        judged = [entry for _, entries in prompts for entry in entries]
        candidates = [candidate for candidate, _ in judged]
        errors = Counter(
            candidate.score.code for candidate in candidates if isinstance(candidate.score, Failure)
        )
        return Selection(
            accepted=[self._generations(index, entries) for index, entries in prompts],
            statistics=SyntheticDataStatistics(
                prompts=len(prompts),
                candidates=len(judged),
                **Counter(fate.value for _, fate in judged),
                before=distribution(_scores(candidates)),
                after=distribution(_scores(_of(Fate.accepted, judged))),
                per_prompt=[_prompt_statistics(index, entries) for index, entries in prompts],
                errors=dict(sorted(errors.items())),
                prompt_tokens=sum(candidate.prompt_tokens for candidate in candidates),
                completion_tokens=sum(candidate.completion_tokens for candidate in candidates),
            ),
        )

    def _generations(
        self, index: int, judged: Sequence[tuple[Candidate, Fate]]
    ) -> KScoredPromptGenerations:
        scored = [
            ScoredMessage(candidate.message, candidate.score, candidate.parts)
            for candidate in _of(Fate.accepted, judged)
            if candidate.message is not None and not isinstance(candidate.score, Failure)
        ]
        unscored = [
            UnscoredGeneration(place, candidate.score.code, candidate.score.message)
            for place, (candidate, _) in enumerate(judged)
            if candidate.message is not None and isinstance(candidate.score, Failure)
        ]
        scored.sort(key=lambda message: message.score, reverse=True)
        return KScoredPromptGenerations(
            self.request.prompts[index], scored, index=index, unscored=unscored
        )


def _prompt_statistics(index: int, judged: Sequence[tuple[Candidate, Fate]]) -> PromptStatistics:
    scores = _scores([candidate for candidate, _ in judged])
    accepted = len(_of(Fate.accepted, judged))
    return PromptStatistics(index, len(judged), accepted, best=max(scores, default=None))


def _order(group: Group) -> tuple[int, int]:
    return group.wave, group.prompt


def _of(wanted: Fate, judged: Iterable[tuple[Candidate, Fate]]) -> list[Candidate]:
    return [candidate for candidate, fate in judged if fate is wanted]


def _scores(candidates: Iterable[Candidate]) -> list[float]:
    return [candidate.score for candidate in candidates if not isinstance(candidate.score, Failure)]


def _text(message: Message) -> str:
    """Return what an answer is compared by; one that is more than text, by all of it."""
    if isinstance(message.content, str) and not message.tool_calls:
        return message.content
    return encode(message).decode()
