"""GGUF files: a base model that is read, an adapter, and a model with other weights and the base's metadata."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quant_shape_to_byte_shape

from ...schemas import InvalidRequest, Unsupported
from .llama import Heads
from .tensors import Array

ARCHITECTURE = "llama"
Kind = gguf.GGMLQuantizationType
# The library writes these itself, or they say how the base was quantized.
_NOT_COPIED = frozenset(
    ("general.architecture", "general.file_type", "general.quantization_version")
)


class BaseFile:
    """The GGUF file of a Llama model.

    Raises:
        InvalidRequest: it is damaged.
        Unsupported: it is of another architecture.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise InvalidRequest(f"the base {path.name} is no GGUF file: {error}") from error
        architecture = self._field("general.architecture")
        if architecture != ARCHITECTURE:
            raise Unsupported(
                f"the base is of the architecture {architecture}; only {ARCHITECTURE} is supported"
            )
        query = int(self._field("llama.attention.head_count"))
        self.heads = Heads(query, int(self._field("llama.attention.head_count_kv", query)))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def _field(self, name: str, default: Any = None) -> Any:
        field = self._reader.get_field(name)
        value = default if field is None else field.contents()
        if value is None:
            raise InvalidRequest(f"the base has no {name}")
        return value

    @property
    def names(self) -> list[str]:
        """The names of its weights, in its own order."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, as outputs x inputs.

        Raises:
            InvalidRequest: there is none of this name.
        """
        if name not in self._tensors:
            raise InvalidRequest(f"the base has no {name}")
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def read(self, name: str) -> Array:
        """Return a weight, dequantized."""
        tensor = self._tensors[name]
        values: Array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return values.astype(np.float32).reshape(self.shape(name))

    def raw(self, name: str) -> tuple[Any, Kind]:
        """Return a weight as it stands in the file, and its type."""
        tensor = self._tensors[name]
        return tensor.data, tensor.tensor_type

    def copy_metadata(self, writer: gguf.GGUFWriter) -> None:
        """Copy all metadata but for how the weights are quantized."""
        for field in self._reader.fields.values():
            if field.name.startswith("GGUF.") or field.name in _NOT_COPIED:
                continue
            of = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            if of is None or field.data:  # An empty array has no type, and says nothing.
                writer.add_key_value(field.name, field.contents(), field.types[0], of)


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A weight to be written.

    Attributes:
        shape: as outputs x inputs.
        kind: how it is stored.
        values: makes it: float32 values, or the raw bytes of the base's own.
    """

    shape: tuple[int, ...]
    kind: Kind
    values: Callable[[], Any]


def kind_for(shape: tuple[int, ...]) -> Kind:
    """Return how a weight is stored that is not the base's own: almost as it is, in a quarter of the room."""
    if len(shape) < 2:
        return Kind.F32
    return Kind.F16 if shape[-1] % 32 else Kind.Q8_0


def write_model(path: Path, base: BaseFile, tensors: dict[str, NewTensor]) -> None:
    """Write a model with the metadata of a base; only one weight at a time is in memory."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    base.copy_metadata(writer)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, tensor in tensors.items():
        size = int(np.prod(quant_shape_to_byte_shape(tensor.shape, tensor.kind)))
        if tensor.kind in (Kind.F32, Kind.F16):
            size = int(np.prod(tensor.shape)) * (4 if tensor.kind is Kind.F32 else 2)
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), size, tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors.values():
        writer.write_tensor_data(_stored(tensor.values(), tensor.kind))
    writer.close()


def _stored(values: Any, kind: Kind) -> Any:
    if values.dtype == np.float32 and kind is not Kind.F32:
        return gguf.quants.quantize(values, kind)
    return values


def write_adapter(path: Path, tensors: dict[str, Array], alpha: float) -> None:
    """Write a LoRA as llama.cpp reads it."""
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
