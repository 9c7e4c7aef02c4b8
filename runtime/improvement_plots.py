"""Plots of a loop's report: pictures as text, each whole in itself.

No text of models or users stands in them: matplotlib would read some of it as formulas.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..schemas import Evaluation, ImprovementReport, LossPoint, SyntheticDataStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = (7.0, 3.0), (4.4, 2.8)
"""In inches."""
GREY, BLUE, GREEN, RED = "#888888", "#1f5fa8", "#1a7f37", "#b35900"


def scores_plot(report: ImprovementReport) -> str:
    """Return the held-out score of each round beside that of the base, as the address of a picture."""

    def draw(axes: Axes) -> None:
        if report.baseline is not None:
            _band(axes, report.baseline, GREY, "base")
        if report.helped is not None:
            axes.axhline(report.helped.mean, color=BLUE, linestyle="--", label="base with help")
        for kept, color, label in ((True, GREEN, "kept"), (False, RED, "not kept")):
            rounds = [
                (one.number, one.evaluation)
                for one in report.rounds
                if one.evaluation is not None and bool(one.kept) is kept
            ]
            if rounds:
                _points(axes, rounds, color, label)
        axes.set_xlim(0.5, max(len(report.rounds), 1) + 0.5)
        axes.set_xlabel("round")
        axes.set_ylabel("held-out mean score")

    return _picture(draw, WIDE, whole=True)


def _band(axes: Axes, evaluation: Evaluation, color: str, label: str) -> None:
    axes.axhline(evaluation.mean, color=color, label=label)
    axes.axhspan(evaluation.low, evaluation.high, color=color, alpha=0.15, linewidth=0)


def _points(axes: Axes, rounds: Sequence[tuple[int, Evaluation]], color: str, label: str) -> None:
    means = [evaluation.mean for _, evaluation in rounds]
    below = [evaluation.mean - evaluation.low for _, evaluation in rounds]
    above = [evaluation.high - evaluation.mean for _, evaluation in rounds]
    numbers = [number for number, _ in rounds]
    # Rounding may put a bound on the wrong side of the mean by nothing, which is refused.
    errors = [[max(0.0, error) for error in side] for side in (below, above)]
    axes.errorbar(numbers, means, yerr=errors, fmt="o", color=color, capsize=4, label=label)


def distribution_plot(statistics: SyntheticDataStatistics) -> str | None:
    """Return how scores are distributed, before and after selection; None where there are none."""
    told = [
        (scores, color, label)
        for scores, color, label in (
            (statistics.before, GREY, "all that were scored"),
            (statistics.after, GREEN, "accepted"),
        )
        if scores.counts
    ]
    if not told:
        return None

    def draw(axes: Axes) -> None:
        for scores, color, label in told:
            axes.stairs(scores.counts, scores.edges, color=color, fill=True, alpha=0.6, label=label)
        axes.set_xlabel("score")
        axes.set_ylabel("answers")

    return _picture(draw, NARROW, whole=False)


def losses_plot(points: Sequence[LossPoint]) -> str | None:
    """Return losses by iteration; None where there are none."""
    training = [(one.iteration, one.loss) for one in points if one.loss is not None]
    validation = [
        (one.iteration, one.validation_loss) for one in points if one.validation_loss is not None
    ]
    if not training and not validation:
        return None

    def draw(axes: Axes) -> None:
        if training:
            axes.plot(*zip(*training, strict=True), color=BLUE, label="training")
        if validation:
            label = "validation, on the same data"
            axes.plot(*zip(*validation, strict=True), "o--", color=RED, label=label)
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss")

    return _picture(draw, NARROW, whole=True)


def _picture(draw: Callable[[Axes], None], size: tuple[float, float], *, whole: bool) -> str:
    """Return a plot as the address of a picture: what it defines by a name is then its own, in a page with many of them.

    Args:
        draw: draws it.
        size: of it.
        whole: whether only whole numbers stand below it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # The same report gives the same page, byte for byte.
    with rc_context({"svg.hashsalt": "ayllu", "font.size": 9.0}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
        draw(axes)
        figure.legend(loc="outside upper left", ncols=4, frameon=False)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{b64encode(written.getvalue()).decode()}"
