"""A job in a terminal: its log, a bar with its last figures, and a plot of its losses; plain lines where there is none."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..schemas import JobEvent, JobMetrics, JobProgress, PostTrainingJobStatus

PLOT_HEIGHT, PLOT_WIDTH = 12, 100
_HARMLESS = dict.fromkeys([*range(9), *range(10, 32), *range(127, 160)], "�")


class Losses:
    """The losses of a job, by iteration; what an attempt that died had done is replaced by what the next one did."""

    def __init__(self) -> None:
        self._training: dict[int, float] = {}
        self._validation: dict[int, float] = {}

    def add(self, metrics: JobMetrics) -> None:
        """Add the figures of an iteration."""
        if metrics.loss is not None:
            self._training[metrics.iteration] = metrics.loss
        if metrics.validation_loss is not None:
            self._validation[metrics.iteration] = metrics.validation_loss

    def plot(self, width: int) -> str:
        """Return a plot of them for a terminal, or nothing where there is nothing to see."""
        from uniplot import plot_to_string

        curves = {
            name: sorted(losses.items())
            for name, losses in (("loss", self._training), ("validation", self._validation))
            if len(losses) > 1
        }
        if not curves:
            return ""
        return plot_to_string(
            xs=[[x for x, _ in curve] for curve in curves.values()],
            ys=[[y for _, y in curve] for curve in curves.values()],
            legend_labels=list(curves),
            lines=True,
            title="loss by iteration",
            width=max(20, min(PLOT_WIDTH, width - 16)),
            height=PLOT_HEIGHT,
            color=sys.stdout.isatty(),
        )


class JobView:
    """Shows the events of a job on stdout, and on a terminal a bar below them; used as ``with JobView() as view``.

    Attributes:
        losses: those that were shown.
        terminal: whether stdout is one.
    """

    def __init__(self, *, plot: bool = True) -> None:
        self.losses = Losses()
        self._plot = plot
        self.terminal = sys.stdout.isatty()
        self._console = Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self.terminal,
        )
        self._task = self._progress.add_task("waiting", total=None, figures="")
        self._stage = self._progress.add_task("", total=None, figures="", visible=False)

    def __enter__(self) -> JobView:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._plot and self.terminal and (plot := self.losses.plot(self._console.width)):
            self._console.print(Text.from_ansi(plot))

    async def show(self, events: AsyncIterator[JobEvent]) -> JobEvent | None:
        """Show events to their end, and return the last one."""
        last = None
        async for last in events:
            self._show(last)
        return last

    def _show(self, event: JobEvent) -> None:
        for line in event.lines:
            if self.terminal:
                shown = f"{event.at.astimezone():%H:%M:%S} {line.translate(_HARMLESS)}"
                self._console.print(shown, markup=False, emoji=False, soft_wrap=True)
            else:
                sys.stdout.write(f"{line}\n")
        if not self.terminal:
            sys.stdout.flush()
        if event.metrics is not None:
            self.losses.add(event.metrics)
        self._follow(self._task, event)

    def show_stage(self, event: JobEvent) -> None:
        """Show how far a job is that the shown one waits for, by a bar below its own."""
        self._progress.update(self._stage, visible=True)
        self._follow(self._stage, event)

    def end_stage(self) -> None:
        """Show no such job any more."""
        self._progress.reset(self._stage, total=None, visible=False, figures="")

    def _follow(self, task: TaskID, event: JobEvent) -> None:
        if event.metrics is not None:
            self._move(task, event.metrics)
        if event.progress is not None:
            self._advance(task, event.progress)
        if event.status is not None:
            waits = event.status is PostTrainingJobStatus.scheduled
            doing = "waiting" if waits else event.phase or event.status.value
            self._progress.update(task, description=doing)

    def _move(self, task: TaskID, metrics: JobMetrics) -> None:
        figures = []
        if metrics.loss is not None:
            figures.append(f"loss {metrics.loss:.3f}")
        if metrics.tokens_per_second is not None:
            figures.append(f"{metrics.tokens_per_second:.0f} tokens/s")
        if figures:
            self._progress.update(task, figures="  ".join(figures))
        self._progress.update(task, completed=metrics.iteration, total=metrics.total)

    def _advance(self, task: TaskID, progress: JobProgress) -> None:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
        self._progress.update(task, completed=progress.done, total=progress.total, figures=figures)
