"""Requests for jobs as the command line makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.jobs import dataset_of
from support.processes import run_ayllu

from ayllu.runtime.arguments import build_parser
from ayllu.runtime.job_view import Losses
from ayllu.runtime.train_commands import fields_of
from ayllu.schemas import (
    InvalidRequest,
    JobMetrics,
    PostTrainingRewardRequest,
    PostTrainingRLHFRequest,
    PostTrainingSFTRequest,
    SearchParameter,
)
from ayllu.schemas.wire import convert


def fields(*arguments: str) -> dict[str, Any]:
    return fields_of(build_parser().parse_args(["train", *arguments]))


def sft(*arguments: str) -> PostTrainingSFTRequest:
    data = {"columns": {"text": "text"}, "content_url": "data:application/jsonl,x"}
    made = {
        **fields("sft", "--model", "m", *arguments),
        "dataset": data,
        "validation_dataset": data,
    }
    return convert(made, PostTrainingSFTRequest)


@pytest.mark.requirement("training-commands")
def test_defaults_are_those_of_the_algorithm() -> None:
    lora, full = sft(), sft("--algorithm", "full")
    assert (lora.algorithm.value, lora.optimizer_config.lr) == ("lora", 2e-4)
    assert full.optimizer_config.lr == 2e-5
    assert (lora.training_config.n_epochs, lora.training_config.n_iters) == (3, 0)
    limited = sft("--iters", "10").training_config
    assert (limited.n_epochs, limited.n_iters) == (0, 10)
    both = sft("--iters", "10", "--epochs", "2").training_config
    assert (both.n_epochs, both.n_iters) == (2, 10)
    assert sft().job_uuid != sft().job_uuid


@pytest.mark.requirement("training-commands")
def test_the_command_line_wins_over_the_file_and_that_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(
        'algorithm = "dora"\n[training_config]\nn_iters = 7\nbatch_size = 2\n[hyperparam_search_config]\n'
        'n_trials = 3\nparameters."optimizer_config.lr" = {low = 1e-5, high = 1e-3, log = true}\n'
    )
    made = sft("--config", str(file), "--batch-size", "8", "--rank", "4", "--mlp", "--no-shuffle")
    assert made.algorithm.value == "dora"
    training = made.training_config
    assert (training.n_iters, training.n_epochs, training.batch_size) == (7, 0, 8)
    assert not training.shuffle
    assert (made.algorithm_config.rank, made.algorithm_config.alpha) == (4, 16)
    assert made.algorithm_config.apply_lora_to_mlp
    assert made.hyperparam_search_config.parameters == {
        "optimizer_config.lr": SearchParameter(low=1e-5, high=1e-3, log=True)
    }


@pytest.mark.requirement("training-commands")
def test_preference_optimisation_has_parameters_of_its_own() -> None:
    data = dataset_of([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    made = fields("dpo", "--beta", "0.3", "--gamma", "1", "--job", "j")
    made |= {"finetuned_model": "file:///x", "dataset": data, "validation_dataset": data}
    request = convert(made, PostTrainingRLHFRequest)
    alignment = request.algorithm_config
    assert (alignment.reward_scale, alignment.reward_clip) == (0.3, 0.0)
    assert (alignment.epsilon, alignment.gamma) == (0.0, 1.0)
    assert (request.job_uuid, request.optimizer_config.lr) == ("j", 5e-6)


@pytest.mark.requirement("training-commands")
def test_a_reward_model_is_trained_of_preferences_as_any_model() -> None:
    data = dataset_of([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    made = fields("reward", "--model", "m", "--algorithm", "full", "--iters", "9", "--mlp")
    made |= {"dataset": data, "validation_dataset": data}
    request = convert(made, PostTrainingRewardRequest)
    assert request.job_uuid.startswith("reward-")
    assert (request.algorithm.value, request.optimizer_config.lr) == ("full", 2e-5)
    assert request.algorithm_config.apply_lora_to_mlp
    assert not request.algorithm_config.apply_lora_to_output


@pytest.mark.requirement("training-commands")
def test_files_that_cannot_be_read_are_said_to_be(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("= nothing")
    for file, said in ((tmp_path / "no.toml", "cannot be read"), (broken, "not TOML")):
        with pytest.raises(InvalidRequest) as raised:
            fields("sft", "--config", str(file))
        assert said in raised.value.message
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("speed = 3\n")
    with pytest.raises(InvalidRequest) as raised:
        sft("--config", str(wrong))
    assert "speed" in raised.value.message


@pytest.mark.requirement("training-commands")
def test_help_teaches() -> None:
    for command in (
        ("train",),
        ("train", "sft"),
        ("train", "dpo"),
        ("train", "reward"),
        ("jobs",),
        ("logs",),
    ):
        done = run_ayllu(*command, "--help")
        assert done.returncode == 0
        assert "example:" in done.stdout


@pytest.mark.requirement("training-commands")
def test_losses_are_plotted_once_there_is_something_to_see() -> None:
    losses = Losses()
    assert losses.plot(80) == ""
    for attempt in range(2):  # What an attempt did again takes the place of what was there.
        for iteration in range(1, 6):
            loss = (4.0 - attempt) / iteration
            losses.add(JobMetrics(iteration=iteration, total=5, loss=loss))
    losses.add(JobMetrics(iteration=5, total=5, validation_loss=1.0))
    plot = losses.plot(80)
    assert "loss by iteration" in plot
    assert "validation" not in plot
    assert all(len(line) <= 80 for line in plot.splitlines())
