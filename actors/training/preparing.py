"""What a job's child is told: its datasets as files that do not change, its weights, its folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from ...schemas import (
    Conflict,
    Dataset,
    InvalidRequest,
    PostTrainingRLHFRequest,
)
from ..datasets.content import Content, ContentStore
from ..files import name_of
from ..jobs.records import JobRecord, TrainingRequest
from .checkpoints import MANIFEST, read_manifest
from .launching import child_command
from .protocol import BaseModel, DataFile, RunSpec
from .settings import Trainables, TrainingSettings
from .validation import method_of


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where jobs are run, and with what.

    Attributes:
        settings: the configuration of trainers.
        trainables: what can be trained.
        content: fetches datasets.
        folder: where jobs have their folders; on storage that all trainers see.
        command: returns the command that trains in a job's folder.
    """

    settings: TrainingSettings
    trainables: Trainables
    content: ContentStore
    folder: Path
    command: Callable[[RunSpec, Path], list[str]] = child_command

    def job_folder(self, job: str) -> Path:
        """Return the folder of a job; its name is readable, and that of no other job."""
        return self.folder / name_of(job)

    def base_of(self, request: TrainingRequest) -> BaseModel:
        """Return the weights that a request begins with.

        Raises:
            ModelNotFound: the model cannot be trained here.
            InvalidRequest: they are not there, or are none.
            PermissionDenied: they are where nobody may read.
        """
        if not isinstance(request, PostTrainingRLHFRequest):
            return self.trainables.find(request.model)
        folder = self._weights_folder(request.finetuned_model)
        if not (folder / MANIFEST).is_file():
            if not (folder / "config.json").is_file():
                raise InvalidRequest(
                    "finetuned_model: it is neither a checkpoint nor a folder of weights"
                )
            return BaseModel(name=folder.name, weights=str(folder))
        manifest = read_manifest(folder)
        if manifest.reward:
            raise InvalidRequest("finetuned_model: it is a reward model, which says nothing")
        base = self.trainables.find(manifest.base)
        return BaseModel(base.name, base.weights, base.gguf, checkpoint=str(folder))

    def _weights_folder(self, url: str) -> Path:
        if not url.startswith("file://"):
            raise InvalidRequest(
                "finetuned_model: give the file:// address of a checkpoint's folder"
            )
        path = Path(unquote(urlsplit(url).path)).resolve()
        # What jobs made needs no configuration; anything else lies under the roots.
        if not path.is_relative_to(self.folder.resolve()):
            path = self.content.resolve_file(url)
        if not path.is_dir():
            raise InvalidRequest("finetuned_model: there is no such folder")
        return path

    async def prepare(
        self, record: JobRecord, request: TrainingRequest, device: str
    ) -> tuple[RunSpec, JobRecord]:
        """Fetch what a job needs, and return what its child shall do, and the job with the fingerprints of its datasets.

        Raises:
            Conflict: a dataset is not what it was.
            AylluError: it cannot be fetched, or the weights are not there.
        """
        dataset = await self._fetched("dataset", request.dataset, record.dataset)
        validation = await self._fetched(
            "validation_dataset", request.validation_dataset, record.validation
        )
        spec = RunSpec(
            job=record.job,
            attempt=record.attempt,
            base=self.base_of(request),
            dataset=_data_file("dataset", request.dataset, dataset),
            validation=_data_file("validation_dataset", request.validation_dataset, validation),
            method=method_of(request),
            optimizer=request.optimizer_config,
            training=request.training_config,
            logger=request.logger_config,
            processes=request.training_config.num_processes or self.settings.processes,
            device=device,
            threads=self.settings.threads,
            **_algorithm(request),
        )
        return spec, replace(record, dataset=dataset.fingerprint, validation=validation.fingerprint)

    async def _fetched(self, field: str, dataset: Dataset, known: str | None) -> Content:
        content = await self.content.fetch(dataset.content_url)
        for wanted, when in (
            (dataset.fingerprint, "its fingerprint says"),
            (known, "this job began with"),
        ):
            if wanted is not None and content.fingerprint != wanted:
                raise Conflict(f"{field}: the content has changed: it is not what {when}")
        return content


def _data_file(field: str, dataset: Dataset, content: Content) -> DataFile:
    return DataFile(
        path=str(content.path), format=content.format, columns=dataset.columns, name=field
    )


def _algorithm(request: TrainingRequest) -> dict[str, Any]:
    if isinstance(request, PostTrainingRLHFRequest):
        return {"alignment": request.algorithm_config}
    return {"algorithm": request.algorithm, "adapter": request.algorithm_config}
