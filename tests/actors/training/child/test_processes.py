from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from support.processes import alive, descendants, wait_for
from support.training import run_children, run_spec, started_child

from ayllu.actors.training.protocol import Measured, Stopped
from ayllu.schemas import FinetuningAlgorithm

pytestmark = pytest.mark.slow


@pytest.mark.requirement("child-processes")
def test_two_processes_train_as_one_does_and_end_with_their_trainer(
    tiny: Path, tmp_path: Path
) -> None:
    training = {"n_iters": 4, "memory_efficient_fsdp_wrap": True}
    spec = run_spec(tiny, tmp_path, training=training, algorithm=FinetuningAlgorithm.qlora)
    several = replace(spec, processes=2)
    one, two = run_children([(tmp_path / "1", spec), (tmp_path / "2", several)])
    assert two.completed, two
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.validation_losses == pytest.approx(one.validation_losses, rel=1e-5)
    assert two.saved == one.saved
    assert two.all(Measured)[-1].metrics.tokens == one.all(Measured)[-1].metrics.tokens
    assert "memory_efficient_fsdp_wrap has no effect: training is on CPUs" in two.log


@pytest.mark.requirement("child-processes", "child-follows-its-trainer")
@pytest.mark.parametrize("how", ["stop", "hang up", "kill"])
def test_all_processes_end(tiny: Path, tmp_path: Path, how: str) -> None:
    training = {"n_iters": 1_000_000, "checkpoint_every": 1_000_000}
    spec = run_spec(tiny, tmp_path, training=training, processes=2)
    with started_child(tmp_path, spec) as child:
        child.wait_for(lambda told: told.losses if how == "stop" else child.processes == 2)
        below = [child.process.pid, *descendants(child.process.pid)]
        assert child.processes == 2
        {"stop": child.stop, "hang up": child.hang_up, "kill": child.process.kill}[how]()
        told = child.wait(30)
        wait_for("the end of all", lambda: not any(map(alive, below)), 10)
    if how == "stop":
        assert isinstance(told.end, Stopped)
