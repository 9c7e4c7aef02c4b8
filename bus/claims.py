"""The claim check: what is too large for a message waits in the object store, and a small reference travels.

An object is named by its content, so that storing it again is harmless and a reference cannot be turned into another
object: what is loaded is checked against it.
"""

from __future__ import annotations

import hashlib

import msgspec

from ..schemas import BusError, InvalidRequest, decode, encode
from .durable import Objects, Storage

BUCKET = "claims"
TTL_SECONDS = 3600.0
MAX_BYTES = 4 << 30


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What travels: the object's name, its size in bytes, and the hexadecimal digest of its content."""

    claim: str
    size: int
    sha256: str


class Claims:
    """Stores and loads large payloads; by default they are kept for an hour, as those of calls are.

    Args:
        storage: where they are kept.
        limit: the size in bytes above which a payload should be stored.
        bucket: the object store.
        ttl: for how long they are kept, in seconds.
    """

    def __init__(
        self, storage: Storage, limit: int, *, bucket: str = BUCKET, ttl: float = TTL_SECONDS
    ) -> None:
        self.limit = limit
        self._storage = storage
        self._name = bucket
        self._ttl = ttl
        self._objects: Objects | None = None

    async def store(self, payload: bytes) -> bytes:
        """Store a payload and return the reference to it, a few hundred bytes of JSON.

        Raises:
            Overloaded: the store is full.
            BusError: no answer.
        """
        digest = hashlib.sha256(payload).hexdigest()
        bucket = await self._bucket()
        await bucket.put(digest, payload)
        return encode(Reference(digest, len(payload), digest))

    async def load(self, reference: bytes) -> bytes:
        """Return the payload that a reference stands for.

        Raises:
            InvalidRequest: it is no reference.
            NotFound: the payload has expired.
            BusError: no answer, or the payload is not what the reference says.
        """
        wanted = decode(reference, Reference)
        if wanted.claim != wanted.sha256:
            raise InvalidRequest("a claim is named by its digest")
        bucket = await self._bucket()
        payload = await bucket.get(wanted.claim)
        if len(payload) != wanted.size or hashlib.sha256(payload).hexdigest() != wanted.sha256:
            raise BusError("a claimed payload is not what its reference says", retryable=False)
        return payload

    async def _bucket(self) -> Objects:
        if self._objects is None:
            self._objects = await self._storage.objects(
                self._name, ttl=self._ttl, max_bytes=MAX_BYTES
            )
        return self._objects
