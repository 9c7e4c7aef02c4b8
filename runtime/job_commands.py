"""``ayllu jobs`` and ``ayllu logs``: jobs from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator

import anyio

from ..client import Stack, connect
from ..schemas import AylluError, JobEvent, PostTrainingJobStatus, encode
from .agent_commands import write_json
from .job_view import JobView

RETRY_SECONDS = 1.0


class JobFailed(AylluError):  # noqa: N818 - it says what happened
    """The job that was followed has failed; its log says why."""

    code = "job_failed"


async def run_jobs(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu jobs`` was asked for.

    Raises:
        AylluError: what went wrong.
    """
    async with connect(url, token=token) as stack:
        if options.action in (None, "list"):
            await _list(stack, options)
        elif options.action == "show":
            write_json(await stack.post_training.job.status(options.job))
        elif options.action == "cancel":
            await stack.post_training.job.cancel(options.job)
        else:
            write_json(await stack.post_training.job.artifacts(options.job))


async def _list(stack: Stack, options: argparse.Namespace) -> None:
    async for job in stack.post_training.job.list(options.limit):
        if options.json:
            sys.stdout.write(encode(job).decode() + "\n")
            continue
        status = job.failure.code if job.failure else job.phase or job.status.value
        if job.position is not None:
            status += f" ({job.position} before it)"
        done = "-"
        if job.metrics:
            done = f"{job.metrics.iteration}/{job.metrics.total}"
        elif job.progress:
            done = f"{job.progress.done}/{job.progress.total}"
        loss = job.metrics.validation_loss or job.metrics.loss if job.metrics else None
        shown = "-" if loss is None else f"{loss:.4f}"
        sys.stdout.write(
            f"{job.job_uuid}\t{job.kind} {job.algorithm}".rstrip()
            + f"\t{job.model}\t{status}\t{done}\t{shown}\n"
        )


async def run_logs(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu logs`` was asked for.

    Raises:
        JobFailed: the job has failed.
        AylluError: what went wrong.
    """
    async with connect(url, token=token) as stack:
        await show_job(
            stack, options.job, follow=options.follow, json=options.json, plot=not options.no_plot
        )


async def show_job(
    stack: Stack, job: str, *, follow: bool = True, json: bool = False, plot: bool = True
) -> None:
    """Show the events of a job, and follow it to its end if that is wanted.

    Raises:
        JobFailed: it has failed.
    """
    events = followed(stack, job) if follow else stack.post_training.job.events(job, follow=False)
    if json:
        last = None
        async for last in events:
            sys.stdout.write(encode(last).decode() + "\n")
            sys.stdout.flush()
    else:
        with JobView(plot=plot) as view:
            last = await view.show(events)
    check_end(job, last)


def check_end(job: str, last: JobEvent | None) -> None:
    """Say by the last event of a job that it has failed.

    Raises:
        JobFailed: it has.
    """
    if last is not None and last.status is PostTrainingJobStatus.failed:
        raise JobFailed(last.lines[0] if last.lines else f"{job} failed")


async def followed(stack: Stack, job: str) -> AsyncIterator[JobEvent]:
    """Yield the events of a job to its end, over broken connections and absences of its actor."""
    after = 0
    while True:
        try:
            async for event in stack.post_training.job.events(job, after):
                after = event.index
                yield event
            return
        except AylluError as error:
            # What was never there is not waited for.
            if not error.retryable or not after:
                raise
            sys.stderr.write(f"{error.message}; trying again\n")
            await anyio.sleep(RETRY_SECONDS)
