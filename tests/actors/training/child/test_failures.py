from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.training import Told, dpo_spec, lora, run_child, run_children, run_spec

from ayllu.actors.training.checkpoints import checkpoints_in, verify
from ayllu.actors.training.protocol import BaseModel, Failed, Started
from ayllu.schemas import FinetuningAlgorithm, OptimizerType

pytestmark = pytest.mark.slow


@pytest.mark.requirement("child-disk-full")
def test_a_full_disk_costs_no_checkpoint_that_was_whole(tiny: Path, tmp_path: Path) -> None:
    def spec_of(iters: int) -> Any:
        return run_spec(
            tiny,
            tmp_path,
            algorithm=FinetuningAlgorithm.full,
            training={"n_iters": iters, "checkpoint_every": 1},
        )

    assert run_child(tmp_path, spec_of(1)).completed
    # Less than the weights need: the kernel refuses the rest, as a full disk does.
    told = run_child(tmp_path, spec_of(2), limit_file_size=200_000)
    assert isinstance(told.end, Failed), told
    assert told.end.code == "storage"
    assert "the checkpoint of iteration 2 could not be written" in told.end.message
    assert told.status == 0
    [(iters, path)] = checkpoints_in(tmp_path / "checkpoints")
    assert iters == 1
    verify(path)
    again = run_child(tmp_path, spec_of(2))
    assert again.completed, again
    assert again.all(Started)[0].after == 1


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "modules": (
        {"adapter": lora(lora_attn_modules=["wq"])},
        "the model has no wq; it has down_proj",
    ),
    "long": ({"training": {"max_length": 57}}, "rows with more than 57 tokens"),
    "endless": ({"training": {"n_iters": 0}}, "the job would never end"),
    "weights": ({"base": BaseModel("none", "/nowhere")}, "no weights of none"),
    "diverged": (
        {
            "algorithm": FinetuningAlgorithm.full,
            "optimizer": {"optimizer_type": OptimizerType.sgd, "lr": 1e30, "lr_min": 1e30},
        },
        "in iteration 2: training has diverged",
    ),
    "assistant": (
        {"rows": [{"messages": [{"role": "user", "content": "Hi"}]}] * 4},
        "train: row 1: .*the assistant",
    ),
}


@pytest.fixture(scope="module")
def failed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Told]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in FAILURES}
    told = run_children(
        [(folder, run_spec(tiny, folder, **FAILURES[name][0])) for name, folder in folders.items()]
    )
    return dict(zip(FAILURES, zip(folders.values(), told, strict=True), strict=True))


@pytest.mark.requirement("child-failures")
@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_done_is_said_clearly(
    failed: dict[str, tuple[Path, Told]], name: str
) -> None:
    folder, told = failed[name]
    assert isinstance(told.end, Failed), told
    assert told.end.code == "invalid_request"
    assert re.search(FAILURES[name][1], told.end.message)
    assert told.status == 0
    assert "Traceback" not in told.stderr
    assert checkpoints_in(folder / "checkpoints") == []


@pytest.mark.requirement("child-no-code")
def test_weights_that_may_hold_code_are_not_loaded(tiny: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(tiny, foreign)
    (foreign / "pytorch_model.bin").write_bytes(b"code")
    told = run_child(tmp_path, run_spec(foreign, tmp_path))
    assert isinstance(told.end, Failed), told
    assert "pytorch_model.bin may hold code" in told.end.message


@pytest.mark.requirement("child-dpo")
def test_a_checkpoint_to_go_on_with_must_be_whole(tiny: Path, tmp_path: Path) -> None:
    told = run_child(tmp_path, dpo_spec(tiny, tmp_path, checkpoint=str(tmp_path / "gone")))
    assert isinstance(told.end, Failed), told
    assert "gone has no manifest" in told.end.message
