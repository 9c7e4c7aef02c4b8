"""The configuration of datasets, ``[datasets]``: from where content may come, and how much of it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ...schemas import Wire


class DatasetsConfig(Wire, frozen=True):
    """From where the content of datasets may come.

    Attributes:
        roots: folders under which ``file://`` addresses may lie; without any, there are none that may be read.
        max_bytes: the largest content.
        timeout: how long fetching a content may take, in seconds.
        private_hosts: ``HOST:PORT`` of the servers of an intranet that may be fetched from, though their addresses are not
            those of the public internet.
    """

    roots: list[Annotated[str, Meta(min_length=1)]] = []
    max_bytes: Annotated[int, Meta(ge=1)] = 1 << 30
    timeout: Annotated[float, Meta(gt=0)] = 300.0
    private_hosts: list[Annotated[str, Meta(pattern=r"^[^/@\s]+:[0-9]{1,5}$")]] = []
