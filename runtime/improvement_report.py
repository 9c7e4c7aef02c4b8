"""The report of a loop as files: JSON for programs, and a page that stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..schemas import (
    Evaluation,
    ImprovementReport,
    ImprovementRound,
    SyntheticDataStatistics,
    encode,
)
from .candidate_counts import counts_of_left_out
from .improvement_plots import distribution_plot, losses_plot, scores_plot

TEMPLATE = "improvement_report.html"


def write_report(report: ImprovementReport, folder: Path) -> list[Path]:
    """Write ``report.json`` and ``report.html`` into a folder, created where it is missing, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "report.html", folder / "report.json"
    page.write_text(page_of(report), encoding="utf-8")
    data.write_bytes(msgspec.json.format(encode(report), indent=2) + b"\n")
    return [page, data]


def page_of(report: ImprovementReport) -> str:
    """Return the page; whatever models or users wrote is escaped in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "duration": _duration}
    best, rounds = report.baseline, []
    for one in report.rounds:
        rounds.append(_round(one, best))
        if one.kept:
            best = one.evaluation
    return environment.get_template(TEMPLATE).render(
        report=report, rounds=rounds, scores=scores_plot(report) if report.baseline else None
    )


def _round(one: ImprovementRound, best: Evaluation | None) -> dict[str, Any]:
    """Return what the page shows of a round; ``best`` is the best model before it."""
    counts = one.statistics
    return {
        "told": one,
        "counts": _counts(counts) if counts else [],
        "distribution": distribution_plot(counts) if counts else None,
        "losses": losses_plot(one.losses),
        "paired": _paired(best, one.evaluation),
    }


def _counts(counts: SyntheticDataStatistics) -> list[tuple[str, int]]:
    left_out = counts_of_left_out(counts)
    return [("candidates", counts.candidates), *left_out, ("accepted", counts.accepted)]


def _paired(before: Evaluation | None, after: Evaluation | None) -> str | None:
    """Return the gain over the prompts that both have, with its interval."""
    from ..actors.improvement.evaluation import paired_gain

    if before is None or after is None or len(before.scores) != len(after.scores):
        return None
    gain = paired_gain(before.scores, after.scores)
    if gain is None:
        return None
    return f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def _score(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    return f"{evaluation.mean:.3f} ({evaluation.low:.3f} to {evaluation.high:.3f})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
