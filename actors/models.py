"""The models actor: tells which models live actors serve."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec.structs import replace

from ..bus.bus import Bus
from ..bus.client import served_models
from ..schemas import Model, Models


class ModelsActor(Models):
    """Lists what the inference actors on the bus serve now."""

    service_name = "models"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def models(self) -> AsyncIterator[Model]:
        """List the models; actors that serve the same one are counted together."""
        found: dict[tuple[str, str], Model] = {}
        for model in await served_models(self._bus):
            key = model.name, model.kind
            known = found.get(key)
            if known is None:
                found[key] = replace(model, actors=1, aliases=sorted(model.aliases))
                continue
            # While a registered model is switched, two versions are there; what is told is the newer one.
            newer = max(known, model, key=lambda one: one.version or 0)
            aliases = sorted({*model.aliases, *known.aliases})
            found[key] = replace(newer, actors=known.actors + 1, aliases=aliases)
        for place in sorted(found):
            yield found[place]
