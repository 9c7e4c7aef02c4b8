"""``ayllu improve``: a loop from a file, followed to its end, and its report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import anyio
from anyio.abc import TaskGroup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..client import Stack, connect
from ..schemas import (
    AylluError,
    Evaluation,
    Improvement,
    ImprovementReport,
    ImproveRequest,
    InvalidRequest,
    JobEvent,
    NotFound,
    PostTrainingJobStatus,
    encode,
)
from ..schemas.tasks import background_tasks
from .improve_files import request_of
from .improvement_report import write_report
from .job_commands import RETRY_SECONDS, JobFailed, followed
from .job_view import JobView


def prepare_improve(options: argparse.Namespace) -> ImproveRequest | None:
    """Return the loop that ``ayllu improve`` shall start; None where it shall only report. Needs no gateway.

    Raises:
        InvalidRequest: the file is wrong, or there is none.
    """
    if options.action == "report":
        return None
    if options.config is None:
        raise InvalidRequest(
            "which loop? Give --config FILE; `ayllu improve --help` has an example"
        )
    return request_of(options.config, options.job)


async def run_improve(
    url: str, token: str | None, options: argparse.Namespace, request: ImproveRequest | None
) -> None:
    """Do what ``ayllu improve`` was asked for.

    Args:
        url: the gateway.
        token: the client's token.
        options: the command line.
        request: the loop to start, from `prepare_improve`.

    Raises:
        JobFailed: the loop has failed; its report is written all the same.
        AylluError: it could not be started, or followed.
    """
    async with connect(url, token=token) as stack:
        loops = stack.api(Improvement)
        job = options.job if request is None else request.job_uuid
        if request is not None:
            await loops.start(request)
            sys.stderr.write(f"{hint(job)}\n")
            if not options.follow:
                sys.stdout.write(f"{job}\n")
                return
            await _follow(stack, job, shown=not options.json)
        report = await loops.report(job)
        await _give(report, options)
    if request is not None and report.failure is not None:
        raise JobFailed(f"{job} failed: {report.failure.code}: {report.failure.message}")


def hint(job: str) -> str:
    """Return how to follow a loop, and how to end it."""
    named = shlex.quote(job)
    return f"loop {job}: ayllu logs -f {named}; ayllu jobs cancel {named}"


async def _give(report: ImprovementReport, options: argparse.Namespace) -> None:
    """Write a report, and say what is in it."""
    folder = options.out or Path(f"improvement-{quote(report.job_uuid, safe='')}")
    paths = await anyio.to_thread.run_sync(write_report, report, folder)
    if options.json:
        sys.stdout.write(encode(report).decode() + "\n")
    else:
        Console().print(table_of(report))
    sys.stderr.write("".join(f"{path}\n" for path in paths))


async def _follow(stack: Stack, job: str, *, shown: bool) -> None:
    """Follow a loop to its end; the stage that runs has a bar of its own below that of the loop."""
    if not shown:
        async for _ in followed(stack, job):
            pass
        return
    with JobView(plot=False) as view:
        if not view.terminal:
            await view.show(followed(stack, job))
            return
        async with background_tasks() as tasks:
            await view.show(_with_stages(stack, job, view, tasks))


async def _with_stages(
    stack: Stack, job: str, view: JobView, tasks: TaskGroup
) -> AsyncIterator[JobEvent]:
    """Yield the events of a loop, and let the view show the stage that runs meanwhile."""
    stage = anyio.CancelScope()
    async for event in followed(stack, job):
        if event.progress is not None or event.status is not None:
            stage.cancel()
            view.end_stage()
        if event.trial is not None and event.status is PostTrainingJobStatus.running:
            stage = anyio.CancelScope()
            tasks.start_soon(_show_stage, stack, event.trial, view, stage)
        yield event


async def _show_stage(stack: Stack, stage: str, view: JobView, scope: anyio.CancelScope) -> None:
    with scope:
        while True:
            try:
                async for event in followed(stack, stage):
                    view.show_stage(event)
                return
            except NotFound:
                await anyio.sleep(RETRY_SECONDS)  # It is announced just before it begins.
            except AylluError as error:
                sys.stderr.write(f"{stage} cannot be followed: {error.message}\n")
                return


def table_of(report: ImprovementReport) -> Table:
    """Return what a loop did, for people."""
    title = Text(f"{report.job_uuid}: {report.status.value}")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "accepted", "loss", "held-out score", "gain", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    if report.baseline is not None:
        table.add_row("base", "", "", _score(report.baseline))
    if report.helped is not None:
        table.add_row("base with help", "", "", _score(report.helped))
    for one in report.rounds:
        counts = one.statistics
        losses = [point.loss for point in one.losses if point.loss is not None]
        verdict = {True: "kept", False: "not kept", None: ""}[one.kept]
        table.add_row(
            f"round {one.number}",
            f"{counts.accepted}/{counts.candidates}" if counts else "",
            f"{losses[-1]:.3f}" if losses else "",
            _score(one.evaluation) if one.evaluation else "",
            f"{one.gain:+.3f}" if one.gain is not None else "",
            verdict,
        )
    return table


def _score(evaluation: Evaluation) -> str:
    return f"{evaluation.mean:.3f} ({evaluation.low:.2f} to {evaluation.high:.2f})"
