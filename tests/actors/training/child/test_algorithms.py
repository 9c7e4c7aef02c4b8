from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.training import Told, dpo_spec, lora, run_child, run_children, run_spec

from ayllu.actors.training.checkpoints import Manifest, checkpoints_in, verify
from ayllu.actors.training.protocol import Measured, Phase, Saved, Started
from ayllu.schemas import (
    DPOAlignmentConfig,
    FinetuningAlgorithm,
    LoggerConfig,
    OptimizerType,
)

pytestmark = pytest.mark.slow

ALL: dict[str, dict[str, Any]] = {
    "full": {"algorithm": FinetuningAlgorithm.full, "optimizer": {"weight_decay": 0.1}},
    "lora": {
        "adapter": lora(apply_lora_to_mlp=True),
        "optimizer": {"optimizer_type": OptimizerType.adam},
        "training": {"enable_activation_checkpointing": True, "fsdp_cpu_offload": True},
        "logger": LoggerConfig(tensorboard=True),
    },
    # Validated between checkpoints too: what saving puts right must not be needed.
    "qlora": {"algorithm": FinetuningAlgorithm.qlora, "training": {"evaluate_every": 1}},
    "dora": {
        "algorithm": FinetuningAlgorithm.dora,
        "adapter": lora(apply_lora_to_output=True),
        "training": {"shuffle": False},
    },
    "sgd": {
        "algorithm": FinetuningAlgorithm.full,
        "optimizer": {"optimizer_type": OptimizerType.sgd, "lr": 0.1},
        "rows": [{"text": f"{number} and {number + 1}"} for number in range(12)],
    },
}


@pytest.fixture(scope="module")
def jobs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Told]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ALL}
    told = run_children(
        [(folder, run_spec(tiny, folder, **ALL[name])) for name, folder in folders.items()]
    )
    return dict(zip(ALL, zip(folders.values(), told, strict=True), strict=True))


def manifest_of(folder: Path, iters: int = 6) -> Manifest:
    return verify(folder / "checkpoints" / f"checkpoint-{iters}")


@pytest.mark.requirement("child-algorithms", "child-optimizers")
@pytest.mark.parametrize("name", ALL)
def test_it_runs_to_its_end_and_the_losses_fall(
    jobs: dict[str, tuple[Path, Told]], name: str
) -> None:
    folder, told = jobs[name]
    assert told.completed, told
    assert list(told.losses) == [1, 2, 3, 4, 5, 6]
    assert told.losses[6] < told.losses[1] - 0.1
    assert told.saved == [2, 4, 6]
    assert list(told.validation_losses) == ([1, 2, 3, 4, 5, 6] if name == "qlora" else told.saved)
    assert told.validation_losses[6] < told.validation_losses[2]
    assert [iters for iters, _ in checkpoints_in(folder / "checkpoints")] == [4, 6]
    assert [saved.pruned for saved in told.all(Saved)] == [[], [], [2]]


@pytest.mark.requirement("child-algorithms")
@pytest.mark.parametrize("name", ALL)
def test_no_validation_keeps_gradients_from_passing(
    jobs: dict[str, tuple[Path, Told]], name: str
) -> None:
    norms = [one.metrics.gradient_norm for one in jobs[name][1].all(Measured)]
    assert all(norm > 1e-3 for norm in norms if norm is not None)


@pytest.mark.requirement("child-algorithms")
@pytest.mark.parametrize(
    ("name", "kind", "merge"),
    [
        ("full", "model", False),
        ("lora", "adapter", False),
        ("qlora", "adapter", False),
        ("dora", "adapter", True),
    ],
)
def test_a_checkpoint_tells_what_it_is_but_not_where_it_was_made(
    jobs: dict[str, tuple[Path, Told]], tiny: Path, name: str, kind: str, merge: bool
) -> None:
    folder, told = jobs[name]
    manifest = manifest_of(folder)
    assert (manifest.kind, manifest.merge, manifest.base) == (kind, merge, "tiny")
    assert manifest.validation_loss == told.validation_losses[6]
    names = {file.name for file in manifest.files}
    weights = "model.safetensors" if kind == "model" else "adapter_model.safetensors"
    assert {weights, "tokenizer.json", "resume/optimizer.pt"} <= names
    assert not names & {"training_args.bin", "README.md"}
    for file in (folder / "checkpoints").rglob("*.json"):
        text = file.read_text()
        assert str(tiny) not in text
        assert str(folder) not in text


