from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from support.processes import wait_for
from support.training import (
    Child,
    Told,
    dialogs,
    dpo_spec,
    lora,
    preferences,
    reward_spec,
    run_child,
    run_spec,
    started_child,
)

from ayllu.actors.training.checkpoints import checkpoints_in, verify
from ayllu.actors.training.protocol import RunSpec, Started
from ayllu.schemas import FinetuningAlgorithm, LoggerConfig

pytestmark = pytest.mark.slow

# Three iterations are an epoch, the last of half the examples: a kill after the fourth comes in the midst of the second.
LENGTH: dict[str, Any] = {"n_iters": 8, "checkpoint_every": 2}
ROWS = dialogs(10)


def killed_after(child: Child, iteration: int) -> Told:
    child.wait_for(lambda told: iteration in told.saved)
    child.process.send_signal(signal.SIGKILL)
    return child.wait()


def whole_and_killed(whole: Path, killed: Path, spec: RunSpec, after: int) -> Told:
    """Run a child to its end and, beside it, one that is killed; return what the first told."""
    with started_child(killed, spec) as child, started_child(whole, spec) as other:
        assert killed_after(child, after).status == -signal.SIGKILL
        return other.wait()


def assert_goes_on(folder: Path, spec: RunSpec, after: int) -> Told:
    """Kill a child after an iteration, start another, and compare it with one that was not killed, whose words are returned."""
    whole = whole_and_killed(folder / "whole", folder / "killed", spec, after)
    assert whole.completed, whole
    again = run_child(folder / "killed", spec)
    assert again.completed, again
    [started] = again.all(Started)
    assert started.after >= after
    assert f"going on after iteration {started.after}" in again.log
    behind = {iters: loss for iters, loss in whole.losses.items() if iters > started.after}
    assert again.losses == pytest.approx(behind, rel=1e-6)
    validated = {n: loss for n, loss in whole.validation_losses.items() if n > started.after}
    assert again.validation_losses == pytest.approx(validated, rel=1e-6)
    return whole


@pytest.mark.requirement("child-resumes")
def test_a_killed_job_goes_on_as_if_it_had_not_been(tiny: Path, tmp_path: Path) -> None:
    spec = run_spec(tiny, tmp_path, algorithm=FinetuningAlgorithm.full, rows=ROWS, training=LENGTH)
    assert_goes_on(tmp_path, spec, 4)
    folder = tmp_path / "killed"
    assert list((folder / "work").glob("checkpoint-*")) == []
    # What is done already is not done again.
    last = run_child(folder, spec)
    assert last.completed
    assert last.losses == {}
    assert last.all(Started)[0].after == 8


@pytest.mark.requirement("child-resumes")
def test_a_damaged_checkpoint_is_not_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    spec = run_spec(
        tiny, tmp_path, rows=ROWS, training=LENGTH, logger=LoggerConfig(tensorboard=True)
    )
    whole = assert_goes_on(tmp_path, spec, 4)
    folder = tmp_path / "killed"
    assert len(list((folder / "tensorboard").iterdir())) == 2
    [_, (newest, path)] = checkpoints_in(folder / "checkpoints")
    weights = path / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    again = run_child(folder, spec)
    assert again.completed, again
    assert f"checkpoint {newest} is damaged" in again.log
    assert again.all(Started)[0].after == 6
    assert again.losses == pytest.approx({7: whole.losses[7], 8: whole.losses[8]}, rel=1e-6)
    verify(path)


@pytest.mark.requirement("child-resumes", "child-dpo")
def test_a_killed_preference_job_keeps_its_reference(tiny: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    sft = run_spec(tiny, first, adapter=lora(apply_lora_to_output=True), training={"n_iters": 2})
    assert run_child(first, sft).completed
    spec = dpo_spec(
        tiny,
        tmp_path,
        checkpoint=str(first / "checkpoints" / "checkpoint-2"),
        rows=preferences(10),
        training=LENGTH,
    )
    # With the half-trained policy as its own reference, it would begin with ln 2 again.
    assert_goes_on(tmp_path, spec, 4)


@pytest.mark.requirement("child-resumes", "child-reward")
@pytest.mark.parametrize("algorithm", [FinetuningAlgorithm.full, FinetuningAlgorithm.lora])
def test_a_killed_reward_model_keeps_its_head(
    tiny: Path, tmp_path: Path, algorithm: FinetuningAlgorithm
) -> None:
    spec = reward_spec(tiny, tmp_path, algorithm=algorithm, rows=preferences(10), training=LENGTH)
    assert_goes_on(tmp_path, spec, 4)


@pytest.mark.requirement("child-alone")
def test_two_never_work_in_one_folder(tiny: Path, tmp_path: Path) -> None:
    spec = run_spec(tiny, tmp_path, training={"n_iters": 1_000_000, "checkpoint_every": 1_000_000})
    with started_child(tmp_path, spec) as first:
        first.wait_for(lambda told: told.losses)
        with started_child(tmp_path, spec) as second:
            second.wait_for(lambda told: "waiting for the end of an earlier attempt" in told.log)
            assert not second.told.all(Started)
            first.process.kill()
            first.wait()
            second.wait_for(lambda told: told.losses)
            second.process.kill()
            wait_for("its end", lambda: second.process.poll() is not None)
