"""Models that are kept up: who supervises their actors says so, and callers learn that one that is away comes back."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager

from .bus import Bus
from .transport import ServiceInfo

KEEPER_SERVICE = "models-kept"
_VERSION = "0.1.0"


def keeping(
    bus: Bus, names: Collection[str], kind: str = "language"
) -> AbstractAsyncContextManager[ServiceInfo]:
    """Let it be known, inside of the block, that models of a kind are started again whenever they end."""
    metadata = {kind: json.dumps(sorted(names))}
    service = ServiceInfo(
        KEEPER_SERVICE, _VERSION, "Starts models again when they end.", metadata=metadata
    )
    return bus.transport.announce(service, lambda _: None)


async def is_kept(bus: Bus, name: str, kind: str) -> bool:
    """Tell whether a model of a kind comes back if it is away now."""
    for service in await bus.transport.discover(KEEPER_SERVICE):
        # Anybody on the bus may announce a service of this name.
        try:
            names = json.loads(service.metadata.get(kind, "[]"))
        except ValueError:
            continue
        if isinstance(names, list) and name in names:
            return True
    return False
