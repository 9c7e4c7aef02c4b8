"""How the shields of a deployment are set: ``[shields]`` in its configuration."""

from __future__ import annotations

from ...schemas import Wire


class ShieldsConfig(Wire, frozen=True):
    """The shields of a deployment."""


def check_shields(config: ShieldsConfig) -> None:
    """Refuse what types cannot tell.

    Raises:
        InvalidRequest: something is wrong; the message names the entry.
    """
