from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.nats import shared_server


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """The address of a real nats-server that all tests share: use subjects, streams and buckets of your own."""
    with shared_server() as url:
        yield url
