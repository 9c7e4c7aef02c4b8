"""What is durable, in memory: for tests, and for programs that embed ayllu without a server. Simple and exact, not fast."""

from __future__ import annotations

import time

from ..schemas import Conflict, NotFound, Overloaded
from .durable import KeyEntry, KeyValue, Objects
from .memory_streams import MemoryStreams
from .subjects import encode_token
from .transport import Transport


class MemoryKeyValue:
    """A `KeyValue` bucket in memory."""

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self._revision = 0
        self._values: dict[str, tuple[KeyEntry, float]] = {}

    async def get(self, key: str) -> KeyEntry | None:
        """Return the value of a key; see `KeyValue.get`."""
        encode_token(key)
        found = self._values.get(key)
        if found is None or (self.ttl and found[1] + self.ttl <= time.monotonic()):
            return None
        return found[0]

    async def put(self, key: str, value: bytes) -> int:
        """Set a key; see `KeyValue.put`."""
        encode_token(key)
        self._revision += 1
        self._values[key] = (KeyEntry(key, value, self._revision), time.monotonic())
        return self._revision

    async def create(self, key: str, value: bytes) -> int:
        """Set a key that has no value; see `KeyValue.create`."""
        return await self.update(key, value, revision=0)

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Set a key that is at a revision; see `KeyValue.update`."""
        found = await self.get(key)
        if (found.revision if found else 0) != revision:
            raise Conflict(f"the key {key!r} is not at revision {revision}")
        return await self.put(key, value)

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Remove a key; see `KeyValue.delete`."""
        found = await self.get(key)
        if revision is not None and (found.revision if found else 0) != revision:
            raise Conflict(f"the key {key!r} is not at revision {revision}")
        self._revision += 1
        self._values.pop(key, None)

    async def keys(self) -> list[str]:
        """Return all keys that have a value; see `KeyValue.keys`."""
        return sorted([key for key in self._values if await self.get(key) is not None])


class MemoryObjects:
    """An `Objects` store in memory."""

    def __init__(self, ttl: float, max_bytes: int) -> None:
        self.ttl = ttl
        self.max_bytes = max_bytes
        self._objects: dict[str, tuple[bytes, float]] = {}

    async def put(self, name: str, data: bytes) -> None:
        """Store an object; see `Objects.put`."""
        encode_token(name)
        self._drop_expired()
        if sum(len(held) for held, _ in self._objects.values()) + len(data) > self.max_bytes:
            raise Overloaded("the object store is full")
        self._objects[name] = (data, time.monotonic())

    async def get(self, name: str) -> bytes:
        """Return an object; see `Objects.get`."""
        encode_token(name)
        self._drop_expired()
        if name not in self._objects:
            raise NotFound("there is no such object, or it has expired")
        return self._objects[name][0]

    async def delete(self, name: str) -> None:
        """Remove an object; see `Objects.delete`."""
        encode_token(name)
        self._objects.pop(name, None)

    async def names(self) -> list[str]:
        """Return the names of all objects; see `Objects.names`."""
        self._drop_expired()
        return sorted(self._objects)

    def _drop_expired(self) -> None:
        if self.ttl:
            oldest = time.monotonic() - self.ttl
            self._objects = {k: v for k, v in self._objects.items() if v[1] > oldest}


class MemoryStorage:
    """A `Storage` in memory, which ends with the process."""

    def __init__(self, transport: Transport | None = None) -> None:
        """Make one; what streams ``republish`` goes to the transport."""
        self._streams = MemoryStreams(transport)
        self._buckets: dict[str, MemoryKeyValue] = {}
        self._stores: dict[str, MemoryObjects] = {}

    @property
    def streams(self) -> MemoryStreams:
        """Streams of entries."""
        return self._streams

    async def key_value(self, bucket: str, *, ttl: float = 0.0) -> KeyValue:
        """Return a bucket; see `Storage.key_value`."""
        held = self._buckets.setdefault(bucket, MemoryKeyValue(ttl))
        held.ttl = ttl
        return held

    async def objects(self, bucket: str, *, ttl: float = 0.0, max_bytes: int = 1 << 30) -> Objects:
        """Return an object store; see `Storage.objects`."""
        held = self._stores.setdefault(bucket, MemoryObjects(ttl, max_bytes))
        held.ttl, held.max_bytes = ttl, max_bytes
        return held
