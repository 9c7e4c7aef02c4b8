"""The Datasets API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .content import URL
from .webmethod import webmethod
from .wire import Reply, Wire

Fingerprint = Annotated[
    str,
    Meta(
        pattern="^sha256:[0-9a-f]{64}$",
        description="`sha256:` and the hexadecimal digest of the content, byte for byte.",
    ),
]


class DatasetColumnType(StrEnum):
    """What a column holds."""

    dialog = "dialog"
    text = "text"
    media = "media"
    number = "number"
    json = "json"


class Dataset(Wire, frozen=True):
    """A table of examples, referred to by its address.

    With the extension ``fingerprint``, which `Datasets.get` tells, it is the table as it was: whoever reads it refuses
    content that has changed since.
    """

    columns: dict[str, DatasetColumnType]
    content_url: URL
    metadata: dict[str, Any] = {}
    fingerprint: Fingerprint | None = None


class CreateDatasetRequest(Wire, frozen=True):
    """Request to create a dataset."""

    uuid: str
    dataset: Dataset


class DatasetInfo(Reply, frozen=True):
    """Extension: a dataset that is kept, and what was found in it when it was created."""

    uuid: str
    dataset: Dataset
    rows: Annotated[int, Meta(description="How many examples it has.")]
    bytes: Annotated[int, Meta(description="The size of the content.")]
    created_at: datetime


class Datasets(Protocol):
    """Keep datasets."""

    @webmethod(route="/datasets/create", operation_id="create_dataset")
    async def create(self, request: CreateDatasetRequest) -> None:
        """Register a dataset; its content is read once, and checked against the columns."""
        ...

    @webmethod(route="/datasets/get", method="GET", operation_id="get_dataset")
    async def get(self, dataset_id: str) -> Dataset:
        """Return a dataset, with the fingerprint of its content."""
        ...

    @webmethod(route="/datasets/delete", method="DELETE", operation_id="delete_dataset")
    async def delete(self, dataset_id: str) -> None:
        """Forget a dataset; its content stays where it is."""
        ...

    @webmethod(route="/datasets/list", method="GET")
    def list(self) -> AsyncIterator[DatasetInfo]:
        """List the datasets, in the order of their ids."""
        ...
