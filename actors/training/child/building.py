"""Trainers built of what a request asks for."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.reward_config import RewardConfig
from trl.trainer.sft_config import SFTConfig

from ....schemas import FinetuningAlgorithm, InvalidRequest
from ..checkpoints import Manifest, read_manifest
from ..protocol import WORK, RunSpec
from .adapters import adapter_config, expose_output_layer
from .plan import Plan
from .saving import Store
from .session import Session
from .telling import Telling
from .trainers import OurDPOTrainer, OurRewardTrainer, Ours, OurSFTTrainer
from .weights import HEAD, load_model

_CLIP = 1.0
"""The norm to which gradients are cut."""

Model = PreTrainedModel | PeftModel


@dataclass(frozen=True, slots=True)
class Work:
    """What a trainer is built of.

    Attributes:
        folder: the job's folder.
        spec: what is to be done.
        plan: when what of it is done.
        tokenizer: the model's.
        data: the examples that are trained on.
        validation: those that the model is validated with.
        device: what this process trains on.
    """

    folder: Path
    spec: RunSpec
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    data: Dataset
    validation: Dataset
    device: torch.device


def build_trainer(work: Work, session: Session) -> Ours:
    """Return what trains, ready to.

    Raises:
        InvalidRequest: the model has not what the request names.
    """
    spec = work.spec
    set_seed(spec.training.seed)
    model, kind = _load(spec, work.device)
    merge = isinstance(model, PeftModel) and _needs_merging(model)
    trainer = _trainer(work, model)
    describe = Manifest(
        job=spec.job,
        iters=0,
        kind=kind,
        base=spec.base.name,
        merge=merge,
        reward=spec.method == "reward",
        files=[],
    )
    store = Store(work.folder, session, describe, spec.training.keep_checkpoints)
    resources = _resources(spec, work.device, model)
    tensorboard = work.folder if spec.logger.tensorboard else None
    telling = Telling(session, work.plan, resources, tensorboard)
    trainer.attach(session, telling, store, spec.optimizer)
    session.log(
        f"{spec.base.name} in {kind if spec.method == 'dpo' else spec.algorithm} training: "
        f"{resources['parameters_trained']} of {resources['parameters']} parameters on {work.device}; "
        f"gradients are cut to the norm {_CLIP:g}"
    )
    return trainer


def _load(spec: RunSpec, device: torch.device) -> tuple[Model, Any]:
    several = spec.processes > 1
    if spec.method == "dpo":
        if spec.base.checkpoint is None:
            return load_model(Path(spec.base.weights), device, several=several), "model"
        checkpoint = Path(spec.base.checkpoint)
        kind = read_manifest(checkpoint).kind
        if kind == "model":
            return load_model(checkpoint, device, several=several), kind
        base = load_model(Path(spec.base.weights), device, several=several)
        return PeftModel.from_pretrained(base, str(checkpoint), is_trainable=True), kind
    in_4_bits = spec.algorithm is FinetuningAlgorithm.qlora
    scoring = spec.method == "reward"
    model = load_model(
        Path(spec.base.weights), device, scoring=scoring, in_4_bits=in_4_bits, several=several
    )
    if scoring and not hasattr(model, HEAD):
        raise InvalidRequest(f"reward models are made of models whose head is called {HEAD}")
    if spec.algorithm is FinetuningAlgorithm.full:
        return model, "model"
    assert spec.adapter is not None
    config = adapter_config(model, spec.adapter, spec.algorithm, head=HEAD if scoring else None)
    return get_peft_model(model, config), "adapter"


def _needs_merging(model: PeftModel) -> bool:
    # Asked before the trainer is built, because that asks for the output layer too.
    on_output = expose_output_layer(model)
    config: Any = model.peft_config["default"]
    return on_output or bool(config.use_dora)


def _trainer(work: Work, model: Model) -> Ours:
    spec = work.spec
    common: dict[str, Any] = {
        "model": model,
        "train_dataset": work.data,
        "eval_dataset": work.validation,
        "processing_class": work.tokenizer,
    }
    arguments = _arguments(work.folder, spec, work.plan)
    if spec.method == "sft":
        arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}}
        return OurSFTTrainer(args=SFTConfig(**arguments), **common)
    if spec.method == "reward":
        return OurRewardTrainer(args=RewardConfig(**arguments), **common)
    assert spec.alignment is not None
    reference = None
    if not isinstance(model, PeftModel):
        reference = copy.deepcopy(model).eval().requires_grad_(False)
    trainer = OurDPOTrainer(
        args=DPOConfig(beta=spec.alignment.reward_scale, **arguments),
        ref_model=reference,
        **common,
    )
    trainer.alignment = spec.alignment
    return trainer


def _arguments(folder: Path, spec: RunSpec, plan: Plan) -> dict[str, Any]:
    training = spec.training
    cpu = spec.device == "cpu"
    return {
        "output_dir": str(folder / WORK),
        "use_cpu": cpu,
        "bf16": not cpu and torch.cuda.is_bf16_supported(),
        "seed": training.seed,
        "data_seed": training.seed,
        "max_steps": plan.total,
        "per_device_train_batch_size": plan.batch,
        "per_device_eval_batch_size": plan.batch,
        "train_sampling_strategy": "random" if training.shuffle else "sequential",
        "learning_rate": spec.optimizer.lr,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": spec.optimizer.lr_min},
        "weight_decay": spec.optimizer.weight_decay,
        "max_grad_norm": _CLIP,
        "gradient_checkpointing": training.enable_activation_checkpointing,
        "ddp_find_unused_parameters": False if spec.processes > 1 else None,
        # Too long examples were refused: nothing is cut.
        "max_length": None,
        "include_num_input_tokens_seen": "non_padding",
        # A loss that is no number ends the run.
        "logging_nan_inf_filter": False,
        # `Telling` says when something is done.
        "logging_strategy": "no",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": not cpu,
    }


def _resources(spec: RunSpec, device: torch.device, model: Model) -> dict[str, str | int | float]:
    # A copy of an adapter that DPO compares with is none of the model's parameters.
    parameters = [p for name, p in model.named_parameters() if ".ref." not in name]
    resources: dict[str, str | int | float] = {
        "device": str(device),
        "processes": spec.processes,
        "torch": str(torch.__version__),
        "parameters": sum(_size(p) for p in parameters),
        "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
    }
    if device.type == "cuda":
        resources["device_name"] = torch.cuda.get_device_name(device)
    else:
        resources["threads"] = torch.get_num_threads()
    return resources


def _size(parameter: torch.nn.Parameter) -> int:
    # Weights in 4 bits are two in a byte, and know their true shape.
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()
