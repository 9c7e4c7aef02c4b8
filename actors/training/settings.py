"""The configuration of trainers, ``[training]``, and what they can train."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from msgspec import Meta, field

from ...schemas import InvalidRequest, ModelName, ModelNotFound, Unsupported, Wire
from ..files import locate
from ..registry import ModelSpec
from .protocol import BaseModel

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
"""What a child needs."""


class TrainableModel(Wire, frozen=True):
    """A model that can be trained though no engine here serves it, ``[[training.models]]``.

    Attributes:
        name: what requests call it.
        weights: a folder in Hugging Face's format, with safetensors.
    """

    name: ModelName
    weights: Annotated[str, Meta(min_length=1)]


class TrainingSettings(Wire, frozen=True):
    """What trainers run jobs on.

    Attributes:
        devices: each runs one job at a time: ``cpu``, ``cuda:0``, or ``cuda`` for jobs of several processes.
        processes: how many processes train, where a job does not say.
        threads: of each process on a CPU; 0 leaves it to torch.
        attempts: how often in a row a job may crash before it has failed.
        stop_seconds: how long a job that was cancelled may take to its next iteration, before it is killed.
        models: what can be trained besides the models of ``[[models]]`` in GGUF, and those of the engine ``vllm``.
    """

    devices: Annotated[list[str], Meta(min_length=1)] = field(default_factory=lambda: ["cpu"])
    processes: Annotated[int, Meta(ge=1, le=1024)] = 1
    threads: Annotated[int, Meta(ge=0, le=4096)] = 0
    attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    stop_seconds: Annotated[float, Meta(gt=0)] = 60.0
    models: list[TrainableModel] = []


class Trainables:
    """What can be trained, by name.

    Args:
        settings: the configuration of trainers.
        served: the models that the deployment serves; those in GGUF, or in Hugging Face's format, can be trained.
        folder: where torch weights are kept that were made of them.
    """

    def __init__(
        self, settings: TrainingSettings, served: Sequence[ModelSpec], folder: Path
    ) -> None:
        self._weights = {model.name: model for model in settings.models}
        self._folder = folder
        self._served: dict[str, ModelSpec] = {}
        for spec in served:
            if spec.engine in {"llama_cpp", "vllm"}:
                for name in (spec.name, *spec.aliases):
                    self._served.setdefault(name, spec)

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._weights, *self._served})

    def find(self, name: str) -> BaseModel:
        """Return the weights of a model.

        Raises:
            ModelNotFound: it cannot be trained here; the details list what can.
            InvalidRequest: its files are not there.
        """
        known = self._weights.get(name)
        if known is not None:
            return _in_folder(name, known.weights)
        spec = self._served.get(name)
        if spec is None:
            raise ModelNotFound(
                f"the model {name!r} cannot be trained here; {', '.join(self.names) or 'none'} can",
                details={"model": name, "trainable": self.names},
            )
        if spec.engine == "vllm":
            return _in_folder(spec.name, spec.source)
        gguf = locate(spec.source)
        facts = gguf.stat()
        key = hashlib.sha256(f"{gguf}\n{facts.st_size}\n{facts.st_mtime_ns}".encode()).hexdigest()
        return BaseModel(name=spec.name, weights=str(self._folder / key[:32]), gguf=str(gguf))


def _in_folder(name: str, source: str) -> BaseModel:
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise InvalidRequest(f"the weights of the model {name!r} are not there")
    return BaseModel(name=name, weights=str(folder))


def require_packages(*more: str) -> None:
    """Refuse work that this installation cannot do.

    Raises:
        Unsupported: packages are missing; the message says how to install them.
    """
    missing = [name for name in (*PACKAGES, *more) if find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"it needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'ayllu[train]'"
        )
