"""Generation: answers asked for, many at once; their scores, many prompts at once; wave after wave, until there is enough."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from msgspec.structs import replace

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import (
    AylluError,
    ChatCompletionRequest,
    Dialog,
    EngineError,
    Inference,
    InvalidRequest,
    Message,
    Role,
    SamplingParams,
    SamplingStrategy,
    SyntheticDataStatistics,
)
from ..patience import persistently
from .candidates import Generated, JobCandidates, Place, Verdicts, Work, seconds_of
from .filters import candidate_seed
from .scoring import Scorer
from .selection import Failure, Selection, Sieve, most_candidates
from .settings import Resolved

SCORED_AT_ONCE = 32
"""How many groups are scored in one call, at most."""


@dataclass(frozen=True, slots=True)
class Generator:
    """What generates for all requests and jobs of a worker.

    Attributes:
        bus: where models and reward models are.
        free: how many answers may be asked for at once.
        patience: how long a model, a reward model or the bus may be away, in seconds.
    """

    bus: Bus
    free: anyio.CapacityLimiter
    patience: float = 60.0


@dataclass(slots=True)
class Counts:
    """How far a generation is."""

    candidates: int = 0
    scored: int = 0
    total_score: float = 0.0
    accepted: int = 0


class Generation:
    """One request, from its first candidate to its last.

    Args:
        generator: generates.
        request: what is asked for.
        seed: makes the choices of the filters repeatable.
        keeper: keeps what is finished; without one, it goes with this object.
        work: what was finished before.
    """

    def __init__(
        self,
        generator: Generator,
        request: Resolved,
        seed: int,
        keeper: JobCandidates | None = None,
        work: dict[Place, Work] | None = None,
    ) -> None:
        self.counts = Counts()
        self.total = most_candidates(request, request.num_candidates)
        self._generator = generator
        self._request = request
        self._keeper = keeper
        self._work = {} if work is None else work
        self._sieve = Sieve(request, seed)
        self._inference = client(Inference, generator.bus)
        self._scorer = Scorer(generator.bus, request, generator.patience)
        for group in self._work.values():
            self._count(group)

    async def run(self) -> Selection:
        """Generate until there is enough, or the budget is spent.

        Raises:
            AylluError: it cannot go on: the model is not there, the bus is away for too long. What is finished is kept.
        """
        for wave in self._waves():
            try:
                await self._run_wave(wave)
            except BaseExceptionGroup as group:
                raise first_error(group) from None
            # Comparing the answers of thousands of prompts takes seconds, in which leases run out.
            await anyio.to_thread.run_sync(self._sift, wave)
            self.counts.accepted = self._sieve.accepted
            if self._sieve.accepted >= (self._request.target or inf):
                break
        return await anyio.to_thread.run_sync(self._selection)

    def _sift(self, wave: list[Work]) -> None:
        for work in wave:
            finished = work.finished()
            assert finished is not None
            self._sieve.add(finished)

    def _selection(self) -> Selection:
        """Return what is accepted of the waves that are finished."""
        selection = self._sieve.selection()
        return with_seconds(selection, seconds_of(self._work))

    def _waves(self) -> Iterator[list[Work]]:
        """Yield the groups of wave after wave, as far as the budget goes."""
        left, wave = self.total, 0
        while left > 0:
            groups = []
            for prompt in range(len(self._request.prompts)):
                size = min(left, self._request.num_candidates)
                if size:
                    place = Place(wave, prompt)
                    work = self._work.setdefault(place, Work(place, size))
                    work.size = size
                    groups.append(work)
                left -= size
            yield groups
            wave += 1

    async def _run_wave(self, groups: list[Work]) -> None:
        send, receive = anyio.create_memory_object_stream[Work](SCORED_AT_ONCE)
        missing = ((work, number) for work in groups for number in work.missing)
        generated = [work for work in groups if not work.missing and work.verdicts is None]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._score_all, receive)
            async with send:
                tasks.start_soon(self._send_all, generated, send.clone())
                for _ in range(int(self._generator.free.total_tokens)):
                    tasks.start_soon(self._generate_all, missing, send.clone())

    async def _send_all(self, groups: list[Work], to: MemoryObjectSendStream[Work]) -> None:
        async with to:
            for work in groups:
                await to.send(work)

    async def _generate_all(
        self, missing: Iterator[tuple[Work, int]], to: MemoryObjectSendStream[Work]
    ) -> None:
        """Generate what nobody else generates yet; a group whose last answer it was goes on to be scored."""
        async with to:
            for work, number in missing:
                async with self._generator.free:
                    one = await self._generate(work.place, number)
                work.generated[number] = await self._kept(work.place, number, one)
                self.counts.candidates += 1
                if not work.missing:
                    await to.send(work)

    async def _generate(self, place: Place, number: int) -> Generated:
        request = self._chat(place, number)
        try:
            answer = await persistently(
                lambda: self._inference.chat_completion(request), patience=self._generator.patience
            )
        except (InvalidRequest, EngineError) as error:
            # It is this prompt's, or this answer's; what is away or dead was tried again.
            if error.retryable:
                raise
            return Generated(failure=Failure(error.code, error.message), at=time.time())
        usage = answer.usage
        return Generated(
            Message(Role.assistant, answer.content, answer.tool_calls),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            at=time.time(),
        )

    def _chat(self, place: Place, number: int) -> ChatCompletionRequest:
        request = self._request
        seed = request.seed
        if seed is not None:
            seed = candidate_seed(seed, place.prompt, place.wave, number)
        sampling = SamplingParams()
        if request.temperature:
            sampling = SamplingParams(request.temperature, SamplingStrategy.top_p, seed=seed)
        before = request.help or request.context
        return ChatCompletionRequest(
            model=request.model,
            dialog=Dialog(request.prompts[place.prompt], list(before) or None),
            sampling_params=sampling,
            max_tokens=request.max_tokens,
        )

    async def _score_all(self, generated: MemoryObjectReceiveStream[Work]) -> None:
        async with generated:
            async for work in generated:
                batch = [work]
                while len(batch) < SCORED_AT_ONCE and generated.statistics().current_buffer_used:
                    batch.append(generated.receive_nowait())
                async for scored, verdicts in self._scorer.score(batch):
                    scored.verdicts = await self._kept_scores(scored.place, verdicts)
                    self._count_scores(scored)

    async def _kept(self, place: Place, number: int, one: Generated) -> Generated:
        keeper = self._keeper
        if keeper is None:
            return one
        return await persistently(
            lambda: keeper.generated(place, number, one), patience=self._generator.patience
        )

    async def _kept_scores(self, place: Place, verdicts: Verdicts) -> Verdicts:
        keeper = self._keeper
        if keeper is None:
            return verdicts
        return await persistently(
            lambda: keeper.scored(place, verdicts), patience=self._generator.patience
        )

    def _count(self, group: Work) -> None:
        self.counts.candidates += len(group.generated)
        self._count_scores(group)

    def _count_scores(self, group: Work) -> None:
        verdicts = group.verdicts.by_number.values() if group.verdicts is not None else ()
        for verdict in verdicts:
            if not isinstance(verdict.score, Failure):
                self.counts.scored += 1
                self.counts.total_score += verdict.score


def with_seconds(selection: Selection, seconds: float) -> Selection:
    """Return a selection that says how long it took."""
    statistics: SyntheticDataStatistics = replace(selection.statistics, seconds=seconds)
    return replace(selection, statistics=statistics)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that the end of several tasks is told by: one of ours, if there is any."""
    ours, _ = group.split(AylluError)
    found: BaseException = ours or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
