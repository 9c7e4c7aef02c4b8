"""Candidates, as they are kept: each once, whatever dies, in a stream of the bus; or in memory for a call.

ayllu.v1.data.<job>.<wave>.<prompt>.<number>   an answer, or why there is none (`Generated`)
ayllu.v1.data.<job>.<wave>.<prompt>.scores     the scores of a group (`Verdicts`)

The first of two that are kept under one name is the one that counts, for whoever comes later too: a job that two workers
believe to be theirs has one result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import msgspec

from ...bus.bus import Bus
from ...bus.durable import StreamSpec
from ...bus.subjects import ROOT, encode_token
from ...schemas import BusError, Conflict, Message, decode, encode
from ..jobs.records import DAY
from .selection import Candidate, Failure, Group

T = TypeVar("T")

DATA = StreamSpec(
    name="SYNTHETIC_DATA",
    subjects=(f"{ROOT}.data.*.*.*.*",),
    max_bytes=8 << 30,
    max_age=90 * DAY,
    # A full stream refuses new candidates: none that is finished may be lost.
    discard="new",
)
SCORES = "scores"


class Place(NamedTuple):
    """Which group: groups are ordered by it."""

    wave: int
    prompt: int


class Generated(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer that was asked for.

    Attributes:
        message: the answer.
        failure: why there is none.
        prompt_tokens: how long the prompt was.
        completion_tokens: how long the answer is.
        at: when it was there, in seconds since the epoch.
    """

    message: Message | None = None
    failure: Failure | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    at: float = 0.0


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a reward model makes of an answer."""

    score: float | Failure
    parts: dict[str, float] = {}


class Verdicts(msgspec.Struct, frozen=True):
    """The scores of the answers of a group, by their numbers; those that failed have none."""

    by_number: dict[int, Verdict]
    at: float = 0.0


class Work:
    """The candidates of one group so far.

    Args:
        place: which group.
        size: how many it shall have.
    """

    def __init__(self, place: Place, size: int) -> None:
        self.place = place
        self.size = size
        self.generated: dict[int, Generated] = {}
        self.verdicts: Verdicts | None = None

    @property
    def missing(self) -> list[int]:
        """The numbers of the candidates that are not generated."""
        return [number for number in range(self.size) if number not in self.generated]

    @property
    def answered(self) -> dict[int, Message]:
        """The answers, by number."""
        return {
            number: one.message
            for number, one in sorted(self.generated.items())
            if one.message is not None
        }

    def finished(self) -> Group | None:
        """Return the group, if it is finished."""
        if self.missing or self.verdicts is None:
            return None
        return Group(self.place.prompt, self.place.wave, list(self._candidates(self.verdicts)))

    def _candidates(self, verdicts: Verdicts) -> Iterator[Candidate]:
        for number, one in sorted(self.generated.items()):
            verdict = verdicts.by_number[number] if one.failure is None else Verdict(one.failure)
            yield Candidate(
                one.message, verdict.score, verdict.parts, one.prompt_tokens, one.completion_tokens
            )


class JobCandidates:
    """The candidates of a job, in the stream.

    Args:
        bus: the bus.
        job: the job's id.
    """

    def __init__(self, bus: Bus, job: str) -> None:
        self._streams = bus.storage.streams
        self._prefix = f"{ROOT}.data.{encode_token(job)}"

    async def generated(self, place: Place, number: int, one: Generated) -> Generated:
        """Keep an answer; returns the one that counts.

        Raises:
            BusError: no answer; the same again is safe.
            Overloaded: the stream is full.
        """
        return await self._first(f"{place.wave}.{place.prompt}.{number}", one)

    async def scored(self, place: Place, verdicts: Verdicts) -> Verdicts:
        """Keep the scores of a group; returns those that count. Errors are those of `generated`."""
        return await self._first(f"{place.wave}.{place.prompt}.{SCORES}", verdicts)

    async def _first(self, name: str, value: T) -> T:
        subject = f"{self._prefix}.{name}"
        try:
            appended = await self._streams.append(
                subject, encode(value), msg_id=subject, expected_last=0
            )
            if not appended.duplicate:
                return value
        except Conflict:
            pass
        entry = await self._streams.last(DATA.name, subject)
        if entry is None:
            raise BusError(f"a candidate is gone from the stream {DATA.name}", retryable=False)
        return decode(entry.payload, type(value))

    async def load(self, work: dict[Place, Work]) -> None:
        """Fill in what is kept; groups that are not planned yet are added, of the size that they have."""
        async with self._streams.replay(DATA.name, f"{self._prefix}.>") as entries:
            async for entry in entries:
                wave, prompt, name = entry.subject.removeprefix(f"{self._prefix}.").split(".")
                place = Place(int(wave), int(prompt))
                known = work.setdefault(place, Work(place, 0))
                if name == SCORES:
                    known.verdicts = decode(entry.payload, Verdicts)
                else:
                    known.generated[int(name)] = decode(entry.payload, Generated)
                    known.size = max(known.size, int(name) + 1)


def seconds_of(work: dict[Place, Work]) -> float:
    """Return the time from the first candidate to the last score."""
    times = [one.at for group in work.values() for one in group.generated.values()]
    times += [group.verdicts.at for group in work.values() if group.verdicts is not None]
    return max(times) - min(times) if times else 0.0
