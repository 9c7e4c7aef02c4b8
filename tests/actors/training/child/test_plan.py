from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.training import dpo_spec, run_spec

from ayllu.actors.training.child.plan import check_limits, make_plan
from ayllu.schemas import FinetuningAlgorithm, InvalidRequest, LoggerConfig


@pytest.mark.requirement("child-length")
@pytest.mark.parametrize(
    ("n_epochs", "n_iters", "total"),
    [(3, 0, 9), (0, 5, 5), (3, 5, 5), (1, 5, 3)],
    ids=["epochs", "iterations", "iterations end first", "epochs end first"],
)
def test_a_run_ends_with_whichever_limit_comes_first(
    tmp_path: Path, n_epochs: int, n_iters: int, total: int
) -> None:
    spec = run_spec(tmp_path, tmp_path, training={"n_epochs": n_epochs, "n_iters": n_iters})
    plan = make_plan(spec, examples=10)
    assert plan.total == total
    assert plan.epochs == total / 3


@pytest.mark.requirement("child-length")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"n_iters": 0}}, "never end"),
        ({"processes": 3}, "shared evenly by 3"),
        ({"optimizer": {"lr_min": 1.0}}, "lr_min 1 is larger"),
        ({"adapter": None}, "lora needs the configuration"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_limits(run_spec(tmp_path, tmp_path, **changes))


@pytest.mark.requirement("child-length")
def test_preference_optimisation_needs_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="needs its configuration"):
        check_limits(dpo_spec(tmp_path, tmp_path, alignment=None))
    check_limits(dpo_spec(tmp_path, tmp_path))


@pytest.mark.requirement("child-checkpoints-often")
def test_without_a_word_there_are_about_ten_checkpoints_each_validated(tmp_path: Path) -> None:
    spec = run_spec(tmp_path, tmp_path, training={"checkpoint_every": 0, "n_iters": 95})
    plan = make_plan(spec, examples=4)
    saved = [iters for iters in range(1, 96) if plan.saves_at(iters)]
    assert saved == [*range(10, 91, 10), 95]
    assert saved == [iters for iters in range(1, 96) if plan.evaluates_at(iters)]


@pytest.mark.requirement("child-checkpoints-often")
def test_the_last_iteration_is_logged_validated_and_saved(tmp_path: Path) -> None:
    spec = run_spec(
        tmp_path,
        tmp_path,
        algorithm=FinetuningAlgorithm.full,
        training={"checkpoint_every": 4, "evaluate_every": 3, "n_iters": 7},
        logger=LoggerConfig(log_every=2),
    )
    plan = make_plan(spec, examples=4)
    iterations = range(1, 8)
    assert [n for n in iterations if plan.saves_at(n)] == [4, 7]
    assert [n for n in iterations if plan.evaluates_at(n)] == [3, 6, 7]
    assert [n for n in iterations if plan.logs_at(n)] == [2, 4, 6, 7]
