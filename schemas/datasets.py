"""The Datasets API."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol

from .content import URL
from .webmethod import webmethod
from .wire import Wire


class DatasetColumnType(StrEnum):
    """What a column holds."""

    dialog = "dialog"
    text = "text"
    media = "media"
    number = "number"
    json = "json"


class Dataset(Wire, frozen=True):
    """A table of examples, referred to by its address."""

    columns: dict[str, DatasetColumnType]
    content_url: URL
    metadata: dict[str, Any] = {}


class CreateDatasetRequest(Wire, frozen=True):
    """Request to create a dataset."""

    uuid: str
    dataset: Dataset


class Datasets(Protocol):
    """Keep datasets."""

    @webmethod(route="/datasets/create", operation_id="create_dataset")
    async def create(self, request: CreateDatasetRequest) -> None:
        """Register a dataset."""
        ...

    @webmethod(route="/datasets/get", method="GET", operation_id="get_dataset")
    async def get(self, dataset_id: str) -> Dataset:
        """Return a dataset."""
        ...

    @webmethod(route="/datasets/delete", method="DELETE", operation_id="delete_dataset")
    async def delete(self, dataset_id: str) -> None:
        """Remove a dataset."""
        ...
