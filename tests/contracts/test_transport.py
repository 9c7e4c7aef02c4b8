"""One contract for all transports: the one in this process, and NATS."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from ayllu.bus.local import LocalTransport
from ayllu.bus.nats import connect_nats
from ayllu.bus.transport import Endpoint, Message, ServiceInfo, ServiceStats, Transport
from ayllu.schemas import BusError

pytestmark = pytest.mark.asyncio

_names = itertools.count()


class Running:
    """Opens a transport of one kind; two on NATS are two connections."""

    def __init__(self, kind: str, request: pytest.FixtureRequest) -> None:
        self.kind = kind
        self.url = request.getfixturevalue("nats_url") if kind == "nats" else ""
        self.local = LocalTransport()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Transport]:
        if self.kind == "local":
            yield self.local
        else:
            async with connect_nats(self.url, name="contract") as transport:
                yield transport


@pytest.fixture(params=["local", "nats"])
def running(request: pytest.FixtureRequest) -> Running:
    return Running(request.param, request)


@pytest.fixture
def root() -> str:
    """A subject of this test's own."""
    return f"test.{os.getpid()}.{next(_names)}"


class Collector:
    """A handler that remembers."""

    def __init__(self, count: int = 1) -> None:
        self.messages: list[Message] = []
        self.full = anyio.Event()
        self._count = count

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        if len(self.messages) == self._count:
            self.full.set()

    async def wait(self) -> list[Message]:
        with anyio.fail_after(5):
            await self.full.wait()
        return self.messages

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


async def settle(transport: Transport, root: str) -> None:
    """Wait until what was published before has been delivered."""
    marker = Collector()
    async with transport.subscribe(f"{root}.settle", marker):
        await transport.publish(f"{root}.settle", b"")
        await marker.wait()


@pytest.mark.requirement("bus-live-order")
async def test_messages_arrive_whole_and_in_order(running: Running, root: str) -> None:
    async with running() as here, running() as there:
        got = Collector(1000)
        async with here.subscribe(root, got):
            for number in range(1000):
                await there.publish(root, b"%d" % number)
            await got.wait()
        assert got.payloads == [b"%d" % number for number in range(1000)]
        assert got.messages[0] == Message(root, b"0")


@pytest.mark.requirement("bus-live-order")
async def test_subscribed_means_known_to_the_bus(running: Running, root: str) -> None:
    async with running() as here, running() as there:
        for _ in range(20):
            got = Collector()
            async with here.subscribe(root, got):
                await there.publish(root, b"")
                await got.wait()


@pytest.mark.requirement("bus-live-order")
@pytest.mark.parametrize("pattern", ["{}.*.c", "{}.>", "{}.b.c"])
async def test_wildcards(running: Running, root: str, pattern: str) -> None:
    async with running() as bus:
        got = Collector()
        async with bus.subscribe(pattern.format(root), got):
            await bus.publish(root, b"no")
            await bus.publish(f"{root}x.b.c", b"no")
            await bus.publish(f"{root}.b.c", b"yes")
            await got.wait()
        assert got.payloads == [b"yes"]


@pytest.mark.requirement("bus-live-order")
async def test_reply_and_headers_travel(running: Running, root: str) -> None:
    async with running() as bus:
        got = Collector()
        async with bus.subscribe(root, got):
            await bus.publish(root, b"x", reply="back", headers={"traceparent": "00-ä-01"})
            await got.wait()
        assert got.messages == [Message(root, b"x", "back", {"traceparent": "00-ä-01"})]


@pytest.mark.requirement("bus-no-responders", "nats-12")
async def test_nobody_there_is_told_at_once(running: Running, root: str) -> None:
    async with running() as bus:
        got = Collector()
        inbox = bus.inbox()
        async with bus.subscribe(inbox, got):
            await bus.publish(root, b"x", reply=inbox)
            with anyio.fail_after(0.5):
                await got.wait()
        assert got.messages == [Message(inbox, b"", no_responders=True)]


@pytest.mark.requirement("bus-no-responders")
async def test_an_empty_answer_is_not_nobody(running: Running, root: str) -> None:
    async with running() as bus:
        got = Collector()
        inbox = bus.inbox()
        async with bus.subscribe(inbox, got):
            await bus.publish(inbox, b"", headers={"Status": "fine"})
            await got.wait()
        assert not got.messages[0].no_responders


