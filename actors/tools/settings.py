"""What tools a deployment has beside the operations of its actors: ``[tools]`` in its configuration."""

from __future__ import annotations

from ...schemas import Wire


class ToolsConfig(Wire, frozen=True):
    """The tools of a deployment."""


def check_tools(config: ToolsConfig) -> None:
    """Refuse what types cannot tell.

    Raises:
        InvalidRequest: something is wrong; the message names the entry.
    """
