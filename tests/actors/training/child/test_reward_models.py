"""Reward models: trained in all ways, and told of as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.training import Told, lora, reward_spec, run_child, run_children

from ayllu.actors.training.checkpoints import verify
from ayllu.actors.training.protocol import Failed, Measured, Started
from ayllu.schemas import FinetuningAlgorithm

pytestmark = [pytest.mark.slow, pytest.mark.requirement("child-reward")]

FULL = FinetuningAlgorithm.full
ALL: dict[str, dict[str, Any]] = {
    "full": {"algorithm": FULL},
    # The head is trained whole; an output layer, on which there could be an adapter, is not there.
    "lora": {"adapter": lora(apply_lora_to_mlp=True, apply_lora_to_output=True)},
    # Validated between checkpoints too: what saving puts right must not be needed.
    "qlora": {"algorithm": FinetuningAlgorithm.qlora, "training": {"evaluate_every": 1}},
    "dora": {"algorithm": FinetuningAlgorithm.dora},
}


@pytest.fixture(scope="module")
def jobs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Told]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ALL}
    told = run_children(
        [(folder, reward_spec(tiny, folder, **ALL[name])) for name, folder in folders.items()]
    )
    return dict(zip(ALL, zip(folders.values(), told, strict=True), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_what_was_chosen_comes_to_be_above_what_was_rejected(
    jobs: dict[str, tuple[Path, Told]], name: str
) -> None:
    told = jobs[name][1]
    assert told.completed, told
    assert told.losses[6] < told.losses[1] / 4
    assert told.validation_losses[6] < told.validation_losses[2]
    figures = [one.metrics.other for one in told.all(Measured) if one.metrics.loss is not None]
    assert figures[-1]["rewards/margins"] > max(1.0, figures[0]["rewards/margins"])
    assert figures[-1]["rewards/accuracies"] == 1.0
    validated = told.all(Measured)[-1].metrics
    assert validated.validation_loss is not None
    assert validated.other["rewards/accuracies"] == 1.0
    assert validated.other["rewards/min"] < validated.other["rewards/max"]


@pytest.mark.parametrize("name", ALL)
def test_a_checkpoint_says_that_it_is_a_reward_model_and_has_its_head(
    jobs: dict[str, tuple[Path, Told]], name: str
) -> None:
    from safetensors import safe_open

    whole = name == "full"
    manifest = verify(jobs[name][0] / "checkpoints" / "checkpoint-6")
    assert (manifest.reward, manifest.kind) == (True, "model" if whole else "adapter")
    weights = "model.safetensors" if whole else "adapter_model.safetensors"
    assert {weights, "tokenizer.json"} <= {file.name for file in manifest.files}
    heads = []
    for iters in (4, 6):
        file = jobs[name][0] / "checkpoints" / f"checkpoint-{iters}" / weights
        with safe_open(file, "numpy") as tensors:
            [head] = [key for key in tensors.keys() if "score" in key]  # noqa: SIM118
            heads.append(tensors.get_tensor(head))
    assert abs(heads[1] - heads[0]).max() > 0, "the head was not trained"


def test_what_has_no_effect_is_told(jobs: dict[str, tuple[Path, Told]]) -> None:
    assert "apply_lora_to_output has no effect" in jobs["lora"][1].log
    assert "algorithm_config has no effect" in jobs["full"][1].log
    assert "no effect" not in jobs["qlora"][1].log


def test_it_can_begin_with_a_reward_model(
    jobs: dict[str, tuple[Path, Told]], tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    checkpoint = jobs["full"][0] / "checkpoints" / "checkpoint-6"
    trained.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (trained / name).write_bytes((checkpoint / name).read_bytes())
    (trained / "chat_template.jinja").write_text((checkpoint / "chat_template.jinja").read_text())
    spec = reward_spec(trained, tmp_path / "job", algorithm=FULL, training={"n_iters": 1})
    told = run_child(tmp_path / "job", spec)
    assert told.completed, told
    assert told.all(Started)
    assert told.losses[1] < 0.1, "the head was made anew"


def test_a_model_without_a_chat_template_is_refused(tiny: Path, tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.mkdir()
    for file in tiny.iterdir():
        if file.name != "chat_template.jinja":
            (mute / file.name).write_bytes(file.read_bytes())
    told = run_child(tmp_path / "job", reward_spec(mute, tmp_path / "job"))
    assert isinstance(told.end, Failed), told
    assert "no chat template" in told.end.message
