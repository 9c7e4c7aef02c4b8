"""What one worker serves of the registered models: it follows their records, and loads a new version beside the old one."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from ...bus.bus import Bus
from ...bus.service import Drain
from ...bus.transport import Message
from ...schemas import AylluError, ModelNotFound, NotFound
from ..supervision import Backoff
from .records import CHANGED, ModelRecord, Records, Version
from .served import Loading, ServedVersion
from .sources import Source

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0
"""How often records are looked at although nobody told of a change: a signal may be lost."""
RETRIES = Backoff(first=POLL_SECONDS, most=600.0)
"""How long a version that cannot be loaded is left alone."""


class Kind(Protocol):
    """How registered models of a kind are served in a worker: language models, or reward models."""

    def check_name(self, name: str) -> None:
        """Refuse the name of a configured model.

        Raises:
            Conflict: it is one.
        """
        ...

    def takes(self, version: Version) -> bool:
        """Tell whether a version is of this kind."""
        ...

    async def version_of(self, source: Source) -> Version:
        """Return a checkpoint as a version without a number, once what it is served from is made.

        Raises:
            AylluError: it cannot be served.
        """
        ...

    async def loading(self, name: str, version: Version) -> Loading:
        """Return what loads a version, once its files are there and are what was registered.

        Raises:
            ModelNotFound: what it stands on is another worker's.
            AylluError: it cannot be loaded.
        """
        ...

    def remove(self, keys: Collection[str]) -> None:
        """Remove what was made for versions that are no more."""
        ...

    def sweep(self, keys: Collection[str]) -> None:
        """Remove what nobody refers to any more; these are referred to."""
        ...


@dataclass(slots=True)
class _Failure:
    version: str
    times: int
    until: float


class ModelHost:
    """Serves the registered models of one kind, if what they stand on is here.

    Args:
        bus: the bus.
        records: what is registered.
        kind: how its models are served.
        drain_seconds: how long running calls of a version may go on after another one has taken its place.
        drain: how long they may go on when the worker ends.
    """

    def __init__(
        self,
        bus: Bus,
        records: Records,
        kind: Kind,
        drain_seconds: float,
        drain: Drain | None = None,
    ) -> None:
        self.kind = kind
        self._bus = bus
        self._records = records
        self._drain_seconds = drain_seconds
        self._drain = drain
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
        loading = await self.kind.loading(name, version)
        made = ServedVersion(self._bus, name, version, loading, self._drain)
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
        assert self._tasks is not None
        await new.announce()
        self._tasks.start_soon(new.keep)
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
        await anyio.to_thread.run_sync(self.kind.sweep, keys)

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
            if not self.kind.takes(version):
                # Another worker serves it; what was served here had the name before.
                await self._retire(name)
                return
            served = self._served.get(name)
            if served is not None and served.version.id == version.id:
                return
            if self._waits(name, version):
                return
            try:
                self.kind.check_name(name)
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
