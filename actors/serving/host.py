"""What one worker serves of the registered models: it follows their records, and loads a new version beside the old one."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from ...bus.bus import Bus
from ...bus.transport import Message
from ...schemas import AylluError, InvalidRequest, ModelNotFound, NotFound
from ..registry import build_trained
from ..supervision import Backoff
from .bases import Bases
from .cache import ModelCache
from .records import CHANGED, ModelRecord, Records, Version
from .served import ServedVersion
from .settings import ServingConfig
from .sources import Sources, look_at

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0
"""How often records are looked at although nobody told of a change: a signal may be lost."""
RETRIES = Backoff(first=POLL_SECONDS, most=600.0)
"""How long a version that cannot be loaded is left alone."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """What host and registry of a worker share.

    Attributes:
        bus: the bus.
        records: what is registered.
        bases: the configured models.
        cache: where files are made of checkpoints.
        sources: finds checkpoints.
        config: the limits.
    """

    bus: Bus
    records: Records
    bases: Bases
    cache: ModelCache
    sources: Sources
    config: ServingConfig


@dataclass(slots=True)
class _Failure:
    version: str
    times: int
    until: float


class ModelHost:
    """Serves the registered models whose bases are configured here.

    Args:
        shelf: where models come from.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._bus = shelf.bus
        self._records = shelf.records
        self._bases = shelf.bases
        self._cache = shelf.cache
        self._sources = shelf.sources
        self._drain_seconds = shelf.config.drain_seconds
        self._served: dict[str, ServedVersion] = {}
        self._failed: dict[str, _Failure] = {}
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None

    def lock(self, name: str) -> anyio.Lock:
        """Return what is held while a model is changed here."""
        return self._locks[name]

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve what is registered until cancelled; started means that all that can be loaded is."""
        async with (
            self._bus.transport.subscribe(CHANGED, self._on_changed),
            anyio.create_task_group() as tasks,
        ):
            self._tasks = tasks
            await self._follow_all()
            task_status.started()
            while True:
                with anyio.move_on_after(POLL_SECONDS):
                    await self._changed.wait()
                self._changed = anyio.Event()
                await self._follow_all()

    def _on_changed(self, _: Message) -> None:
        self._changed.set()

    async def load(self, name: str, version: Version) -> ServedVersion:
        """Load a version beside what is served; it is neither announced nor does it end anything yet.

        Raises:
            AylluError: it cannot be loaded.
        """
        spec = self._bases.find(version.base)
        path, digest = await self._bases.file(spec)
        adapter = version.served == "adapter"
        if adapter and digest != version.base_digest:
            raise InvalidRequest(f"the base {version.base!r} has another file by now: train anew")
        file = self._cache.file(version.key)
        if not file.is_file():
            folder = self._sources.folder(version.url)
            await anyio.to_thread.run_sync(look_at, folder, version.base)
            key = await self._cache.key(folder, digest, version.conversion)
            if key != version.key:
                raise InvalidRequest(
                    f"{folder.name}, or its base, is not any more what was registered"
                )
            await self._cache.make(key, folder, path, version.conversion)
        made = ServedVersion(
            self._bus, name, version, partial(build_trained, spec, file, adapter=adapter)
        )
        assert self._tasks is not None
        await self._tasks.start(made.run)
        return made

    async def switch(self, loaded: ServedVersion) -> None:
        """Announce a version, then retire the one that it replaces: a request finds one of them at any time.

        Cancelled, it comes to its end all the same.
        """
        assert self._tasks is not None
        old = self._served.get(loaded.name)
        self._served[loaded.name] = loaded
        self._failed.pop(loaded.name, None)
        self._tasks.start_soon(self._replace, old, loaded)
        await loaded.announce()

    async def _replace(self, old: ServedVersion | None, new: ServedVersion) -> None:
        await new.announce()
        log.info("model %s: version %d of %s", new.name, new.version.version, new.version.base)
        if old is not None:
            await old.retire(self._drain_seconds)

    async def drop(self, name: str) -> None:
        """Serve a model no more; running calls go on to their end. Returns once no new ones come."""
        async with self.lock(name):
            await self._retire(name)

    async def _retire(self, name: str) -> None:
        served = self._served.pop(name, None)
        if served is not None:
            log.info("model %s is served no more", name)
            await served.retire(self._drain_seconds)

    async def _follow_all(self) -> None:
        """Bring what is served here to what the records say."""
        try:
            records = await self._records.all()
        except AylluError as error:
            log.warning("the registered models cannot be read: %s", error)
            return
        for record in records:
            await self._follow(record)
        for name in self._served.keys() - {record.name for record in records}:
            await self._drop_if_gone(name)
        keys = {version.key for record in records for version in record.versions}
        await anyio.to_thread.run_sync(self._cache.sweep, keys)

    async def _follow(self, record: ModelRecord) -> None:
        name = record.name
        async with self.lock(name):
            try:
                # Read again: it may have been changed here while the lock was waited for.
                version = (await self._records.get(name)).served
            except NotFound:
                return
            except AylluError as error:
                log.warning("the model %s cannot be read: %s", name, error)
                return
            served = self._served.get(name)
            if served is not None and served.version.id == version.id:
                return
            if self._waits(name, version):
                return
            try:
                self._bases.check_name(name)
                loaded = await self.load(name, version)
            except ModelNotFound as error:
                # Its base is another worker's, which serves it; what was served here is an older version.
                self._note_failure(name, version, error, level=logging.INFO)
                await self._retire(name)
            except AylluError as error:
                self._note_failure(name, version, error)
            else:
                await self.switch(loaded)

    async def _drop_if_gone(self, name: str) -> None:
        async with self.lock(name):
            try:
                await self._records.get(name)
            except NotFound:
                await self._retire(name)
            except AylluError as error:
                log.warning("the model %s cannot be read: %s", name, error)

    def _waits(self, name: str, version: Version) -> bool:
        known = self._failed.get(name)
        if known is None or known.version != version.id:
            return False
        return anyio.current_time() < known.until

    def _note_failure(
        self, name: str, version: Version, error: AylluError, level: int = logging.ERROR
    ) -> None:
        known = self._failed.get(name)
        times = known.times + 1 if known is not None and known.version == version.id else 1
        wait = RETRIES.wait(times)
        self._failed[name] = _Failure(version.id, times, anyio.current_time() + wait)
        why = error.message
        log.log(level, "model %s: version %d cannot be served: %s", name, version.version, why)
