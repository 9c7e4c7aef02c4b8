"""Keys and values, and objects, in the formats of NATS (so that its ordinary tools read them).

nats-py writes them too, but reads them through ordered consumers, which lose messages when slow and wait for ever for
what has expired, and it takes a key that has expired for one that has an empty value.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from contextlib import aclosing

import nats.js.errors
from nats.js.api import DiscardPolicy, ObjectInfo, RawStreamMsg, StorageType, StreamConfig
from nats.js.object_store import ObjectStore

from ..schemas import BusError, Conflict, NotFound
from .consumers import Reader
from .durable import KeyEntry
from .jsapi import NO_MESSAGE, JetStreamApi, translated
from .subjects import decode_token, encode_token

log = logging.getLogger(__name__)

MARKER_SECONDS = 3600.0
"""How long the marker of a removed key stays, for those who watch."""
EXPECTED_LAST_ON_SUBJECT = "Nats-Expected-Last-Subject-Sequence"
OPERATION = "KV-Operation"
MARKER = "Nats-Marker-Reason"
READ_ATTEMPTS = 3


def key_value_config(bucket: str, ttl: float) -> StreamConfig:
    """Return the stream of a bucket of keys and values."""
    return StreamConfig(
        name=f"KV_{bucket}",
        subjects=[f"$KV.{bucket}.>"],
        storage=StorageType.FILE,
        max_msgs_per_subject=1,
        max_age=ttl,
        duplicate_window=min(120.0, ttl) if ttl else 120.0,
        discard=DiscardPolicy.NEW,
        deny_delete=True,
        allow_rollup_hdrs=True,
        allow_direct=True,
        allow_msg_ttl=True,
        # Without it those who watch the bucket would not learn that a value has expired.
        subject_delete_marker_ttl=max(1.0, ttl) if ttl else None,
    )


def objects_config(bucket: str, ttl: float, max_bytes: int) -> StreamConfig:
    """Return the stream of an object store."""
    return StreamConfig(
        name=f"OBJ_{bucket}",
        subjects=[f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        storage=StorageType.FILE,
        max_age=ttl,
        duplicate_window=min(120.0, ttl) if ttl else 120.0,
        max_bytes=max_bytes,
        discard=DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
        allow_direct=True,
    )


class JetStreamKeyValue:
    """A `KeyValue` bucket."""

    def __init__(self, api: JetStreamApi, bucket: str) -> None:
        self._api = api
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."

    async def get(self, key: str) -> KeyEntry | None:
        """Return the value of a key; see `KeyValue.get`."""
        raw = await self._last(key)
        if raw is None or _is_marker(raw.headers):
            return None
        return KeyEntry(key, raw.data or b"", raw.seq or 0)

    async def put(self, key: str, value: bytes) -> int:
        """Set a key; see `KeyValue.put`."""
        return await self._store(key, value, {})

    async def create(self, key: str, value: bytes) -> int:
        """Set a key that has no value; see `KeyValue.create`."""
        try:
            return await self.update(key, value, revision=0)
        except Conflict:
            raw = await self._last(key)
            if raw is not None and not _is_marker(raw.headers):
                raise
        # It was removed, or has expired, and the marker of that has a revision of its own (or is gone by now).
        return await self.update(key, value, revision=0 if raw is None else raw.seq or 0)

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Set a key that is at a revision; see `KeyValue.update`."""
        return await self._store(key, value, {EXPECTED_LAST_ON_SUBJECT: str(revision)})

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Remove a key; see `KeyValue.delete`."""
        headers = {OPERATION: "PURGE", "Nats-Rollup": "sub", "Nats-TTL": f"{MARKER_SECONDS:.0f}s"}
        if revision is not None:
            headers[EXPECTED_LAST_ON_SUBJECT] = str(revision)
        await self._store(key, b"", headers)

    async def keys(self) -> list[str]:
        """Return all keys that have a value; see `KeyValue.keys`."""
        reader = Reader(self._api, self._stream, ">", 0, values=False)
        await reader.open()
        found = []
        try:
            with translated(f"look at the stream {self._stream}"):
                end = (await self._api.js.stream_info(self._stream)).state.last_seq
            async with aclosing(reader.standing(end)) as messages:
                async for msg in messages:
                    if _is_marker(msg.headers):
                        continue
                    try:
                        found.append(decode_token(msg.subject.removeprefix(self._prefix)))
                    except ValueError:
                        log.warning("%s has a key that is not ours: %s", self._stream, msg.subject)
        finally:
            await reader.close()
        return sorted(found)

    async def _store(self, key: str, value: bytes, headers: dict[str, str]) -> int:
        stored = await self._api.publish(self._prefix + encode_token(key), value, headers)
        return int(stored.seq)

    async def _last(self, key: str) -> RawStreamMsg | None:
        with translated(f"read the stream {self._stream}"):
            try:
                # Not the direct way, which may answer from a replica that is behind.
                return await self._api.js.get_last_msg(
                    self._stream, self._prefix + encode_token(key)
                )
            except nats.js.errors.NotFoundError as error:
                if error.err_code == NO_MESSAGE:
                    return None
                raise


def _is_marker(headers: dict[str, str] | None) -> bool:
    if not headers:
        return False
    return headers.get(OPERATION) in ("DEL", "PURGE") or MARKER in headers


class JetStreamObjects:
    """An `Objects` store."""

    def __init__(self, api: JetStreamApi, bucket: str) -> None:
        self._api = api
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"
        self._store = ObjectStore(bucket, self._stream, api.js)

    async def put(self, name: str, data: bytes) -> None:
        """Store an object; see `Objects.put`.

        Raises:
            Overloaded: the store is full.
        """
        with translated(f"store an object in {self._bucket}"):
            await self._store.put(encode_token(name), data)

    async def get(self, name: str) -> bytes:
        """Return an object; see `Objects.get`.

        Raises:
            BusError: its data is not what was stored.
        """
        data, size = b"", 0
        for _ in range(READ_ATTEMPTS):
            info = await self._info(name)
            size = info.size or 0
            if not size:
                return b""
            data = await self._chunks(f"$O.{self._bucket}.C.{info.nuid}")
            if _digest(data) == info.digest:
                return data
            # It was replaced while it was read, or is just expiring: its description tells.
        if len(data) < size:
            raise NotFound(f"the object has expired in {self._bucket}")
        raise BusError(f"an object of {self._bucket} is damaged", retryable=False)

    async def delete(self, name: str) -> None:
        """Remove an object; see `Objects.delete`."""
        try:
            info = await self._info(name)
        except NotFound:
            return
        with translated(f"remove an object of {self._bucket}"):
            # The marker that nats-py would leave instead of its description stays for ever.
            for subject in (self._description(name), f"$O.{self._bucket}.C.{info.nuid}"):
                await self._api.js.purge_stream(self._stream, subject=subject)

    async def names(self) -> list[str]:
        """Return the names of all objects; see `Objects.names`."""
        prefix = self._description("").rpartition(".")[0] + "."
        with translated(f"look at the stream {self._stream}"):
            info = await self._api.js.stream_info(self._stream, subjects_filter=f"{prefix}>")
        tokens = [subject.removeprefix(prefix) for subject in info.state.subjects or ()]
        return sorted(decode_token(base64.urlsafe_b64decode(one).decode()) for one in tokens)

    def _description(self, name: str) -> str:
        token = base64.urlsafe_b64encode(encode_token(name).encode()).decode()
        return f"$O.{self._bucket}.M.{token}"

    async def _info(self, name: str) -> ObjectInfo:
        with translated(f"read an object of {self._bucket}"):
            return await self._store.get_info(encode_token(name))

    async def _chunks(self, subject: str) -> bytes:
        reader = Reader(self._api, self._stream, subject, 0)
        await reader.open()
        try:
            with translated(f"look at the stream {self._stream}"):
                end = (await self._api.js.stream_info(self._stream)).state.last_seq
            async with aclosing(reader.standing(end)) as messages:
                return b"".join([msg.data async for msg in messages])
        finally:
            await reader.close()


def _digest(data: bytes) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