@pytest.mark.requirement("bus-queue-groups")
async def test_one_of_a_queue_group_gets_each_message(running: Running, root: str) -> None:
    async with running() as here, running() as there:
        one, two, other = Collector(), Collector(), Collector(200)
        async with (
            here.subscribe(root, one, queue="q"),
            there.subscribe(root, two, queue="q"),
            here.subscribe(root, other),
        ):
            for number in range(200):
                await here.publish(root, b"%d" % number)
            await other.wait()
            await settle(here, root)
            await settle(there, root)
        assert sorted(one.payloads + two.payloads) == sorted(other.payloads)
        assert one.payloads
        assert two.payloads


@pytest.mark.requirement("bus-live-order")
async def test_nothing_is_delivered_after_the_end(running: Running, root: str) -> None:
    async with running() as bus:
        got = Collector()
        async with bus.subscribe(root, got):
            pass
        await bus.publish(root, b"late")
        await settle(bus, root)
        assert not got.messages


@pytest.mark.requirement("bus-handlers-never-break-it")
async def test_a_handler_that_raises_is_logged_and_called_again(
    running: Running, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running() as bus:
        got = Collector(2)

        def broken(message: Message) -> None:
            got(message)
            raise ValueError("a defect")

        async with bus.subscribe(root, broken):
            await bus.publish(root, b"1")
            await bus.publish(root, b"2")
            await got.wait()
            await settle(bus, root)
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


@pytest.mark.requirement("bus-limits")
async def test_the_largest_payload_passes_and_a_larger_one_is_refused(
    running: Running, root: str
) -> None:
    async with running() as bus:
        got = Collector()
        async with bus.subscribe(root, got):
            with pytest.raises(BusError) as caught:
                await bus.publish(root, bytes(bus.max_payload + 1))
            assert not caught.value.retryable
            await bus.publish(root, bytes(bus.max_payload))
            await got.wait()
        assert len(got.payloads[0]) == bus.max_payload


@pytest.mark.requirement("bus-services")
async def test_services_answer_and_are_discovered(running: Running, root: str) -> None:
    async with running() as here, running() as there:
        name = root.replace(".", "-")
        info = ServiceInfo(
            name=name,
            version="1.2.3",
            description="a test",
            metadata={"models": '["a b"]'},
            endpoints=(
                Endpoint("one", f"{root}.one", "q"),
                Endpoint("two", f"{root}.two.=20x", "q2"),
            ),
        )
        assert await there.discover(name) == []
        got = Collector(2)
        async with (
            here.announce(info, got) as known,
            here.announce(info, Collector()) as second,
        ):
            assert known.id
            found = await there.discover(name)
            assert found == sorted([known, second], key=lambda one: one.id)
        async with here.announce(info, got):
            inbox = there.inbox()
            await there.publish(f"{root}.one", b"1", reply=inbox)
            await there.publish(f"{root}.two.=20x", b"2", headers={"a": "b"})
            await got.wait()
            first, last = sorted(got.messages, key=lambda one: one.payload)
            assert first == Message(f"{root}.one", b"1", inbox)
            assert last.headers == {"a": "b"}
        assert await there.discover(name) == []


@pytest.mark.requirement("bus-services")
async def test_services_tell_what_they_do(running: Running, root: str) -> None:
    async with running() as here, running() as there:
        assert here.connected
        assert here.reconnects == 0
        name = root.replace(".", "-")
        assert await there.stats(name) == []
        done = 0
        endpoints = (Endpoint("one", f"{root}.one", "q"), Endpoint("two", f"{root}.two", "q"))
        info = ServiceInfo(name, "0.1.0", endpoints=endpoints, stats=lambda: {"done": done})
        silent = ServiceInfo(name, "0.1.0", endpoints=endpoints)
        async with here.announce(info, Collector()) as known, here.announce(silent, Collector()):
            for done in (1, 2):
                assert await there.stats(name) == [ServiceStats(name, known.id, {"done": done})]
        assert await there.stats(name) == []


@pytest.mark.requirement("bus-services")
async def test_one_instance_gets_each_request(running: Running, root: str) -> None:
    async with running() as here, running() as there:
        name = root.replace(".", "-")
        info = ServiceInfo(name, "0.1.0", endpoints=(Endpoint("e", f"{root}.e", "q"),))
        one, two = Collector(), Collector()
        async with here.announce(info, one), there.announce(info, two):
            for number in range(100):
                await here.publish(f"{root}.e", b"%d" % number)
            await settle(here, root)
            await settle(there, root)
            with anyio.fail_after(5):
                while len(one.messages) + len(two.messages) < 100:
                    await anyio.sleep(0.01)  # two collectors have no common event
        assert len(set(one.payloads + two.payloads)) == 100


@pytest.mark.requirement("bus-live-order")
async def test_inboxes_differ(running: Running) -> None:
    async with running() as bus:
        assert len({bus.inbox() for _ in range(100)}) == 100
