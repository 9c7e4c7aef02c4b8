"""One attempt of a job: prepared, trained in a child, followed to its end, or to whatever cuts it short."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import anyio
from msgspec.structs import replace

from ...bus.processes import foreign_environment
from ...schemas import (
    AylluError,
    BusError,
    JobEventKind,
    JobFailure,
    JobMetrics,
    PostTrainingJobStatus,
)
from ...schemas.tasks import background_tasks
from ..jobs.holding import CANCELLED, CRASHED, FOREVER, Fenced, Hold
from ..jobs.jobs import Jobs
from ..jobs.records import JobRecord
from ..patience import persistently
from .launching import child_environment
from .preparing import Workshop
from .process import Child, running_child
from .protocol import (
    Completed,
    Failed,
    FromChild,
    Log,
    Measured,
    Phase,
    Saved,
    Sealing,
    Started,
    Stopped,
    write_run,
)
from .validation import request_type

log = logging.getLogger(__name__)

RECORD_SECONDS = 2.0
"""How often a job's last figures are kept with it; all of them are events."""
LOOK_SECONDS = 2.0
"""How often it is looked whether a job was cancelled, should the signal of it be lost."""
PRUNED = "pruned"

Judge = Callable[[JobMetrics], bool]
"""Tells of each validation whether the job shall go on."""


class Attempt:
    """An attempt of a job, by the trainer that has its lease.

    Args:
        jobs: the jobs.
        workshop: where it is run.
        job: its id.
        device: what it runs on.
        judge: ends it early, as a trial that promises nothing.
    """

    def __init__(
        self, jobs: Jobs, workshop: Workshop, job: str, device: str, judge: Judge | None = None
    ) -> None:
        self._hold = Hold(jobs, job, device, workshop.settings.attempts)
        self._device = device
        self._workshop = workshop
        self._judge = judge
        self._kept_at = float("-inf")
        self._look = anyio.Event()
        self._why: JobFailure | None = None  # it shall stop

    def look(self) -> None:
        """Look at once whether the job was cancelled."""
        self._look.set()

    def stop(self, why: JobFailure) -> None:
        """End the job with a failure, within an iteration; its checkpoints are kept."""
        self._why = self._why or why
        self._look.set()

    async def run(self) -> JobRecord:
        """Run the job; returns it as it then stands: ended, or crashed and to be tried again.

        When cancelled, the job goes back to the queue, and goes on from its last checkpoint.

        Raises:
            Fenced: another trainer has taken it up.
        """
        return await self._hold.attempt(self._trained)

    async def _trained(self, record: JobRecord) -> JobFailure | None:
        """Train, and return why that failed."""
        jobs = self._hold.jobs
        try:
            request = await persistently(
                lambda: jobs.request(record, request_type(record.kind)), patience=FOREVER
            )
            spec, prepared = await self._workshop.prepare(record, request, self._device)
            fingerprints = {"dataset": prepared.dataset, "validation": prepared.validation}
            await self._hold.change(lambda known: replace(known, **fingerprints))
            folder = self._workshop.job_folder(record.job)
            folder.mkdir(parents=True, exist_ok=True)
            write_run(folder, spec)
            command = self._workshop.command(spec, folder)
            known = foreign_environment()
            return await self._in_child(
                command, lambda socket: child_environment(spec, socket, known)
            )
        except AylluError as error:
            # What may pass by itself is tried again, as a crash is.
            code = CRASHED if error.retryable else error.code
            return JobFailure(code, error.message, list(self._hold.tail))
        except OSError as error:
            return JobFailure("storage", f"the job's folder cannot be used: {error.strerror}")

    async def _in_child(
        self, command: list[str], environment: Callable[[Path], dict[str, str]]
    ) -> JobFailure | None:
        async with running_child(command, environment) as child, background_tasks() as tasks:
            tasks.start_soon(self._watch, child)
            last = await self._heard(child)
        if isinstance(last, Completed):
            return None
        if isinstance(last, Failed):
            return JobFailure(last.code, last.message, list(self._hold.tail))
        if self._why is not None:
            return self._why
        return JobFailure(CRASHED, _end_of(child.status), list(self._hold.tail))

    async def _watch(self, child: Child) -> None:
        """Stop a child whose job was cancelled; kill it, if it does not stop in time."""
        while self._why is None:
            with anyio.move_on_after(LOOK_SECONDS):
                await self._look.wait()
            self._look = anyio.Event()
            try:
                if await self._hold.shall_end():
                    self.stop(JobFailure(CANCELLED, "it was cancelled"))
            except BusError as error:
                log.debug("whether %s was cancelled cannot be told: %s", self._hold.job, error)
            except Fenced:
                # Whatever is kept of the job next says so too.
                child.kill()
                return
        await child.stop()
        await anyio.sleep(self._workshop.settings.stop_seconds)
        log.warning("%s did not stop in time, and is killed", self._hold.job)
        child.kill()

    async def _heard(self, child: Child) -> FromChild | None:
        """Keep what a child says; return its last word, if it has said that it is at its end."""
        last: FromChild | None = None
        async for message in child.messages:
            if isinstance(message, Completed | Stopped | Failed):
                last = message
            elif isinstance(message, Log):
                await self._hold.tell(JobEventKind.log, lines=message.lines)
            elif isinstance(message, Measured):
                await self._measured(message.metrics)
            elif isinstance(message, Sealing):
                await child.keep()
            elif isinstance(message, Saved):
                await self._saved(message)
            elif isinstance(message, Phase):
                await self._enter(message.phase)
            elif isinstance(message, Started):
                await self._started(message)
        return last

    async def _measured(self, metrics: JobMetrics) -> None:
        await self._hold.tell(JobEventKind.metrics, lines=[line_of(metrics)], metrics=metrics)
        if metrics.validation_loss is not None:
            if self._judge is not None and not self._judge(metrics):
                self.stop(JobFailure(PRUNED, "it promised less than the other trials"))
        elif anyio.current_time() < self._kept_at + RECORD_SECONDS:
            return
        self._kept_at = anyio.current_time()
        await self._hold.change(lambda known: with_metrics(known, metrics))

    async def _saved(self, saved: Saved) -> None:
        checkpoint = saved.checkpoint
        line = f"checkpoint after iteration {checkpoint.iters}"
        await self._hold.tell(JobEventKind.checkpoint, lines=[line], checkpoint=checkpoint)
        gone = {*saved.pruned, checkpoint.iters}

        def kept(known: JobRecord) -> JobRecord:
            others = [one for one in known.checkpoints if one.iters not in gone]
            return replace(known, checkpoints=[*others, checkpoint], crashes=0)

        await self._hold.change(kept)

    async def _enter(self, phase: str) -> None:
        await self._hold.change(lambda known: replace(known, phase=phase))
        await self._hold.tell(
            JobEventKind.status, status=PostTrainingJobStatus.running, phase=phase
        )

    async def _started(self, started: Started) -> None:
        after = f", from iteration {started.after} on" if started.after else ""
        await self._hold.tell(JobEventKind.log, lines=[f"{started.total} iterations{after}"])
        await self._hold.change(
            lambda known: replace(known, resources={**known.resources, **started.resources})
        )


