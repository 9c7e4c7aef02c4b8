"""From a checkpoint to a folder in Hugging Face's format, on a base in that format: names are the same on both sides."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np

from ...schemas import InvalidRequest, Unsupported
from .adapter import CONFIG, WEIGHTS, Adapter, merged_values, read_adapter
from .folders import CONFIG as MODEL_CONFIG
from .folders import OUTPUT, BaseFolder, is_embedding, read_json, weight_files
from .tensors import ROTARY, Array, Stored, Tensors, as_stored, computed, write_safetensors

MODEL = "model.safetensors"
SAME = ("model_type", "num_attention_heads", "num_key_value_heads")
"""What of a model's configuration shapes do not tell."""


def keep_adapter(checkpoint: Path, base: BaseFolder, target: Path) -> None:
    """Write an adapter as an engine loads it that applies it while it runs: the files of PEFT, once they are checked.

    Raises:
        InvalidRequest: it is damaged, or does not fit the base.
        Unsupported: it needs something that cannot be represented.
    """
    target.mkdir()
    # What is checked is the copy: the checkpoint may be changed meanwhile.
    for name in (CONFIG, WEIGHTS):
        if not (checkpoint / name).is_file():
            raise InvalidRequest(f"{name} is missing")
        shutil.copyfile(checkpoint / name, target / name)
    adapter = read_adapter(target, _weight_of)
    _check(adapter, base)
    if adapter.whole:
        raise InvalidRequest(f"{WEIGHTS} has {min(adapter.whole)}, which is no part of a LoRA")


def _weight_of(module: str) -> str:
    return f"{module}.weight"


def _check(adapter: Adapter, base: BaseFolder) -> None:
    for name, module in adapter.modules.items():
        if base.quantised and name not in base.tensors:
            # Its shape is that of what stands for it; the engine knows.
            if not any(
                other.startswith(name.removesuffix("weight")) for other in base.tensors.names
            ):
                raise InvalidRequest(f"the base has no {name}")
            continue
        shape = base.shape(name)
        if (module.b.shape[0], module.a.shape[1]) != shape:
            found = f"{module.b.shape[0]} x {module.a.shape[1]}"
            raise InvalidRequest(f"{name}: the adapter is for {found}, the base has {shape}")
        if is_embedding(name):
            raise Unsupported("an adapter on the embeddings cannot be served")
    for name, values in adapter.whole.items():
        if values.shape != base.shape(name):
            raise InvalidRequest(
                f"{name}: {values.shape} came with the adapter, the base has {base.shape(name)}"
            )


def merge_adapter(checkpoint: Path, base: BaseFolder, target: Path) -> None:
    """Write a base's model with an adapter merged into it, stored as the base's is.

    Raises:
        InvalidRequest: it is damaged, or does not fit the base.
        Unsupported: it needs something that cannot be represented, or the base's weights are quantised.
    """
    base.refuse_quantised()
    adapter = read_adapter(checkpoint, _weight_of, whole=True)
    _check(adapter, base)
    changed = {*adapter.modules, *adapter.whole}
    # Tied weights of which one is changed are two: the other stays.
    untied = base.tied and not changed.isdisjoint((OUTPUT, base.embedding))
    tensors: dict[str, Stored] = {}
    for name in [*base.tensors.names, *([OUTPUT] if untied else ())]:
        if name in changed or (untied and name == OUTPUT):
            values = partial(_merge, name, adapter, base)
            type = base.tensors.type(base.source(name))
            tensors[name] = computed(name, type, base.shape(name), values)
        else:
            tensors[name] = as_stored(name, base.tensors)
    target.mkdir()
    write_safetensors(target / MODEL, tensors)
    base.copy_data(target, untied=untied)


def _merge(name: str, adapter: Adapter, base: BaseFolder) -> Array:
    weight = adapter.whole.get(name)
    if weight is None:
        weight = base.tensors.read(base.source(name))
    module = adapter.modules.get(name)
    return weight if module is None else merged_values(weight, module, adapter.scale)


def convert_whole(checkpoint: Path, base: BaseFolder, target: Path) -> None:
    """Write a whole model that was trained from a base, stored as it is; its configuration is the base's.

    Raises:
        InvalidRequest: something is missing, damaged, or has another shape than in the base.
        Unsupported: it is of another architecture, or the base's weights are quantised.
    """
    base.refuse_quantised()
    _check_config(checkpoint, base)
    weights = Tensors(weight_files(checkpoint))
    names = {name for name in weights.names if not name.endswith(ROTARY)}
    untied = False
    if base.tied and OUTPUT in names:
        # Training goes on with both tied, unless their own output layer came with them and differs.
        embedding = base.embedding
        untied = embedding not in names or not np.array_equal(
            weights.read(OUTPUT), weights.read(embedding)
        )
    wanted = {name for name in base.tensors.names if not name.endswith(ROTARY)} - {OUTPUT}
    if untied or not base.tied:
        wanted.add(OUTPUT)
    else:
        names.discard(OUTPUT)
    _check_weights(weights, names, wanted, base)
    target.mkdir()
    write_safetensors(target / MODEL, {name: as_stored(name, weights) for name in sorted(names)})
    base.copy_data(target, checkpoint, untied=untied)


def _check_weights(weights: Tensors, names: set[str], wanted: set[str], base: BaseFolder) -> None:
    if missing := wanted - names:
        raise InvalidRequest(f"the weights have no {min(missing)}, which the base has")
    if more := names - wanted:
        raise InvalidRequest(f"the base has no {min(more)}, which the weights have")
    for name in names:
        shape, expected = weights.shape(name), base.shape(name)
        if shape != expected:
            raise InvalidRequest(f"{name}: the checkpoint has {shape}, the base {expected}")
        weights.read(name)  # whether all of it is numbers


def _check_config(checkpoint: Path, base: BaseFolder) -> None:
    config = read_json(checkpoint / MODEL_CONFIG)
    for name in SAME:
        if config.get(name) != base.config.get(name):
            raise Unsupported(
                f"config.json: {name} is {config.get(name)!r}, of the base {base.config.get(name)!r}"
            )
