"""What attachments may cost, and from where they may come: ``[attachments]`` in the configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ...schemas import Wire


class AttachmentsConfig(Wire, frozen=True):
    """What the attachments of one request may cost, all its messages together, and from where they may come.

    Attributes:
        max_count: how many addresses are fetched for it.
        max_bytes: the most of one of them.
        max_total_bytes: the most of all of them.
        seconds: until all were fetched and read.
        private_hosts: ``HOST:PORT`` of the servers of an intranet that may be fetched from, though their addresses are not
            those of the public internet.
        roots: folders under which ``file://`` addresses may lie; without any, there are none that may be read.
    """

    max_count: Annotated[int, Meta(ge=0, le=1000)] = 16
    max_bytes: Annotated[int, Meta(ge=1, le=1 << 30)] = 8 << 20
    max_total_bytes: Annotated[int, Meta(ge=1, le=1 << 30)] = 32 << 20
    seconds: Annotated[float, Meta(gt=0)] = 30.0
    private_hosts: list[Annotated[str, Meta(pattern=r"^[^/@\s]+:[0-9]{1,5}$")]] = []
    roots: list[Annotated[str, Meta(min_length=1)]] = []
