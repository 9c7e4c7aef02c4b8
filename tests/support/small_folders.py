"""Small models and adapters in Hugging Face's format, of an architecture that nobody knows: names are all that a merge needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

Q = "model.layers.0.self_attn.q_proj"
CONFIG = {"model_type": "quipu", "num_attention_heads": 2, "tie_word_embeddings": True}
Change = Callable[[Path], None]


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def small_base(folder: Path, **config: Any) -> Path:
    """Write a base with tied embeddings, and return its folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    weights = {f"{Q}.weight": numbers(8, 8), "model.embed_tokens.weight": numbers(16, 8)}
    save_file(weights, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "of the base"}')
    return folder


def small_adapter(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a LoRA of the rank 2 on one module of that base, with further tensors, and return its folder."""
    folder.mkdir()
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(told | config))
    parts = {f"{Q}.lora_A.weight": numbers(2, 8), f"{Q}.lora_B.weight": numbers(8, 2)}
    found = {f"base_model.model.{name}": one for name, one in (parts | (tensors or {})).items()}
    save_file(found, folder / "adapter_model.safetensors")
    return folder


def small_dora(folder: Path, **config: Any) -> Path:
    """Write an adapter that has to be merged."""
    lengths = {f"{Q}.lora_magnitude_vector": np.ones(8, np.float32)}
    return small_adapter(folder, lengths, use_dora=True, **config)


def configured(**values: Any) -> Change:
    """Return what changes the configuration of an adapter."""

    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def with_tensor(part: str, change: Callable[[Any], Any]) -> Change:
    """Return what changes a tensor of an adapter."""

    def apply(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if part in name)
        tensors[name] = change(tensors[name])
        save_file(tensors, file)

    return apply


def on_another_module(folder: Path) -> None:
    """Let an adapter be on a module that the base has not."""
    file = folder / "adapter_model.safetensors"
    tensors = {name.replace("q_proj", "router"): one for name, one in load_file(file).items()}
    save_file(tensors, file)


def cut(folder: Path) -> None:
    """Take the last byte of an adapter's weights."""
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def no_number(values: Any) -> Any:
    """Let a tensor have a value that is no number."""
    values[0, 0] = np.nan
    return values
