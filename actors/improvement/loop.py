"""One attempt of a loop: step by step, each of them done, told, and then kept as done."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import anyio
from msgspec.structs import replace

from ...schemas import (
    AylluError,
    ImproveRequest,
    JobEventKind,
    JobFailure,
    JobProgress,
    NotFound,
    PostTrainingJobStatus,
)
from ..jobs.holding import CRASHED, FOREVER, Hold
from ..jobs.jobs import Jobs
from ..jobs.records import JobRecord
from ..jobs.runner import Runner
from ..patience import persistently
from .following import Follower, LoopEnds
from .plan import Evaluate, Generate, Step, Train, next_step, phase_of
from .records import LoopRecords
from .state import LoopState, best_of, broken_off, stages_done, stages_of
from .steps import Steps

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often in a row a loop may crash, without a step between, or a stage that went on."""


class Loop:
    """A loop, by the runner that has its lease.

    Args:
        jobs: the jobs.
        records: the states of loops.
        job: the loop's id.
    """

    def __init__(self, jobs: Jobs, records: LoopRecords, job: str) -> None:
        self._jobs = jobs
        self._records = records
        self._job = job
        # What has ended is not taken up again: so a cancelled loop ends only once it has let go of what it had begun.
        self._hold = Hold(jobs, job, None, ATTEMPTS, tidies=True)
        self._follower = Follower(self._hold)

    def look(self) -> None:
        """Look at once whether the loop was cancelled."""
        self._follower.look()

    async def run(self) -> JobRecord:
        """Run all steps that are not done; returns the job as it then stands: ended, or crashed and to be tried again.

        When cancelled, the job goes back to the queue; its running stage goes on meanwhile.

        Raises:
            Fenced: another runner has taken it up.
        """
        try:
            record = await self._hold.claim()
            if record.ended:  # Its runners died too often.
                await self._let_go(record)
                return record
            failure = await self._looped(record)
            if failure is not None and failure.code != CRASHED:
                # As it is now: with the stage that this attempt has come to, and not if another one has taken over.
                await self._let_go(await self._hold.change(lambda known: known))
            return await self._hold.conclude(failure)
        except anyio.get_cancelled_exc_class():
            await self._hold.give_back()
            raise

    async def _looped(self, record: JobRecord) -> JobFailure | None:
        try:
            request = await self._request(record)
            steps = Steps(self._jobs.bus, request, self._follower)
            state = await persistently(lambda: self._records.state(self._job), patience=FOREVER)
            # Earlier attempts are fenced off from here on.
            state = await self._keep(replace(state, attempt=record.attempt))
            while (step := next_step(request, state)) is not None:
                await self._begin(step, request, state)
                after, line = await steps.done(step, state)
                await self._tell_done(request, after, line)
                state = await self._keep(after)
        except LoopEnds as end:
            return end.failure
        except AylluError as error:
            # What may pass by itself is tried again, as a crash is.
            return JobFailure(CRASHED if error.retryable else error.code, error.message)
        return None

    async def _request(self, record: JobRecord) -> ImproveRequest:
        read = partial(self._jobs.request, record, ImproveRequest)
        return await persistently(read, patience=FOREVER)

    async def _keep(self, state: LoopState) -> LoopState:
        keep = partial(self._records.keep, self._job, state)
        return await persistently(keep, patience=FOREVER)

    async def _begin(self, step: Step, request: ImproveRequest, state: LoopState) -> None:
        """Say what is done next, and by which job: whoever cancels the loop then finds that."""
        await self._follower.check_cancelled()
        phase, stage = phase_of(step), _stage_of(step)
        progress = _progress(request, state)

        def begun(known: JobRecord) -> JobRecord:
            return replace(known, phase=phase, stage=stage, progress=progress)

        await self._hold.change(begun)
        await self._hold.tell(
            JobEventKind.status,
            lines=[f"{phase}: {stage}" if stage else phase],
            status=PostTrainingJobStatus.running,
            phase=phase,
            trial=stage,
            progress=progress,
        )

    async def _tell_done(self, request: ImproveRequest, after: LoopState, line: str) -> None:
        progress = _progress(request, after)
        await self._hold.tell(JobEventKind.progress, lines=[line], progress=progress)
        # A step that is done is progress: crashes before and after it are not in a row.
        await self._hold.change(lambda known: replace(known, progress=progress, crashes=0))

    async def _let_go(self, record: JobRecord) -> None:
        """Leave nothing behind that was not judged: a loop that fails, or is cancelled, serves what it served before."""
        try:
            if record.stage is not None:
                with suppress(NotFound):  # It had not begun; or it has ended, and stays as it is.
                    await self._follower.cancel(record.stage)
            state = await persistently(lambda: self._records.state(self._job))
            last = state.rounds[-1] if state.rounds else None
            if last is not None and last.trained and last.kept is None:
                request = await self._request(record)
                await Steps(self._jobs.bus, request, self._follower).withdraw(state)
                await self._keep(broken_off(state))
        except AylluError as error:
            log.warning("what %s has registered last is still served: %s", self._job, error)


def loop_runner(jobs: Jobs, records: LoopRecords) -> Runner:
    """Return what runs loops, one after the other."""

    async def run_of(record: JobRecord) -> Loop:
        return Loop(jobs, records, record.job)

    return Runner(jobs, "loop", "loop", run_of)


def _stage_of(step: Step) -> str | None:
    """Return the job that does a step."""
    return step.job if isinstance(step, Evaluate | Generate | Train) else None


def _progress(request: ImproveRequest, state: LoopState) -> JobProgress:
    figures = {}
    best = best_of(request, state)
    if state.baseline is not None:
        figures["baseline"] = state.baseline.mean
    if best is not None:
        figures["best"] = best.evaluation.mean
    last = next((one for one in reversed(state.rounds) if one.evaluation is not None), None)
    if last is not None and last.evaluation is not None:
        figures["last"] = last.evaluation.mean
    return JobProgress(stages_done(state), stages_of(request), "stages", figures)
