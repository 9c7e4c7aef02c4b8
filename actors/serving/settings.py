"""The configuration of the model registry, ``[serving]``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ...schemas import Wire


class ServingConfig(Wire, frozen=True):
    """What may be registered, and how it is served.

    Attributes:
        roots: the folders below which checkpoints may lie, besides those of jobs.
        models: how many models may be registered; each takes the memory of an engine.
        versions: how many versions of a model are kept; the oldest go first.
        convert_seconds: how long a conversion may take.
        drain_seconds: how long running calls of a model may go on after another version has taken its place, or its worker was
            told to stop.
        reward_device: what registered reward models run on: ``cpu``, ``cuda``, or ``cuda:0``.
    """

    roots: list[str] = []
    models: Annotated[int, Meta(ge=1, le=10_000)] = 16
    versions: Annotated[int, Meta(ge=1, le=1000)] = 5
    convert_seconds: Annotated[float, Meta(gt=0)] = 900.0
    drain_seconds: Annotated[float, Meta(gt=0)] = 60.0
    reward_device: Annotated[str, Meta(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