def _end_of(status: int | None) -> str:
    if status is not None and status < 0:
        return f"its process was ended by signal {-status}"
    return f"its process ended with status {status}"


def line_of(metrics: JobMetrics) -> str:
    """Return figures as a line of the log."""
    parts = [f"iteration {metrics.iteration}/{metrics.total}"]
    for name, value, shape in (
        ("loss", metrics.loss, ".4f"),
        ("validation loss", metrics.validation_loss, ".4f"),
        ("learning rate", metrics.learning_rate, ".3g"),
        ("gradient norm", metrics.gradient_norm, ".3g"),
        *((name, value, ".4g") for name, value in metrics.other.items()),
    ):
        if value is not None:
            parts.append(f"{name} {value:{shape}}")
    if metrics.tokens_per_second is not None:
        parts.append(f"{metrics.tokens_per_second:.0f} tokens/s")
    if metrics.memory_bytes:
        parts.append(f"{metrics.memory_bytes / 1e9:.2f} GB")
    return ", ".join(parts)


def with_metrics(record: JobRecord, metrics: JobMetrics) -> JobRecord:
    """Return a job with its last figures, and its lowest validation loss."""
    losses = [
        loss for loss in (record.validation_loss, metrics.validation_loss) if loss is not None
    ]
    return replace(record, metrics=metrics, validation_loss=min(losses) if losses else None)
