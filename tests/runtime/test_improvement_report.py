"""The page of a loop's report: whole, alone, harmless."""

from __future__ import annotations

from base64 import b64decode
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ayllu.runtime.improve_commands import table_of
from ayllu.runtime.improvement_report import page_of, write_report
from ayllu.schemas import (
    Evaluation,
    ImprovementReport,
    ImprovementRound,
    JobFailure,
    LossPoint,
    PostTrainingJobStatus,
    ScoreDistribution,
    SyntheticDataStatistics,
    decode,
)

pytestmark = pytest.mark.requirement("improvement-page")
HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """The elements of a page; it must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.pictures: list[str] = []
        self.alternatives: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        known = dict(attrs)
        if tag == "img":
            self.pictures.append(known["src"] or "")
            self.alternatives.append(known["alt"] or "")
        assert not any(name.startswith("on") for name in known)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def evaluation(model: str, right: int) -> Evaluation:
    scores: list[float | None] = [float(number < right) for number in range(10)]
    mean = right / 10
    return Evaluation(
        model, "j", mean, max(0, mean - 0.2), min(1, mean + 0.2), "wilson", 10, scores
    )


def report_of(name: str = "better", note: str = "no better") -> ImprovementReport:
    spread = ScoreDistribution(8, 0.5, 0.1, [0, 0.2, 0.5, 0.7, 1], [0.0, 0.5, 1.0], [3, 5])
    counts = SyntheticDataStatistics(
        2, 8, failed=1, below_threshold=3, accepted=4, before=spread, after=spread, errors={name: 1}
    )
    losses = [LossPoint(1, 2.0), LossPoint(2, 1.0, 0.9)]
    rounds = [
        ImprovementRound(
            1, "tiny", "d", counts, "t", losses, 1, evaluation(name, 4), 0.2, True,
            seconds={"generating": 12.34, "training": 125.0},
        ),
        ImprovementRound(2, name, "d", counts, "t", losses, 2, evaluation(name, 3), -0.1, False, note),
        ImprovementRound(3, name, "d"),
    ]  # fmt: skip
    return ImprovementReport(
        job_uuid="loop",
        status=PostTrainingJobStatus.failed,
        model="tiny",
        name=name,
        reward_model=name,
        rounds=rounds,
        baseline=evaluation("tiny", 2),
        helped=evaluation("tiny", 6),
        best=name,
        best_evaluation=evaluation(name, 4),
        failure=JobFailure("stage_failed", note),
    )


def test_a_page_says_what_each_round_changed() -> None:
    text = page_of(report_of())
    page = Page(text)
    for said in (
        "0.200 (0.000 to 0.400)",
        "+0.200",
        "below the threshold",
        "not kept",
        "(not over)",
        "12.3 s",
        "2 min 05 s",
        "version 2 of better",
        "stage_failed: no better",
    ):
        assert said in page.text
    # The score over all rounds; of two rounds the distribution and the losses.
    assert len(page.pictures) == 5
    assert all(page.alternatives)
    assert page_of(report_of()) == text


def test_pictures_are_whole_and_the_page_needs_nothing_else() -> None:
    page = Page(page_of(report_of()))
    for picture in page.pictures:
        kind, _, content = picture.partition(";base64,")
        assert kind == "data:image/svg+xml"
        assert ElementTree.fromstring(b64decode(content)).tag.endswith("svg")
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0


def test_what_models_and_users_wrote_is_escaped() -> None:
    text = page_of(report_of(name=HOSTILE, note=f'"{HOSTILE}'))
    assert "<script" not in text
    page = Page(text)
    assert page.tags["script"] == 0
    assert page.text.count(HOSTILE) > 5


def test_a_loop_that_has_just_begun_has_a_page_too() -> None:
    report = ImprovementReport("loop", PostTrainingJobStatus.running, "tiny", "better", "sums")
    page = Page(page_of(report))
    assert page.pictures == []
    assert table_of(report).row_count == 0


def test_both_files_are_written(tmp_path: Path) -> None:
    report = report_of()
    paths = write_report(report, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.html", "report.json"]
    assert decode(paths[1].read_bytes(), ImprovementReport) == report
    assert table_of(report).row_count == 5
