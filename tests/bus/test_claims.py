"""The claim check."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.bus.claims import BUCKET, Claims
from ayllu.bus.memory import MemoryStorage
from ayllu.bus.nats import connect_nats
from ayllu.schemas import BusError, InvalidRequest, NotFound

pytestmark = pytest.mark.asyncio


@pytest.mark.requirement("claims", "nats-11")
async def test_what_exceeds_a_message_goes_through_the_object_store(nats_url: str) -> None:
    async with connect_nats(nats_url) as one, connect_nats(nats_url) as two:
        payload = bytes(range(256)) * (4 * one.max_payload // 256)
        assert len(payload) > one.max_payload
        reference = await Claims(one.storage, limit=1 << 19).store(payload)
        assert len(reference) < 300
        assert await Claims(two.storage, limit=1 << 19).load(reference) == payload


@pytest.mark.requirement("claims")
async def test_references_are_deterministic_json() -> None:
    claims = Claims(MemoryStorage(), limit=10)
    one, two = await claims.store(b"a" * 11), await claims.store(b"a" * 11)
    assert one == two
    assert set(json.loads(one)) == {"claim", "size", "sha256"}


@pytest.mark.requirement("claims")
async def test_a_payload_that_was_exchanged_is_noticed() -> None:
    storage = MemoryStorage()
    claims = Claims(storage, limit=10)
    reference = await claims.store(b"true")
    name = json.loads(reference)["claim"]
    await (await storage.objects(BUCKET)).put(name, b"fake")
    with pytest.raises(BusError) as caught:
        await claims.load(reference)
    assert not caught.value.retryable
    await (await storage.objects(BUCKET)).delete(name)
    with pytest.raises(NotFound):
        await claims.load(reference)


@pytest.mark.requirement("claims")
@pytest.mark.parametrize(
    "reference",
    [b"", b"{}", b"[1]", b'{"claim":"a","size":1,"sha256":"b"}', b'{"claim":"a","size":1,"x":1}'],
)
async def test_what_is_no_reference_is_refused(reference: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await Claims(MemoryStorage(), limit=10).load(reference)


@pytest.mark.requirement("claims")
@given(st.binary(max_size=1000))
async def test_any_payload_comes_back(payload: bytes) -> None:
    claims = Claims(MemoryStorage(), limit=10)
    assert await claims.load(await claims.store(payload)) == payload
