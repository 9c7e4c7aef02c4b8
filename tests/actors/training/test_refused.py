"""What is wrong with a request for a job, and what is said of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import replace
from support.jobs import ROWS, dataset_of, running_training, sft_request, workshop

from ayllu.actors.registry import ModelSpec
from ayllu.actors.training.checkpoints import Manifest, seal
from ayllu.actors.training.protocol import BaseModel
from ayllu.actors.training.settings import (
    TrainableModel,
    Trainables,
    TrainingSettings,
    require_packages,
)
from ayllu.bus import local_bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    Dataset,
    DatasetColumnType,
    DPOAlignmentConfig,
    HyperparameterSearch,
    InvalidRequest,
    LoggerConfig,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    PostTraining,
    PostTrainingJobStatus,
    PostTrainingRewardRequest,
    PostTrainingRLHFRequest,
    PostTrainingSFTRequest,
    RLHFAlgorithm,
    Unsupported,
    decode,
    encode,
)

pytestmark = pytest.mark.asyncio
Status = PostTrainingJobStatus

FIELDS: list[tuple[str, Any]] = [
    ("algorithm_config.rank", 0),
    ("algorithm_config.alpha", 0),
    ("optimizer_config.lr", 0),
    ("optimizer_config.lr", -1.0),
    ("optimizer_config.lr", None),  # What JSON makes of NaN.
    ("optimizer_config.lr_min", -0.1),
    ("optimizer_config.weight_decay", -1),
    ("optimizer_config.optimizer_type", "adagrad"),
    ("training_config.batch_size", 0),
    ("training_config.n_epochs", -1),
    ("training_config.keep_checkpoints", 0),
    ("training_config.speed", "fast"),
    ("algorithm", "prompt"),
    ("job_uuid", ""),
    ("logger_config.log_every", 0),
    ("hyperparam_search_config.n_trials", 0),
]
RULES: list[tuple[dict[str, Any], str]] = [
    ({"optimizer_config.lr_min": 1.0}, "lr_min"),
    ({"training_config.n_iters": 0}, "never end"),
    ({"training_config.batch_size": 3, "training_config.num_processes": 2}, "share"),
    ({"algorithm_config.lora_attn_modules": []}, "lora_attn_modules"),
    ({"algorithm_config.lora_attn_modules": [""]}, "lora_attn_modules"),
    ({"dataset.columns": {}}, "dataset"),
    ({"validation_dataset.content_url": "data:application/pdf,x"}, "validation_dataset"),
    ({"dataset.content_url": "http://user:secret@example.com/x.jsonl"}, "credentials"),
    ({"dataset.content_url": "file:///etc/passwd"}, "roots"),
]


def with_fields(request: msgspec.Struct, fields: dict[str, Any]) -> bytes:
    """Return the JSON text of a request with other values at some paths."""
    values = msgspec.json.decode(encode(request))
    for path, value in fields.items():
        *sections, field = path.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[field] = value
    return msgspec.json.encode(values)


@pytest.mark.parametrize(("path", "value"), FIELDS)
@pytest.mark.requirement("job-refused")
async def test_a_value_without_a_meaning_is_refused_by_its_path(path: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(with_fields(sft_request("a"), {path: value}), PostTrainingSFTRequest)
    assert path.rpartition(".")[2] in raised.value.message or "$" in raised.value.message


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.requirement("job-refused")
async def test_a_learning_rate_that_is_no_number_never_leaves_the_client(
    value: float, tmp_path: Path
) -> None:
    async with (
        local_bus() as bus,
        running_training(bus, tmp_path, trainers=0) as training,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(serve, bus, training.training)
        with pytest.raises(InvalidRequest):
            await client(PostTraining, bus).supervised_fine_tune(sft_request("a", lr=value))
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(("fields", "said"), RULES)
@pytest.mark.requirement("job-refused")
async def test_what_contradicts_itself_or_may_not_be_read_is_refused(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    request = decode(with_fields(sft_request("a"), fields), PostTrainingSFTRequest)
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        with pytest.raises((InvalidRequest, PermissionDenied)) as raised:
            await training.training.supervised_fine_tune(request)
        assert said in raised.value.message
        assert "secret" not in raised.value.message
        assert await training.jobs.ids() == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "2130706433"]
)
@pytest.mark.requirement("job-refused")
async def test_a_dataset_in_a_private_network_fails_the_job(host: str, tmp_path: Path) -> None:
    private = Dataset(dataset_of().columns, f"http://{host}:9/rows.jsonl")
    async with local_bus() as bus, running_training(bus, tmp_path) as training:
        await training.training.supervised_fine_tune(sft_request("a", dataset=private))
        status = await training.ended("a")
        assert status.failure is not None
        assert status.failure.code == "permission_denied"
        assert status.attempt == 1


def dpo_request(model: str, **alignment: float) -> PostTrainingRLHFRequest:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    values = {"reward_scale": 0.1, "reward_clip": 0.0, "epsilon": 0.0, "gamma": 0.0}
    sft = sft_request("dpo")
    return PostTrainingRLHFRequest(
        job_uuid="dpo",
        finetuned_model=model,
        dataset=dataset_of(rows),
        validation_dataset=dataset_of(rows),
        algorithm=RLHFAlgorithm.dpo,
        algorithm_config=DPOAlignmentConfig(**{**values, **alignment}),
        optimizer_config=sft.optimizer_config,
        training_config=sft.training_config,
        hyperparam_search_config=HyperparameterSearch(),
        logger_config=LoggerConfig(),
    )


@pytest.mark.requirement("job-idempotent")
async def test_a_request_that_was_accepted_is_not_judged_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "x"}\n')
    dataset = Dataset({"text": DatasetColumnType.text}, file.as_uri())
    request = sft_request("a", dataset=dataset, validation_dataset=dataset)
    async with local_bus() as bus:
        async with running_training(bus, tmp_path, roots=[str(tmp_path)]) as training:
            await training.training.supervised_fine_tune(request)
            assert (await training.ended("a")).status == Status.completed
            file.unlink()
            await training.training.supervised_fine_tune(request)
            with pytest.raises(NotFound):
                await training.training.supervised_fine_tune(replace(request, job_uuid="b"))


@pytest.mark.parametrize(
    "alignment",
    [
        {"reward_scale": 0.0},
        {"reward_clip": -1.0},
        {"epsilon": 0.5},
        {"epsilon": -0.1},
        {"gamma": -1.0},
    ],
)
@pytest.mark.requirement("job-refused")
async def test_an_alignment_without_a_meaning_is_refused(alignment: dict[str, float]) -> None:
    with pytest.raises(InvalidRequest):
        decode(encode(dpo_request("file:///x", **alignment)), PostTrainingRLHFRequest)


@pytest.mark.requirement("job-refused")
async def test_preference_optimisation_begins_with_weights_that_may_be_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    empty = tmp_path / "jobs" / "other" / "checkpoints" / "nothing"
    empty.mkdir(parents=True)
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        for model, error in (
            (outside.as_uri(), PermissionDenied),
            ("https://example.com/model", InvalidRequest),
            ("data:,x", InvalidRequest),
            ((tmp_path / "jobs" / "no").as_uri(), InvalidRequest),
            (empty.as_uri(), InvalidRequest),
            ((empty / ".." / ".." / ".." / ".." / "outside").as_uri(), PermissionDenied),
        ):
            with pytest.raises((error, NotFound)) as raised:
                await training.training.preference_optimize(dpo_request(model))
            assert str(tmp_path) not in raised.value.message


@pytest.mark.requirement("job-runs")
async def test_preference_optimisation_goes_on_with_a_checkpoint(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path) as training:
        await training.training.supervised_fine_tune(sft_request("sft/1"))
        made = (await training.ended("sft/1")).checkpoints[-1].path
        await training.training.preference_optimize(dpo_request(made))
        status = await training.ended("dpo")
        assert (status.status, status.kind, status.model) == (Status.completed, "dpo", made)
        request = await training.jobs.request(
            await training.jobs.record("dpo"), PostTrainingRLHFRequest
        )
        base = training.place.base_of(request)
        assert base.name == "tiny"
        assert base.checkpoint is not None
        assert base.checkpoint.endswith("checkpoint-10")


async def test_weights_and_checkpoints_of_other_models_are_known_by_their_names(
    tmp_path: Path,
) -> None:
    place = workshop(tmp_path, {})
    weights = tmp_path / "jobs" / "whole"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    found = place.base_of(dpo_request(weights.as_uri()))
    assert found == BaseModel("whole", str(weights))
    work = tmp_path / "jobs" / "work"
    work.mkdir()
    (work / "model.safetensors").write_bytes(b"x")
    target = tmp_path / "jobs" / "j" / "checkpoint-1"
    seal(work, target, Manifest(job="j", iters=1, kind="model", base="gone", files=[]))
    with pytest.raises(ModelNotFound) as raised:
        place.base_of(dpo_request(target.as_uri()))
    assert raised.value.details == {"model": "gone", "trainable": ["tiny"]}


async def test_preference_optimisation_does_not_begin_with_a_reward_model(tmp_path: Path) -> None:
    place = workshop(tmp_path, {})
    work, target = tmp_path / "jobs" / "work", tmp_path / "jobs" / "j" / "checkpoint-1"
    work.mkdir(parents=True)
    manifest = Manifest(job="j", iters=1, kind="model", base="tiny", reward=True, files=[])
    seal(work, target, manifest)
    with pytest.raises(InvalidRequest, match="reward model"):
        place.base_of(dpo_request(target.as_uri()))


@pytest.mark.requirement("job-refused")
async def test_an_adapter_on_the_output_layer_alone_is_none_of_a_reward_model(
    tmp_path: Path,
) -> None:
    pairs = dataset_of([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    changes = {
        "algorithm_config.lora_attn_modules": [],
        "algorithm_config.apply_lora_to_output": True,
    }
    request = sft_request("a", dataset=pairs, validation_dataset=pairs)
    reward = decode(with_fields(request, changes), PostTrainingRewardRequest)
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        with pytest.raises(InvalidRequest, match="no module gets an adapter"):
            await training.training.reward_model(reward)
        assert await training.jobs.ids() == []


async def test_weights_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    settings = TrainingSettings(models=[TrainableModel("gone", str(tmp_path / "nothing"))])
    with pytest.raises(InvalidRequest) as raised:
        Trainables(settings, [], tmp_path).find("gone")
    assert str(tmp_path) not in raised.value.message


async def test_a_model_that_vllm_serves_is_trained_as_it_stands(tmp_path: Path) -> None:
    served = ModelSpec(name="big", aliases=["b"], engine="vllm", source=str(tmp_path / "big"))
    trainables = Trainables(TrainingSettings(), [served], tmp_path / "weights")
    assert trainables.names == ["b", "big"]
    with pytest.raises(InvalidRequest, match="not there"):
        trainables.find("b")
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text("{}")
    assert trainables.find("b") == BaseModel("big", str(tmp_path / "big"))


async def test_missing_packages_are_named() -> None:
    with pytest.raises(Unsupported) as raised:
        require_packages("no_such_package_at_all")
    assert "no_such_package_at_all" in raised.value.message
    assert "ayllu[train]" in raised.value.message


@pytest.mark.requirement("job-refused")
async def test_rows_without_a_needed_column_are_refused_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    wrong = replace(dataset_of(ROWS), columns={"prompt": DatasetColumnType.text})
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        with pytest.raises(InvalidRequest) as raised:
            await training.training.supervised_fine_tune(sft_request("a", dataset=wrong))
        assert "completion" in raised.value.message
