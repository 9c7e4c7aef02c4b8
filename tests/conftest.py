from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.nats import shared_server

# No deadline for an example: on a busy machine it would say nothing about the code.
settings.register_profile("ayllu", deadline=None)
settings.load_profile("ayllu")

# A shell that runs the suite in the background lets it ignore SIGINT, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """The address of a real nats-server that all tests share: use subjects, streams and buckets of your own."""
    with shared_server() as url:
        yield url
