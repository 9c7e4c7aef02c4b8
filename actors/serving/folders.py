"""Folders in Hugging Face's format: a base model that is read, and a model with other weights that is written. No torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ...schemas import InvalidRequest, Unsupported
from .tensors import Tensors

CONFIG = "config.json"
WEIGHTS = "model*.safetensors"
OUTPUT = "lm_head.weight"
TIED = "tie_word_embeddings"
DATA = (".json", ".jinja", ".model", ".txt")
"""What stands beside weights: configuration, tokenizer, chat template."""
_TEMPLATE, _TEMPLATE_FILE = "chat_template", "chat_template.jinja"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_OF_TOKENIZER = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "vocab",
    "merges",
    "spiece",
    "sentencepiece",
    _TEMPLATE,
)
"""How the names of files begin that are a tokenizer's."""


def is_embedding(name: str) -> bool:
    """Tell whether a weight is that of the embeddings, as most architectures call it."""
    return name.endswith("embed_tokens.weight")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file.

    Raises:
        InvalidRequest: it is missing or damaged.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path.name} is missing or damaged") from error
    if not isinstance(values, dict):
        raise InvalidRequest(f"{path.name} is not an object")
    return values


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model's weights.

    Raises:
        InvalidRequest: there are none.
    """
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise InvalidRequest(f"{folder.name} has no model.safetensors")
    return files


class BaseFolder:
    """The folder of a base model.

    Attributes:
        config: what its ``config.json`` says.
        tensors: its weights.
        tied: whether the embeddings' weights are the output layer's too.

    Raises:
        InvalidRequest: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.config = read_json(path / CONFIG)
        self.tensors = Tensors(weight_files(path))
        self.tied = bool(self.config.get(TIED, OUTPUT not in self.tensors))

    @property
    def quantised(self) -> bool:
        """Whether its weights are stored in a quantised form."""
        return bool(self.config.get("quantization_config"))

    def refuse_quantised(self) -> None:
        """Refuse a base whose weights are no plain numbers.

        Raises:
            Unsupported: it is one.
        """
        if self.quantised:
            raise Unsupported(
                "the base's weights are quantised: nothing can be merged into them, nor take their place; a LoRA that "
                "its engine can apply is all that it takes"
            )

    @property
    def embedding(self) -> str | None:
        """The name of the embeddings' weight; None where it cannot be told."""
        found = [name for name in self.tensors.names if is_embedding(name)]
        return found[0] if len(found) == 1 else None

    def source(self, name: str) -> str:
        """Return which of the base's weights stands for one: tied embeddings are the output layer too."""
        return (self.embedding or name) if name == OUTPUT and self.tied else name

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight.

        Raises:
            InvalidRequest: there is none of this name.
        """
        source = self.source(name)
        if source not in self.tensors:
            raise InvalidRequest(f"the base has no {name}")
        return self.tensors.shape(source)

    def copy_data(self, target: Path, checkpoint: Path | None = None, *, untied: bool) -> None:
        """Write all that stands beside the weights; the tokenizer is the checkpoint's, if that brings one.

        Args:
            target: where to.
            checkpoint: may have a tokenizer and a chat template.
            untied: whether the output layer has weights of its own now.
        """
        own = checkpoint is not None and any((checkpoint / name).is_file() for name in _TOKENIZERS)
        for path in sorted(self._path.iterdir()):
            if _is_data(path) and not (own and path.name.startswith(_OF_TOKENIZER)):
                shutil.copyfile(path, target / path.name)
        if own:
            assert checkpoint is not None
            for path in sorted(checkpoint.iterdir()):
                if _is_data(path) and path.name.startswith(_OF_TOKENIZER):
                    shutil.copyfile(path, target / path.name)
            template = self._template(self._path)
            if template is not None and self._template(target) is None:
                (target / _TEMPLATE_FILE).write_text(template)
        if untied:
            config = self.config | {TIED: False}
            if isinstance(text := config.get("text_config"), dict) and TIED in text:
                config["text_config"] = text | {TIED: False}
            (target / CONFIG).write_text(json.dumps(config, indent=2))

    def _template(self, folder: Path) -> str | None:
        if (file := folder / _TEMPLATE_FILE).is_file():
            return file.read_text()
        if (file := folder / _TOKENIZER_CONFIG).is_file():
            found = read_json(file).get(_TEMPLATE)
            return found if isinstance(found, str) else None
        return None


def _is_data(path: Path) -> bool:
    return path.suffix in DATA and path.is_file() and not path.name.endswith(".index.json")
