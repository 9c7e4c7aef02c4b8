"""The models actor: tells which models live actors serve."""

from __future__ import annotations

from collections.abc import AsyncIterator

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
        found: dict[str, Model] = {}
        for model in await served_models(self._bus):
            known = found.get(model.name)
            found[model.name] = Model(
                name=model.name,
                engine=model.engine,
                context=model.context,
                aliases=sorted({*model.aliases, *(known.aliases if known else [])}),
                capabilities=model.capabilities,
                kind=model.kind,
                actors=known.actors + 1 if known else 1,
            )
        for name in sorted(found):
            yield found[name]
