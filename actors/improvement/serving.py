"""How a loop's results are served, and served no more: each step may be taken twice, by whoever takes the loop up."""

from __future__ import annotations

import logging

import anyio

from ...bus.bus import Bus
from ...bus.client import client, served_models
from ...schemas import ModelRegistry, ModelVersion, RegisteredModel, RegisterModelRequest

log = logging.getLogger(__name__)

SWITCH_SECONDS = 60.0
"""How long other inference workers may take to go over to a version."""
LOOK_SECONDS = 0.2


class Serving:
    """The registered model of a loop.

    Args:
        bus: the bus.
        name: what the model is registered as.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._registry = client(ModelRegistry, bus)

    async def current(self) -> ModelVersion | None:
        """Return the version that is served now."""
        model = await self._model()
        if model is None:
            return None
        return next(one for one in model.versions if one.version == model.current)

    async def serve_job(self, job: str) -> int:
        """Serve what a job trained: as the version that it is already, or as a new one. Returns the version."""
        return await self._serve(RegisterModelRequest(name=self._name, job_uuid=job))

    async def withdraw_job(self, job: str, before: str | ModelVersion | None) -> bool:
        """Serve what was served before a job's result, if that is what is served now.

        Args:
            job: whose result shall be served no more.
            before: the job whose result is served again, or a version that was there before all of them, or nothing.

        Returns:
            whether there was anything to do.
        """
        served = await self.current()
        if served is None or served.job_uuid != job:
            return False  # It was done already; or somebody else has decided what is served, which counts.
        if isinstance(before, str):
            await self.serve_job(before)
        elif before is not None:
            url, base = before.url, before.base
            await self._serve(RegisterModelRequest(name=self._name, url=url, base=base))
        else:
            await self._registry.unregister(self._name)
        return True

    async def _model(self) -> RegisteredModel | None:
        found = [model async for model in self._registry.registered()]
        return next((model for model in found if model.name == self._name), None)

    async def _serve(self, request: RegisterModelRequest) -> int:
        model = await self._model()
        version = _version_of(model, request)
        if version is not None:
            model = await self._registry.rollback(self._name, version)
        else:
            # The registry keeps the latest versions only: what it has forgotten is registered anew.
            model = await self._registry.register(request)
        await self._switched(model.current)
        return model.current

    async def _switched(self, version: int) -> None:
        """Wait until no inference worker answers with another version; one that is stuck is not waited for longer."""
        with anyio.move_on_after(SWITCH_SECONDS):
            while True:
                models = [one for one in await served_models(self._bus) if one.name == self._name]
                if all(one.version in (version, None) for one in models):
                    return
                await anyio.sleep(LOOK_SECONDS)
        log.warning("some worker does not serve version %s of %r yet", version, self._name)


def _version_of(model: RegisteredModel | None, request: RegisterModelRequest) -> int | None:
    """Return the latest version that is what a request asks to serve."""
    for one in reversed(model.versions if model else []):
        same_job = request.job_uuid is not None and one.job_uuid == request.job_uuid
        if same_job or (request.url is not None and one.url == request.url):
            return one.version
    return None
