"""``ayllu train``: a request for a job from options and a file, and the job's log as it comes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from secrets import token_hex
from shlex import quote
from typing import Any

import msgspec

from ..client import Stack, connect
from ..schemas import (
    Dataset,
    InvalidRequest,
    PostTrainingRewardRequest,
    PostTrainingRLHFRequest,
    PostTrainingSFTRequest,
    encode,
)
from ..schemas.wire import convert
from .dataset_files import dataset_of
from .job_commands import show_job
from .toml_files import read_toml

ADAPTER = {
    "lora_attn_modules": ["q_proj", "v_proj"],
    "apply_lora_to_mlp": False,
    "apply_lora_to_output": False,
    "rank": 8,
    "alpha": 16,
}
ALIGNMENT = {"reward_scale": 0.1, "reward_clip": 0.0, "epsilon": 0.0, "gamma": 0.0}
TRAINING = {
    "batch_size": 4,
    "shuffle": True,
    "n_iters": 0,
    "enable_activation_checkpointing": False,
    "memory_efficient_fsdp_wrap": False,
    "fsdp_cpu_offload": False,
}
OPTIMIZER = {"optimizer_type": "adamw", "lr_min": 0.0, "weight_decay": 0.0}
EPOCHS = 3
ADAPTER_LR, FULL_LR, DPO_LR = 2e-4, 2e-5, 5e-6

Fields = dict[str, Any]


async def run_train(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu train`` was asked for: start a job, and follow it to its end.

    Raises:
        JobFailed: it has failed.
        AylluError: it could not be started, or followed.
    """
    fields = fields_of(options)  # Errors in it need no gateway.
    async with connect(url, token=token) as stack:
        job = await _start(stack, options, fields)
        sys.stderr.write(f"job {job}: ayllu logs -f {quote(job)}\n")
        if options.detach:
            sys.stdout.write(f"{job}\n")
        else:
            await show_job(stack, job)


async def _start(stack: Stack, options: argparse.Namespace, fields: Fields) -> str:
    if options.dataset:
        fields["dataset"] = await _dataset(stack, options.dataset)
    if options.validation:
        fields["validation_dataset"] = await _dataset(stack, options.validation)
    elif "validation_dataset" not in fields and "dataset" in fields:
        sys.stderr.write("no --validation: the validation loss is that on the dataset itself\n")
        fields["validation_dataset"] = fields["dataset"]
    if options.action == "sft":
        sft = convert(fields, PostTrainingSFTRequest)
        await stack.post_training.supervised_fine_tune(sft)
        return sft.job_uuid
    if options.action == "reward":
        reward = convert(fields, PostTrainingRewardRequest)
        await stack.post_training.reward_model(reward)
        return reward.job_uuid
    if options.start:
        fields["finetuned_model"] = await _start_of(stack, options.start)
    dpo = convert(fields, PostTrainingRLHFRequest)
    await stack.post_training.preference_optimize(dpo)
    return dpo.job_uuid


async def _dataset(stack: Stack, source: str) -> Fields:
    """Return a dataset: a file, what lies at a URL, or a registered one."""
    dataset = _unregistered(source)
    if dataset is not None:
        columns = ", ".join(f"{name} ({type_})" for name, type_ in dataset.columns.items())
        sys.stderr.write(f"{source}: {columns}\n")
    else:
        dataset = await stack.datasets.get(source)
    fields: Fields = msgspec.json.decode(encode(dataset))
    return fields


def _unregistered(source: str) -> Dataset | None:
    is_url = "://" in source or source.startswith("data:")
    return dataset_of(source) if is_url or Path(source).is_file() else None


async def _start_of(stack: Stack, start: str) -> str:
    """Return the address of the checkpoint that training begins with."""
    folder = _folder_url(start)
    if folder is not None:
        return folder
    checkpoints = (await stack.post_training.job.artifacts(start)).checkpoints
    if not checkpoints:
        raise InvalidRequest(f"the job {start!r} has no checkpoint")
    return checkpoints[-1].path


def _folder_url(start: str) -> str | None:
    return Path(start).resolve().as_uri() if Path(start).is_dir() else None


def fields_of(options: argparse.Namespace) -> Fields:
    """Return the fields of a request: defaults, then the file's, then the command line's.

    Raises:
        InvalidRequest: the file cannot be read, or has fields that no request has.
    """
    dpo = options.action == "dpo"
    given = read_toml(options.config) if options.config else {}
    chosen = _chosen(options)
    algorithm = chosen.get("algorithm") or given.get("algorithm") or ("dpo" if dpo else "lora")
    limited = chosen["training_config"].get("n_iters") or given.get("training_config", {}).get(
        "n_iters"
    )
    fields: Fields = {
        "job_uuid": f"{options.action}-{token_hex(4)}",
        "algorithm": algorithm,
        **default_sections(algorithm, limited=bool(limited), dpo=dpo),
        "hyperparam_search_config": {},
        "logger_config": {},
    }
    return merged(merged(fields, given), chosen)


def default_sections(algorithm: object, *, limited: bool, dpo: bool = False) -> Fields:
    """Return the sections of a request as they are where nothing is said.

    Args:
        algorithm: its algorithm.
        limited: whether iterations are limited, and epochs then are not.
        dpo: whether it is one for preference optimisation.
    """
    lr = DPO_LR if dpo else FULL_LR if algorithm == "full" else ADAPTER_LR
    return {
        "algorithm_config": dict(ALIGNMENT if dpo else ADAPTER),
        "optimizer_config": {**OPTIMIZER, "lr": lr},
        "training_config": {**TRAINING, "n_epochs": 0 if limited else EPOCHS},
    }


def merged(fields: Fields, given: Fields) -> Fields:
    """Return fields as they are with others that were given; of a section, what was not given stays."""
    made = dict(fields)
    for name, value in given.items():
        known = made.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            made[name] = {**known, **value}
        else:
            made[name] = value
    return made


def _chosen(options: argparse.Namespace) -> Fields:
    """Return what the command line says."""
    if options.action != "dpo":
        config = {
            "rank": options.rank,
            "alpha": options.alpha,
            "lora_attn_modules": options.modules,
            "apply_lora_to_mlp": options.mlp or None,
            "apply_lora_to_output": options.output_layer or None,
        }
        top = {"model": options.model, "algorithm": options.algorithm}
    else:
        config = {
            "reward_scale": options.beta,
            "reward_clip": options.clip,
            "epsilon": options.epsilon,
            "gamma": options.gamma,
        }
        top = {}
    return {
        **_given(top | {"job_uuid": options.job}),
        "algorithm_config": _given(config),
        "optimizer_config": _given(
            {
                "optimizer_type": options.optimizer,
                "lr": options.lr,
                "lr_min": options.lr_min,
                "weight_decay": options.weight_decay,
            }
        ),
        "training_config": _given(
            {
                "n_epochs": options.epochs,
                "n_iters": options.iters,
                "batch_size": options.batch_size,
                "shuffle": False if options.no_shuffle else None,
                "enable_activation_checkpointing": options.activation_checkpointing or None,
                "max_length": options.max_length,
                "evaluate_every": options.evaluate_every,
                "checkpoint_every": options.checkpoint_every,
                "num_processes": options.processes,
                "seed": options.seed,
            }
        ),
    }


def _given(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}
