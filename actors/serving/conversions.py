"""From a checkpoint to a GGUF file: a LoRA as an adapter, DoRA and whole weights merged into a model. No torch."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...schemas import InvalidRequest, Unsupported
from .adapter import Adapter, Module, merged_values, read_adapter
from .gguf_files import BaseFile, Kind, NewTensor, kind_for, write_adapter, write_model
from .llama import EMBEDDING, OUTPUT, Heads, gguf_name
from .tensors import ROTARY, Array, Tensors

WHOLE_PATTERN = "model*.safetensors"
FROM_CONFIG = ("num_attention_heads", "num_key_value_heads")


def convert_adapter(checkpoint: Path, base: BaseFile, target: Path, *, merge: bool) -> bool:
    """Write an adapter as GGUF: as one that llama.cpp applies, or, where it cannot or shall not, merged into its base.

    Returns:
        whether it was merged.

    Raises:
        InvalidRequest: it is damaged, or does not fit the base.
        Unsupported: it needs something that cannot be represented.
    """
    adapter = read_adapter(checkpoint, gguf_name)
    for name, module in adapter.modules.items():
        _check(name, module, base)
    if merge or adapter.merges:
        write_model(target, base, merged(adapter, base))
        return True
    tensors: dict[str, Array] = {}
    for name, module in adapter.modules.items():
        tensors[f"{name}.lora_a"] = module.a
        tensors[f"{name}.lora_b"] = base.heads.ordered(name, module.b)
    # llama.cpp divides by the rank.
    write_adapter(target, tensors, adapter.scale * adapter.rank)
    return False


def _source(name: str, base: BaseFile) -> str:
    """Return which of the base's weights stands for one: tied embeddings are the output layer too."""
    return EMBEDDING if name == OUTPUT and OUTPUT not in base.names else name


def _check(name: str, module: Module, base: BaseFile) -> None:
    if name == EMBEDDING:
        raise Unsupported("an adapter on the embeddings cannot be served")
    shape = base.shape(_source(name, base))
    if (module.b.shape[0], module.a.shape[1]) != shape:
        raise InvalidRequest(
            f"{name}: the adapter is for {module.b.shape[0]} x {module.a.shape[1]}, the base has {shape}"
        )


def merged(adapter: Adapter, base: BaseFile) -> dict[str, NewTensor]:
    """Return the weights of a base with an adapter merged into it; those that it leaves alone stay as they are."""
    names = base.names
    if OUTPUT not in names and (OUTPUT in adapter.modules or OUTPUT in adapter.whole):
        names.append(OUTPUT)
    tensors: dict[str, NewTensor] = {}
    for name in names:
        source = _source(name, base)
        shape = base.shape(source)
        if name in adapter.whole and adapter.whole[name].shape != shape:
            raise InvalidRequest(
                f"{name}: {adapter.whole[name].shape} came with the adapter, the base has {shape}"
            )
        if name in adapter.modules or name in adapter.whole:
            kind, values = kind_for(shape), partial(_merge, name, adapter, base)
            tensors[name] = NewTensor(shape, kind, values)
        else:
            tensors[name] = NewTensor(shape, base.raw(name)[1], partial(_raw, name, base))
    return tensors


def _raw(name: str, base: BaseFile) -> Any:
    return base.raw(name)[0]


def _merge(name: str, adapter: Adapter, base: BaseFile) -> Array:
    heads = base.heads
    if name in adapter.whole:
        weight = heads.ordered(name, adapter.whole[name])
    else:
        weight = base.read(_source(name, base))
    module = adapter.modules.get(name)
    if module is None:
        return weight
    magnitude = module.magnitude
    ordered = Module(
        module.a,
        heads.ordered(name, module.b),
        None if magnitude is None else heads.ordered(name, magnitude),
    )
    return merged_values(weight, ordered, adapter.scale)


def convert_whole(checkpoint: Path, base: BaseFile, target: Path) -> None:
    """Write a whole Llama model, in Hugging Face's format, as GGUF; its metadata and tokenizer are the base's.

    Raises:
        InvalidRequest: something is missing, damaged, or has another shape than in the base.
        Unsupported: it is no Llama model.
    """
    _check_config(checkpoint, base.heads)
    files = sorted(checkpoint.glob(WHOLE_PATTERN))
    if not files:
        raise InvalidRequest(f"{checkpoint.name} has no model.safetensors")
    weights = Tensors(files)
    places = {
        gguf_name(name.removesuffix(".weight")): name
        for name in weights.names
        if not name.endswith(ROTARY)
    }
    # Training goes on with embeddings and output tied, unless their own output layer came with them and differs.
    if OUTPUT in places and OUTPUT not in base.names:
        same = np.array_equal(weights.read(places[OUTPUT]), weights.read(places[EMBEDDING]))
        if same:
            del places[OUTPUT]
    elif OUTPUT in base.names and OUTPUT not in places and EMBEDDING in places:
        places[OUTPUT] = places[EMBEDDING]
    write_model(target, base, _whole(weights, places, base))


def _whole(weights: Tensors, places: dict[str, str], base: BaseFile) -> dict[str, NewTensor]:
    tensors: dict[str, NewTensor] = {}
    for name in [*base.names, *(set(places) - set(base.names))]:
        if (
            name == "rope_freqs.weight"
        ):  # No weight: it follows from the configuration, which is the base's.
            tensors[name] = NewTensor(base.shape(name), Kind.F32, partial(_raw, name, base))
            continue
        if name not in places:
            raise InvalidRequest(f"the weights have no {name}, which the base has")
        shape, wanted = weights.shape(places[name]), base.shape(_source(name, base))
        if shape != wanted:
            raise InvalidRequest(f"{name}: the checkpoint has {shape}, the base {wanted}")
        values = partial(_ordered, name, places[name], weights, base.heads)
        tensors[name] = NewTensor(shape, kind_for(shape), values)
    return tensors


def _ordered(name: str, place: str, weights: Tensors, heads: Heads) -> Array:
    return heads.ordered(name, weights.read(place))


def _check_config(checkpoint: Path, heads: Heads) -> None:
    """Refuse what shapes do not tell: another architecture, or rows that other heads share."""
    try:
        config: dict[str, Any] = json.loads((checkpoint / "config.json").read_bytes())
        kind = config.get("model_type")
        found = [config.get(name) for name in FROM_CONFIG]
    except (OSError, ValueError, AttributeError) as error:
        raise InvalidRequest("config.json is missing or damaged") from error
    if kind != "llama":
        raise Unsupported(f"the model type {kind!r} cannot be served; only llama can")
    if found != [heads.query, heads.key]:
        raise InvalidRequest(f"the model has {found} heads, the base {[heads.query, heads.key]}")
