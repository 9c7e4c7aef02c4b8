"""The rules that were learned about NATS, one test each, in their order (FACTS.md, "NATS")."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import anyio
import pytest
from nats.errors import SlowConsumerError
from support.nats import kill, page

from ayllu.bus.durable import Delivery, NewEntry, Streams, StreamSpec
from ayllu.bus.nats import connect_nats
from ayllu.bus.server import embedded_server
from ayllu.bus.transport import Message, ServiceInfo
from ayllu.schemas import BusError, Conflict, Overloaded, TooLarge

pytestmark = pytest.mark.asyncio


def spec(name: str, **options: object) -> StreamSpec:
    kind: dict[str, object] = {"storage": "memory", "max_bytes": 1 << 26}
    return StreamSpec(name, (f"rule.{name}.>",), **{**kind, **options})  # type: ignore[arg-type]


@pytest.mark.requirement("nats-01")
async def test_01_a_slow_reader_loses_nothing(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec("R1"))
        found: list[int] = []
        async with streams.read("R1") as entries, anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(_append, streams, "rule.R1.a", bytes(100_000), f"{number}")
            with anyio.fail_after(30):
                found.append((await anext(entries)).sequence)
                while (await streams.state("R1")).last < 200:  # the reader does not read
                    await anyio.sleep(0.02)
                found += [(await anext(entries)).sequence for _ in range(199)]
        assert found == list(range(1, 201))
        for consumer in await transport.storage._api.js.consumers_info("R1"):
            assert consumer.config.deliver_subject is None  # pull, never push


async def _append(streams: Streams, subject: str, payload: bytes, msg_id: str) -> None:
    await streams.append(subject, payload, msg_id=msg_id)


@pytest.mark.requirement("nats-02")
async def test_02_the_flag_that_breaks_the_client_is_off(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server:
        assert (await page(server, "varz"))["feature_flags"]["js_ack_fc_v2"] is False
        assert "js_ack_fc_v2 (disabled)" in (tmp_path / "n" / "server.log").read_text()


@pytest.mark.slow
@pytest.mark.requirement("nats-03")
async def test_03_an_append_that_timed_out_and_landed_is_stored_once(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        streams = transport.storage.streams
        await streams.ensure(StreamSpec("R3", ("rule.R3.>",)))
        await kill(server)
        with pytest.raises(BusError):
            await streams.append("rule.R3.a", b"", msg_id="one", expires=60)
        async with embedded_server(tmp_path / "n", port=server.port):
            with anyio.fail_after(10):
                while not (await streams.state("R3")).count:
                    await anyio.sleep(0.02)  # it waited in the send buffer, and lands late
            assert (await streams.append("rule.R3.a", b"", msg_id="one", expires=60)).duplicate


@pytest.mark.requirement("nats-04")
async def test_04_a_stale_writer_is_fenced_out(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec("R4"))
        await streams.append("rule.R4.a", b"", msg_id="1", expected_last=0)
        with pytest.raises(Conflict) as caught:
            await streams.append("rule.R4.a", b"", msg_id="2", expected_last=0)
        assert caught.value.details["jetstream_error"] == 10071


@pytest.mark.requirement("nats-05")
async def test_05_reconnecting_never_ends_and_the_send_buffer_is_bounded(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        options = transport._client.options
        assert (options["max_reconnect_attempts"], options["ping_interval"]) == (-1, 5)
        await kill(server)
        with anyio.fail_after(5):
            while transport.connected:
                await anyio.sleep(0.01)  # the transport has no event for it
        with pytest.raises(BusError) as caught:
            for _ in range(5):
                await transport.publish("rule.5", bytes(1 << 19))
        assert caught.value.retryable


@pytest.mark.requirement("nats-05", "bus-handlers-never-break-it")
async def test_05_no_callback_raises(nats_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connect_nats(nats_url) as transport:
        client = transport._client
        subscription = await client.subscribe("rule.slow")
        slow = SlowConsumerError("rule.slow", "", 1, subscription)
        for error in (slow, OSError(), ValueError(), RuntimeError("\n")):
            await client._error_cb(error)
        assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
        assert "rule.slow" in caplog.records[0].message


@pytest.mark.requirement("nats-06")
async def test_06_a_fetch_notices_an_outage_within_its_wait(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec("R6", work_queue=True))
        queue = await streams.work("R6", "w")
        started = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill, server)
            with pytest.raises(BusError):
                await queue.fetch(1, wait=60)
        assert time.monotonic() - started < 8


@pytest.mark.requirement("nats-07")
async def test_07_what_a_cancelled_fetch_held_is_delivered_again(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec("R7", work_queue=True))
        queue = await streams.work("R7", "w", ack_wait=1.0)
        for round_ in range(30):
            await streams.append("rule.R7.a", b"%d" % round_, msg_id=f"{round_}")
            found: list[Delivery] = []
            with anyio.move_on_after(0.0004 * round_):
                found = await queue.fetch(2, wait=1)
            with anyio.fail_after(5):
                while not found:
                    found = await queue.fetch(2, wait=2)
            assert [one.entry.payload for one in found] == [b"%d" % round_]
            await found[0].ack()


@pytest.mark.requirement("nats-08")
async def test_08_the_consumer_limits_neither_deliveries_nor_workers(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec("R8", work_queue=True))
        queue = await streams.work("R8", "w")
        info = await transport.storage._api.js.consumer_info("R8", "w")
        assert info.config.max_deliver == -1
        assert (info.config.max_ack_pending or 0) > 10_000
        for number in range(20):
            await streams.append("rule.R8.a", b"", msg_id=f"{number}")
        one, two = await queue.fetch(10), await queue.fetch(10)
        assert (len(one), len(two)) == (10, 10)


@pytest.mark.requirement("nats-08b")
async def test_08b_a_retried_fenced_append_is_told_apart_from_a_zombie(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec("R8B"))
        first = await streams.append("rule.R8B.a", b"1", msg_id="mine", expected_last=0)
        again = await streams.append("rule.R8B.a", b"1", msg_id="mine", expected_last=0)
        assert (again.sequence, again.duplicate) == (first.sequence, True)
        with pytest.raises(Conflict):
            await streams.append("rule.R8B.a", b"1", msg_id="zombie", expected_last=0)
        with pytest.raises(Conflict) as caught:
            await streams.ensure(StreamSpec("R8X", ("rule.R8B.a",), "memory"))
        assert caught.value.details["jetstream_error"] == 10065


@pytest.mark.requirement("nats-09")
async def test_09_file_streams_are_synced_and_deltas_stay_in_memory(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        await transport.storage.streams.ensure(spec("R9"))
        told = await page(server, "jsz")
        assert told["config"]["sync_always"] is True
        assert told["reserved_memory"] == 1 << 26
        assert told["reserved_storage"] == 0


@pytest.mark.requirement("nats-10")
async def test_10_the_expiry_of_a_key_is_seen_by_those_who_watch(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        bucket = await transport.storage.key_value("R10", ttl=1.0)
        async with transport.storage.streams.read("KV_R10") as entries:
            await bucket.create("k", b"v")
            with anyio.fail_after(8):
                one, marker = await anext(entries), await anext(entries)
        assert (one.payload, marker.payload, marker.subject) == (b"v", b"", one.subject)
        assert await bucket.get("k") is None


@pytest.mark.requirement("nats-10", "bus-embedded-server")
async def test_10_the_disk_is_bounded_and_watched(tmp_path: Path) -> None:
    async with (
        embedded_server(tmp_path / "n", max_file_store=1 << 20) as server,
        connect_nats(server.url) as transport,
    ):
        with pytest.raises(Overloaded):
            await transport.storage.streams.ensure(StreamSpec("R10", ("r.>",), max_bytes=1 << 21))
        assert await server.healthy()


@pytest.mark.requirement("nats-11", "bus-limits")
async def test_11_no_headers_are_sent_unless_wanted(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        done = anyio.Event()
        got: list[Message] = []

        def note(message: Message) -> None:
            got.append(message)
            done.set()

        async with transport.subscribe("rule.11", note):
            await transport.publish("rule.11", b"token")
            with anyio.fail_after(5):
                await done.wait()
        assert got[0].headers is None


@pytest.mark.requirement("bus-limits")
async def test_11_what_the_server_would_hang_up_on_is_not_sent(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        for subject, payload, headers in (
            ("rule.11", bytes(transport.max_payload), {"a": "b"}),
            ("rule." + "x" * 4096, b"", None),
            ("rule 11\r\nPING", b"", None),
            ("", b"", None),
            ("rule.11", b"", {"a b": "c"}),
        ):
            with pytest.raises(BusError) as caught:
                await transport.publish(subject, payload, headers=headers)
            assert not caught.value.retryable
        with pytest.raises(BusError):
            async with transport.subscribe("rule." + "x" * 4096, lambda _: None):
                pass
        streams = transport.storage.streams
        await streams.ensure(spec("R11", atomic=True))
        large = bytes(transport.max_payload - 10)
        with pytest.raises(TooLarge):
            await streams.append("rule.R11.a", large, msg_id="1")
        with pytest.raises(TooLarge):
            await streams.append_batch(
                [NewEntry("rule.R11.a", b"", "2"), NewEntry("rule.R11.a", large, "3")]
            )
        assert (await streams.state("R11")).count == 0
        assert await transport.discover("nobody") == []
        assert transport.connected


@pytest.mark.requirement("nats-12", "bus-services")
async def test_12_services_follow_the_rules_of_names(nats_url: str) -> None:
    async with connect_nats(nats_url) as transport:
        for name, version in (("a b", "1.0.0"), ("", "1.0.0"), ("ok", "one")):
            with pytest.raises(BusError):
                async with transport.announce(ServiceInfo(name, version), lambda _: None):
                    pass
        async with transport.announce(ServiceInfo("fine-1_x", "1.0.0"), lambda _: None) as known:
            for verb in ("PING", "INFO", "STATS"):
                reply = await transport._client.request(f"$SRV.{verb}.fine-1_x", timeout=2)
                assert json.loads(reply.data)["id"] == known.id


@pytest.mark.requirement("bus-reconnects")
async def test_nobody_listening_is_an_error_within_the_patience(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server:
        pass
    with anyio.fail_after(3), pytest.raises(BusError) as caught:
        async with connect_nats(server.url, patience=0.5):
            pass
    assert caught.value.retryable
    assert server.url not in str(caught.value)


@pytest.mark.requirement("bus-reconnects")
async def test_a_server_that_starts_late_is_waited_for(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server:
        pass

    done = anyio.Event()

    async def connect() -> None:
        async with connect_nats(server.url) as transport:
            assert transport.connected
        done.set()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect)
            async with embedded_server(tmp_path / "n", port=server.port):
                await done.wait()


@pytest.mark.requirement("bus-reconnects")
async def test_a_connection_that_the_server_closes_for_good_ends_its_body(nats_url: str) -> None:
    with anyio.fail_after(5), pytest.raises(BusError) as caught:
        async with connect_nats(nats_url) as transport:
            # A line that the server does not know: it hangs up, and nats-py does not come back.
            await transport._client._send_command(b"NONSENSE\r\n")
            await transport._client._flush_pending()
            await anyio.sleep_forever()
    assert not caught.value.retryable
