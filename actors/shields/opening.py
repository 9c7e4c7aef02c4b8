"""The shields of a deployment, by what is supervised on its own."""

from __future__ import annotations

from collections.abc import Mapping

from ...bus.bus import Bus
from ..supervision import Start
from .settings import ShieldsConfig


def shield_starts(bus: Bus, config: ShieldsConfig, default_model: str) -> Mapping[str, Start]:
    """Return what to supervise, by name.

    Args:
        bus: the bus.
        config: how they are set.
        default_model: the model that `llama_guard` asks where nothing else is said.
    """
    return {}
