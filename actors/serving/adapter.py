"""An adapter as PEFT writes it: LoRA and DoRA, as far as engines and a merge can represent them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...schemas import InvalidRequest, Unsupported
from ...schemas.wire import convert
from .llama import OUTPUT
from .tensors import Array, Tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?")
_WHOLE = re.compile(r"(.+?)(?:\.base_layer)?\.weight")

MODULES = "modules_to_save"
_PLAIN: dict[str, tuple[object, ...]] = {
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    MODULES: ([],),
    "target_parameters": ([],),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "alora_invocation_tokens": ([],),
    "use_qalora": (False,),
    "use_bdlora": (False, {}),
    "arrow_config": ({},),
    "kasa_config": ({},),
    "monteclora_config": ({},),
    "ensure_weight_tying": (False,),
    # Others change the base's weights, so that what is stored is no difference to those that it was trained from.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga"),
}
"""What no merge and no adapter of ours can represent, and the values that mean that it is not used (as null does)."""


class LoraConfig(msgspec.Struct, frozen=True):
    """What of ``adapter_config.json`` counts."""

    r: int
    lora_alpha: float
    peft_type: str
    use_dora: bool = False
    use_rslora: bool = False


@dataclass(frozen=True, slots=True)
class Module:
    """What an adapter changes of one weight: ``b @ a`` is added to it; rows are in Hugging Face's order.

    Attributes:
        a: rank x inputs.
        b: outputs x rank.
        magnitude: DoRA: the length of each row of the sum.
    """

    a: Array
    b: Array
    magnitude: Array | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory.

    Attributes:
        rank: of all its modules.
        scale: what ``b @ a`` is multiplied by.
        modules: by the name of the weight.
        whole: weights that came with it, in place of the base's own.
    """

    rank: int
    scale: float
    modules: dict[str, Module]
    whole: dict[str, Array] = field(default_factory=dict)

    @property
    def merges(self) -> bool:
        """Whether llama.cpp cannot apply it while it runs."""
        magnitudes = any(module.magnitude is not None for module in self.modules.values())
        return magnitudes or OUTPUT in self.modules or bool(self.whole)


def read_config(folder: Path, *, whole: bool = False) -> LoraConfig:
    """Return what an adapter's configuration says.

    Args:
        folder: the adapter's.
        whole: whether whole modules may come with it, in place of the base's own.

    Raises:
        InvalidRequest: it is missing or damaged.
        Unsupported: it needs something that cannot be represented; the message names the setting.
    """
    try:
        values: Any = msgspec.json.decode((folder / CONFIG).read_bytes())
    except OSError as error:  # Its text has the whole path.
        raise InvalidRequest(f"{CONFIG} is missing, or cannot be read") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{CONFIG} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise InvalidRequest(f"{CONFIG} is not an object")
    for name, unused in _PLAIN.items():
        if whole and name == MODULES:
            continue
        if values.get(name) is not None and values[name] not in unused:
            raise Unsupported(f"{CONFIG}: {name} = {values[name]!r} cannot be served")
    try:
        config = convert(values, LoraConfig)
    except InvalidRequest as error:
        raise InvalidRequest(f"{CONFIG}: {error.message}") from error
    if config.peft_type != "LORA":
        raise Unsupported(f"{CONFIG}: adapters of the type {config.peft_type} cannot be served")
    if config.r < 1:
        raise InvalidRequest(f"{CONFIG}: the rank is {config.r}")
    return config


def must_merge(folder: Path, *, whole: bool = False) -> bool:
    """Tell whether no engine can apply an adapter while it runs; reads no weights. For ``whole`` see `read_config`.

    Raises:
        InvalidRequest: something is missing or damaged.
        Unsupported: it needs something that cannot be represented.
    """
    if read_config(folder, whole=whole).use_dora:
        return True
    names = [name.removeprefix(PREFIX) for name in Tensors([folder / WEIGHTS]).names]
    return any(name.startswith("lm_head.") or not _PART.fullmatch(name) for name in names)


def read_adapter(folder: Path, weight_of: Callable[[str], str], *, whole: bool = False) -> Adapter:
    """Read an adapter.

    Args:
        folder: the adapter's.
        weight_of: returns the name of a module's weight, or raises `Unsupported`.
        whole: see `read_config`.

    Raises:
        InvalidRequest: something is missing, damaged, or does not fit together.
        Unsupported: it needs something that cannot be represented.
    """
    config = read_config(folder, whole=whole)
    tensors = Tensors([folder / WEIGHTS])
    parts: dict[str, dict[str, Array]] = {}
    came: dict[str, Array] = {}
    for name in tensors.names:
        plain = name.removeprefix(PREFIX)
        if match := _PART.fullmatch(plain):
            parts.setdefault(weight_of(match[1]), {})[match[2]] = tensors.read(name)
        elif match := _WHOLE.fullmatch(plain):
            # PEFT keeps the embeddings with an adapter on the output layer.
            came[weight_of(match[1])] = tensors.read(name)
        else:
            raise Unsupported(f"{WEIGHTS}: {name} is no part of a LoRA that can be served")
    if not parts:
        raise InvalidRequest(f"{WEIGHTS} has no module")
    modules = {name: _module(name, found, config) for name, found in parts.items()}
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    return Adapter(config.r, scale, modules, came)


def _module(name: str, parts: dict[str, Array], config: LoraConfig) -> Module:
    a, b = parts.get("lora_A"), parts.get("lora_B")
    magnitude = parts.get("lora_magnitude_vector")
    if a is None or b is None or config.use_dora != (magnitude is not None):
        raise InvalidRequest(f"{WEIGHTS} has {', '.join(sorted(parts))} of {name}, and no more")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != config.r or b.shape[1] != config.r:
        raise InvalidRequest(
            f"{name}: {a.shape} and {b.shape} are no adapter of the rank {config.r}"
        )
    if magnitude is not None:
        magnitude = magnitude.reshape(-1)
        if magnitude.shape[0] != b.shape[0]:
            raise InvalidRequest(f"{name}: {magnitude.shape[0]} lengths for {b.shape[0]} rows")
    return Module(a, b, magnitude)


def merged_values(weight: Array, module: Module, scale: float) -> Array:
    """Return a weight with what an adapter changes of it.

    Raises:
        InvalidRequest: some of the values would be no numbers.
    """
    with np.errstate(all="ignore"):
        delta: Any = np.float32(scale) * (module.b @ module.a)
        found: Any = weight + delta
        if module.magnitude is not None:
            length = np.linalg.norm(found, axis=1)
            # A row of zeros has no direction: whatever its length, it stays one.
            found = found * (module.magnitude / np.maximum(length, 1e-12))[:, None]
        merged: Array = found.astype(np.float32)
    if not np.isfinite(merged).all():
        raise InvalidRequest("merged, the adapter makes values that are no numbers")
    return merged
