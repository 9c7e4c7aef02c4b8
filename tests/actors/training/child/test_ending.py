from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.training import run_spec, started_child

from ayllu.actors.training.checkpoints import checkpoints_in, verify
from ayllu.actors.training.child.session import LOST
from ayllu.actors.training.protocol import SOCKET_VARIABLE, Hello, Stopped

pytestmark = pytest.mark.slow

ENDLESS: dict[str, Any] = {"n_iters": 1_000_000, "checkpoint_every": 2, "evaluate_every": 1_000}


@pytest.mark.requirement("child-stops")
def test_a_stop_while_it_prepares_is_heeded_at_once(tiny: Path, tmp_path: Path) -> None:
    with started_child(tmp_path, run_spec(tiny, tmp_path, training=ENDLESS)) as child:
        child.wait_for(lambda told: told.all(Hello))
        child.stop()
        told = child.wait(20)
    assert (told.end, told.status) == (Stopped(), 0)
    assert told.losses == {}


@pytest.mark.requirement("child-stops")
def test_a_stop_while_it_trains_leaves_whole_checkpoints(tiny: Path, tmp_path: Path) -> None:
    with started_child(tmp_path, run_spec(tiny, tmp_path, training=ENDLESS)) as child:
        child.wait_for(lambda told: 4 in told.saved)
        child.stop()
        told = child.wait(20)
    assert (told.end, told.status) == (Stopped(), 0)
    found = checkpoints_in(tmp_path / "checkpoints")
    assert [iters for iters, _ in found] == told.saved[-2:]
    for _, path in found:
        verify(path)


@pytest.mark.requirement("child-follows-its-trainer")
def test_a_child_whose_trainer_dies_ends(tiny: Path, tmp_path: Path) -> None:
    with started_child(tmp_path, run_spec(tiny, tmp_path, training=ENDLESS)) as child:
        child.wait_for(lambda told: told.losses)
        child.hang_up()
        told = child.wait(10)
    assert told.status == LOST
    assert told.end is None
    assert "the trainer is gone" in told.stderr


@pytest.mark.requirement("child-follows-its-trainer")
def test_a_child_whose_trainer_falls_silent_ends(tiny: Path, tmp_path: Path) -> None:
    # Without checkpoints, before which the trainer would be asked.
    training = ENDLESS | {"checkpoint_every": 1_000_000}
    with started_child(tmp_path, run_spec(tiny, tmp_path, training=training)) as child:
        child.wait_for(lambda told: told.all(Hello))
        child.fall_silent()
        told = child.wait(30)
    assert told.status == LOST
    assert "the trainer is silent" in told.stderr


@pytest.mark.requirement("child-follows-its-trainer")
def test_a_child_without_a_trainer_ends(tmp_path: Path) -> None:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ayllu.actors.training.child", *arguments],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    alone = run(str(tmp_path))
    assert alone.returncode == 2
    assert "usage:" in alone.stderr
    nobody = run(str(tmp_path), **{SOCKET_VARIABLE: str(tmp_path / "nobody.sock")})
    assert nobody.returncode == LOST
    assert "cannot be reached" in nobody.stderr
