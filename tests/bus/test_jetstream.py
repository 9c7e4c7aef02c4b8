"""JetStream where the contract of storages does not reach: outages, restarts, what is on the wire."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import pytest
from support.nats import kill, killed_and_started

from ayllu.bus.durable import Appended, NewEntry, Storage, StreamSpec
from ayllu.bus.nats import NatsTransport, connect_nats
from ayllu.bus.server import embedded_server
from ayllu.bus.transport import Endpoint, Message, ServiceInfo
from ayllu.schemas import BusError, NotFound

pytestmark = pytest.mark.asyncio

SPEC = StreamSpec("EVENTS", ("events.>",), atomic=True)


async def append(storage: Storage, start: int, end: int) -> None:
    """Append entries whose ids say which they are, through an outage if need be."""
    with anyio.fail_after(30):
        for number in range(start, end):
            while True:
                try:
                    await storage.streams.append("events.a", b"%d" % number, msg_id=f"{number}")
                    break
                except BusError as error:
                    if not error.retryable:
                        raise


async def connected(transport: NatsTransport) -> None:
    with anyio.fail_after(10):
        while not transport.connected:
            await anyio.sleep(0.02)  # the transport has no event for it


@pytest.mark.requirement("bus-durable", "nats-09", "nats-03")
async def test_all_that_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        storage = transport.storage
        await storage.streams.ensure(SPEC)
        await append(storage, 0, 50)
        await storage.streams.append_batch([NewEntry("events.b", b"x", "b")])
        bucket = await storage.key_value("kv")
        revision = await bucket.create("k", b"v")
        objects = await storage.objects("obj", max_bytes=1 << 24)
        await objects.put("o", b"x" * 300_000)
        await storage.streams.ensure(StreamSpec("WAKE", ("wake.>",), work_queue=True))
        for subject in ("wake.a", "wake.b"):
            await storage.streams.append(subject, b"", msg_id=subject)
        queue = await storage.streams.work("WAKE", "workers")
        [one] = await queue.fetch(1)
        await one.ack()
        async with killed_and_started(tmp_path / "n", server):
            await connected(transport)
            again = await storage.streams.append("events.a", b"7", msg_id="7")
            assert again == Appended(8, duplicate=True)
            assert (await storage.streams.state("EVENTS")).count == 51
            entry = await bucket.get("k")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"v", revision)
            assert await objects.get("o") == b"x" * 300_000
            [two] = await queue.fetch(1)
            assert two.entry.sequence == 2


@pytest.mark.slow
@pytest.mark.requirement("streams-read-restart", "nats-06")
async def test_a_reader_goes_on_after_a_restart_without_gap_or_double(tmp_path: Path) -> None:
    async with (
        embedded_server(tmp_path / "n") as server,
        connect_nats(server.url) as transport,
        connect_nats(server.url) as writer,
    ):
        await transport.storage.streams.ensure(SPEC)
        await append(writer.storage, 0, 300)
        numbers: list[int] = []
        async with transport.storage.streams.read("EVENTS", "events.a") as entries:
            with anyio.fail_after(30):
                for _ in range(20):  # the rest of the batch is on its way when the server dies
                    numbers.append(int((await anext(entries)).payload))
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append, writer.storage, 300, 320)
                    async with killed_and_started(tmp_path / "n", server):
                        while len(numbers) < 320:
                            numbers.append(int((await anext(entries)).payload))
        assert numbers == list(range(320))


@pytest.mark.requirement("streams-read-restart")
async def test_a_reader_survives_the_loss_of_its_consumer(nats_url: str) -> None:
    spec = StreamSpec("LOST", ("lost.>",), "memory", max_bytes=1 << 20)
    async with connect_nats(nats_url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec)
        await streams.append("lost.a", b"1", msg_id="1")
        async with streams.read("LOST") as entries:
            with anyio.fail_after(10):
                assert (await anext(entries)).payload == b"1"
                js = transport.storage._api.js
                for consumer in await js.consumers_info("LOST"):
                    await js.delete_consumer("LOST", consumer.name)
                await streams.append("lost.a", b"2", msg_id="2")
                assert (await anext(entries)).payload == b"2"
        with anyio.fail_after(5):
            while await js.consumers_info("LOST"):
                await anyio.sleep(0.02)  # a reader that ended leaves none


@pytest.mark.requirement("bus-reconnects", "nats-05")
async def test_subscriptions_and_services_live_again_after_a_restart(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        answered = anyio.Event()
        service = ServiceInfo("echo", "1.0.0", endpoints=(Endpoint("e", "echo.e", "q"),))

        def handler(message: Message) -> None:
            answered.set()

        async with (
            transport.subscribe("live.>", handler),
            transport.announce(service, handler) as known,
        ):
            async with killed_and_started(tmp_path / "n", server):
                await connected(transport)
                for subject in ("live.a", "echo.e"):
                    answered = anyio.Event()
                    await transport.publish(subject, b"")
                    with anyio.fail_after(5):
                        await answered.wait()
                assert await transport.discover("echo") == [known]


@pytest.mark.slow
@pytest.mark.requirement("bus-reconnects")
async def test_an_outage_is_an_error_that_may_be_retried(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        streams = transport.storage.streams
        await streams.ensure(SPEC)
        queue = await streams.work("EVENTS", "w")
        await kill(server)
        for call in (
            streams.append("events.a", b"", msg_id="1"),
            queue.fetch(1, wait=0.1),
            transport.storage.key_value("b"),
        ):
            with anyio.fail_after(8), pytest.raises(BusError) as caught:
                await call
            assert caught.value.retryable


@pytest.mark.requirement("streams-memory")
async def test_memory_streams_end_with_the_server_and_files_do_not(tmp_path: Path) -> None:
    memory = StreamSpec("DELTAS", ("deltas.>",), "memory", max_bytes=1 << 20)
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        streams = transport.storage.streams
        for spec in (SPEC, memory):
            await streams.ensure(spec)
        for subject in ("events.a", "deltas.a"):
            await streams.append(subject, b"", msg_id="1")
        async with killed_and_started(tmp_path / "n", server):
            await connected(transport)
            await streams.ensure(memory)
            assert (await streams.state("EVENTS")).count == 1
            assert (await streams.state("DELTAS")).count == 0


@pytest.mark.requirement("streams-memory", "streams-read-restart")
@pytest.mark.parametrize("again", [True, False])
async def test_a_reader_of_a_stream_that_is_no_more_is_told(nats_url: str, again: bool) -> None:
    spec = StreamSpec("ANEW", ("anew.>",), "memory", max_bytes=1 << 20)
    async with connect_nats(nats_url) as transport:
        streams = transport.storage.streams
        await streams.ensure(spec)
        for number in range(3):
            await streams.append("anew.a", b"", msg_id=f"{number}")
        async with streams.read("ANEW") as entries:
            for _ in range(3):
                await anext(entries)
            await transport.storage._api.js.delete_stream("ANEW")
            if again:
                await streams.ensure(spec)
            with anyio.fail_after(10), pytest.raises(NotFound):
                await anext(entries)
        if again:
            await transport.storage._api.js.delete_stream("ANEW")


@pytest.mark.requirement("nats-09")
async def test_a_pong_that_comes_too_late_does_not_deafen_the_connection(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server, connect_nats(server.url) as transport:
        storage = transport.storage
        await storage.streams.ensure(SPEC)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with anyio.move_on_after(0.2) as given_up:
                async with transport.subscribe("late", lambda _: None):
                    pass
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert given_up.cancelled_caught
        with anyio.fail_after(3):
            await storage.streams.append("events.a", b"x", msg_id="after")
