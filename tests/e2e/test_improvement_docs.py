"""What docs/improvement.md says is so: its jobs, its fields and their defaults, its figures."""

from __future__ import annotations

import re

import pytest
from support.improvement import improve_request
from support.pages import page

from ayllu.actors.improvement.evaluation import RESAMPLES, wilson
from ayllu.actors.improvement.following import STAGE_FAILED
from ayllu.actors.improvement.loop import ATTEMPTS
from ayllu.actors.improvement.plan import data_job, dataset_id, evaluation_job, training_job
from ayllu.actors.leases import LEASE_SECONDS
from ayllu.actors.patience import PATIENCE
from ayllu.schemas import ImprovementEvaluation, ImprovementGeneration, ImproveRequest

pytestmark = pytest.mark.requirement("examples-run")
PAGE = page("improvement.md")


def test_all_stages_stand_there() -> None:
    named = re.findall(r"^\| `(JOB/\S+)` \|", PAGE, re.MULTILINE)
    stages = [make("JOB", 1) for make in (data_job, training_job, evaluation_job)]
    assert named == ["JOB/baseline", "JOB/helped", *stages]
    assert f"the dataset `{dataset_id('JOB', 1)}`" in PAGE
    assert f"`{STAGE_FAILED}`" in PAGE


def test_all_fields_stand_there_with_their_defaults() -> None:
    table = PAGE.partition("## The file")[2].partition("## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", table, re.MULTILINE)
    named = {name for names, _ in rows for name in re.findall(r"`(\w+)`", names)}
    assert named == set(ImproveRequest.__struct_fields__)
    told = dict(rows)
    for row, value in (
        ("`generation`", ImprovementGeneration()),
        ("`evaluation`", ImprovementEvaluation()),
    ):
        for name, default in re.findall(r"`(\w+)` \(`?([\w.]+)", told[row]):
            known = getattr(value, name)
            assert str(getattr(known, "value", known)) in (default, f"{default}.0")
    request = improve_request(rounds=1)
    assert f"`rounds`, `min_gain` | {request.rounds}, {request.min_gain:g} |" in PAGE


def test_figures_are_those_of_the_code() -> None:
    assert f"{RESAMPLES:,} resamples".replace(",", " ") in PAGE
    low, high = wilson(30, 60)
    assert round(100 * (high - low) / 2) == 12
    assert (ATTEMPTS, PATIENCE, LEASE_SECONDS) == (5, 60, 5)