@pytest.mark.requirement("child-adapters")
def test_an_adapter_on_a_tied_output_layer_is_only_there(
    jobs: dict[str, tuple[Path, Told]],
) -> None:
    from safetensors import safe_open

    file = jobs["dora"][0] / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors"
    with safe_open(file, "numpy") as tensors:
        names = set(tensors.keys())
        on_output = [tensors.get_tensor(name) for name in names if "lm_head.lora_B" in name]
    assert not [name for name in names if "embed_tokens" in name or "base_layer" in name]
    assert len(on_output) == 1
    assert abs(on_output[0]).max() > 0, "it was not trained"


@pytest.mark.requirement("child-tells")
def test_what_is_told_of_an_iteration(jobs: dict[str, tuple[Path, Told]]) -> None:
    told = jobs["lora"][1]
    [started] = told.all(Started)
    assert (started.total, started.after) == (6, 0)
    resources = started.resources
    assert resources["device"] == "cpu"
    assert int(resources["parameters_trained"]) < int(resources["parameters"])
    trained = [one.metrics for one in told.all(Measured) if one.metrics.loss is not None]
    assert [one.epoch for one in trained] == pytest.approx([n / 3 for n in range(1, 7)])
    rates = [one.learning_rate or 0.0 for one in trained]
    assert rates[0] == 1e-2
    assert rates == sorted(rates, reverse=True)
    assert all(rate > 1e-3 for rate in rates)
    for one in trained:
        assert one.gradient_norm is not None
        assert one.gradient_norm > 0
        assert one.tokens_per_second is not None
        assert one.tokens_per_second > 0
        assert one.memory_bytes > 1 << 20
    assert trained[2].tokens * 2 == trained[5].tokens
    assert [message.phase for message in told.all(Phase)][:4] == [
        "preparing",
        "training",
        "validating",
        "training",
    ]


@pytest.mark.requirement("child-tells")
def test_what_has_no_effect_is_told(jobs: dict[str, tuple[Path, Told]]) -> None:
    assert "fsdp_cpu_offload has no effect: one process trains" in jobs["lora"][1].log
    assert "algorithm_config has no effect" in jobs["full"][1].log
    assert "no effect" not in jobs["qlora"][1].log
    assert "train: 12 examples" in jobs["qlora"][1].log


@pytest.mark.requirement("child-tells")
def test_tensorboards_files_are_written_where_they_are_wanted(
    jobs: dict[str, tuple[Path, Told]],
) -> None:
    [file] = (jobs["lora"][0] / "tensorboard").iterdir()
    data = file.read_bytes()
    for name in (b"train/loss", b"validation/loss", b"train/learning_rate"):
        assert name in data
    assert not (jobs["full"][0] / "tensorboard").exists()


@pytest.mark.requirement("child-dpo")
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_preference_optimisation_goes_on_with_a_checkpoint(
    jobs: dict[str, tuple[Path, Told]], tiny: Path, tmp_path: Path, kind: str
) -> None:
    before = jobs[kind][0] / "checkpoints" / "checkpoint-6"
    alignment = DPOAlignmentConfig(0.2, 0.0, 0.1, 0.0)
    spec = dpo_spec(
        tiny,
        tmp_path,
        checkpoint=str(before),
        alignment=alignment,
        logger=LoggerConfig(log_every=2),
    )
    told = run_child(tmp_path, spec)
    assert told.completed, told
    assert list(told.losses) == [2, 4, 6]
    # The policy begins as its reference: ln 2.
    assert told.losses[6] < told.losses[2] < 0.7
    last = told.all(Measured)[-1].metrics.other
    assert last["rewards/margins"] > 0
    assert last["rewards/accuracies"] == 1.0
    after = manifest_of(tmp_path)
    assert after.kind == ("model" if kind == "full" else "adapter")
    names = {file.name for file in after.files if not file.name.startswith("resume/")}
    assert names == {
        file.name for file in manifest_of(jobs[kind][0]).files if "resume" not in file.name
    }, "nothing of the reference is saved"
