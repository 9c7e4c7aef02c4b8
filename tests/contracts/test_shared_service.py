"""Actors that share what waits: one body, on the bus within a process and on a real nats-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup, TaskStatus
from support.shapes import CountRequest, Numbers, Shapes, ShapesActor

from ayllu.bus.bus import Bus, connect, local_bus
from ayllu.bus.calls import EXCHANGE_HEADER, TIMEOUT_HEADER
from ayllu.bus.client import client
from ayllu.bus.exchange import WINDOW
from ayllu.bus.handover import Asks, Waits
from ayllu.bus.service import Drain, Service
from ayllu.bus.slots import Slots
from ayllu.bus.transport import Message
from ayllu.schemas import (
    AylluError,
    Cancelled,
    DeadlineExceeded,
    Overloaded,
    Unavailable,
    decode,
    encode,
    operations_of,
)
from ayllu.schemas.proxy import EventStream

pytestmark = pytest.mark.asyncio

OPERATIONS = {operation.method: operation for operation in operations_of(Shapes)}
SHARE = "ayllu.v1.share.gated.*"


class GatedActor(ShapesActor):
    """Answers when it is let, and remembers what it ran."""

    service_name = "gated"

    def __init__(self, slots: int = 1, waiting: int = 5) -> None:
        super().__init__()
        self.slots = Slots(slots, waiting=waiting)
        self.most = 0
        self.ran: list[str] = []
        self.gate = anyio.Event()
        self._changed = anyio.Event()

    async def shout(self, text: str, times: int = 1) -> str:
        self.ran.append(text)
        self._begin()
        self.most = max(self.most, self.running)
        self._changed.set()
        try:
            await self.gate.wait()
        finally:
            self._end()
        return text.upper()

    async def runs(self, count: int) -> None:
        """Wait until it has begun with so many."""
        while len(self.ran) < count:
            self._changed = anyio.Event()
            await self._changed.wait()


@dataclass
class Place:
    """A caller's bus, and what serves there.

    Attributes:
        caller: the bus of the caller.
        answers: what calls returned, by text.
        errors: the errors of the others.
    """

    caller: Bus
    open_bus: Callable[[], AbstractAsyncContextManager[Bus]]
    tasks: TaskGroup
    answers: dict[str, str] = field(default_factory=dict)
    errors: dict[str, AylluError] = field(default_factory=dict)
    scopes: dict[str, anyio.CancelScope] = field(default_factory=dict)

    async def serve(self, actor: GatedActor, drain: Drain | None = None) -> Service:
        """Serve an actor, over a connection of its own where there are connections."""
        services: list[Service] = []

        async def run(*, task_status: TaskStatus[None]) -> None:
            async with self.open_bus() as bus:
                services.append(Service(bus, actor, drain or Drain(1)))
                await services[0].run(task_status=task_status)

        await self.tasks.start(run)
        return services[0]

    def call(self, text: str, *, timeout: float = 20) -> None:
        """Make a call that goes on."""

        async def run() -> None:
            with anyio.CancelScope() as self.scopes[text]:
                try:
                    shapes = client(Shapes, self.caller, timeout=timeout)
                    self.answers[text] = await shapes.shout(text)
                except AylluError as error:
                    self.errors[text] = error

        self.tasks.start_soon(run)

    async def fill(self, actor: GatedActor, *texts: str) -> None:
        """Make calls to the only actor that there is, one after the other: those that find no slot wait."""
        for text in texts:
            known = len(actor.ran) + actor.slots.waiting
            self.call(text)
            await until(partial(self._knows, actor, known + 1))

    @staticmethod
    def _knows(actor: GatedActor, count: int) -> bool:
        return len(actor.ran) + actor.slots.waiting == count

    async def answered(self, count: int) -> None:
        """Wait until so many calls have ended."""
        await until(lambda: len(self.answers) + len(self.errors) >= count)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells of."""
    while not condition():
        await anyio.sleep(0.002)


@asynccontextmanager
async def open_place(
    open_bus: Callable[[], AbstractAsyncContextManager[Bus]],
) -> AsyncIterator[Place]:
    with anyio.fail_after(30):
        async with open_bus() as caller, anyio.create_task_group() as tasks:
            yield Place(caller, open_bus, tasks)
            tasks.cancel_scope.cancel()


Places = Callable[[], AbstractAsyncContextManager[Place]]


@asynccontextmanager
async def open_local() -> AsyncIterator[Place]:
    async with local_bus() as bus:

        @asynccontextmanager
        async def same() -> AsyncIterator[Bus]:
            yield bus

        async with open_place(same) as place:
            yield place


@pytest.fixture(params=["local", "nats"])
def place(request: pytest.FixtureRequest) -> Places:
    if request.param == "local":
        return open_local
    url = request.getfixturevalue("nats_url")
    return lambda: open_place(lambda: connect(url))


@pytest.mark.requirement("share-by-capacity", "share-hand-over")
async def test_what_waits_is_run_by_whoever_has_a_free_slot(place: Places) -> None:
    full, idle = GatedActor(), GatedActor(slots=2)
    async with place() as here:
        await here.serve(full)
        await here.fill(full, "a", "b", "c", "d")
        assert full.ran == ["a"]
        assert full.slots.waiting == 3
        await here.serve(idle)
        await idle.runs(2)
        assert idle.ran == ["b", "c"]
        idle.gate.set()
        await here.answered(3)
        assert idle.ran == ["b", "c", "d"]
        full.gate.set()
        await here.answered(4)
        assert here.answers == {text: text.upper() for text in "abcd"}
        assert (full.ran, full.most, idle.most) == (["a"], 1, 2)


@pytest.mark.requirement("share-silence")
async def test_nothing_is_said_while_nobody_waits(place: Places) -> None:
    said: list[Message] = []
    actors = [GatedActor(slots=8), GatedActor(slots=8)]
    async with place() as here, here.caller.transport.subscribe(SHARE, said.append):
        for actor in actors:
            actor.gate.set()
            await here.serve(actor)
        for number in range(50):
            here.call(str(number))
            if number % 5 == 4:
                await here.answered(number + 1)
        assert len(here.answers) == 50
        assert not said


@pytest.mark.requirement("share-hand-over", "exchange-window", "exchange-bundles")
async def test_a_stream_that_waited_and_was_handed_over_comes_whole(place: Places) -> None:
    beats = 0

    def look(message: Message) -> None:
        nonlocal beats
        beats += message.subject.endswith(".h")

    full, idle = GatedActor(), GatedActor(slots=4)
    async with place() as here, here.caller.transport.subscribe("_INBOX.>", look):
        await here.serve(full)
        await here.fill(full, "a")

        async def follow() -> None:
            stream = client(Shapes, here.caller).stream_count(CountRequest(to=5 * WINDOW))
            assert isinstance(stream, EventStream)
            assert [number.value async for number in stream] == list(range(5 * WINDOW))
            assert decode(stream.result or b"", Numbers).values == list(range(5 * WINDOW))

        async with anyio.create_task_group() as streams:
            for _ in range(4):
                streams.start_soon(follow)
            # They wait for long enough that their callers hear of them.
            await until(lambda: beats > 4)
            assert full.slots.waiting == 4
            await here.serve(idle)
        assert idle.ended == 4
        assert here.caller.calls.open_count == 1


@pytest.mark.requirement("share-hand-over", "plain-nats-client")
async def test_a_plain_request_may_wait_and_be_handed_over(place: Places) -> None:
    full, idle = GatedActor(), GatedActor()
    idle.gate.set()
    async with place() as here:
        transport = here.caller.transport
        await here.serve(full)
        await here.fill(full, "a")
        inbox, answered = transport.inbox(), anyio.Event()
        got: list[Message] = []

        def receive(message: Message) -> None:
            got.append(message)
            answered.set()

        async with transport.subscribe(inbox, receive):
            subject = OPERATIONS["shout"].subject
            await transport.publish(subject, b'{"text": "hey"}', reply=inbox)
            await transport.publish(subject, b'{"text": "no reply"}')
            await until(lambda: full.slots.waiting == 2)
            await here.serve(idle)
            await answered.wait()
        assert [message.payload for message in got] == [b'"HEY"']
        await idle.runs(2)


@pytest.mark.requirement("share-hand-over", "claim-check")
async def test_a_large_request_is_handed_over_as_its_reference(place: Places) -> None:
    full, idle = GatedActor(), GatedActor()
    idle.gate.set()
    async with place() as here:
        await here.serve(full)
        text = "x" * (here.caller.transport.max_payload + 1)
        await here.fill(full, "a", text)
        await here.serve(idle)
        await here.answered(1)
        assert here.answers == {text: text.upper()}


@pytest.mark.requirement("share-hand-over", "deadline-everywhere", "trace-context")
async def test_what_is_left_of_the_time_goes_with_it(place: Places) -> None:
    full, idle = GatedActor(), GatedActor()
    async with place() as here:
        await here.serve(full)
        await here.fill(full, "a")
        context = None

        async def ask() -> None:
            nonlocal context
            context = await client(Shapes, here.caller, timeout=20).context()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: full.slots.waiting == 1)
            await anyio.sleep(0.1)
            await here.serve(idle)
        assert context is not None
        assert 10 < context.seconds < 19.91
        assert context.traceparent.startswith("00-")


@pytest.mark.requirement("share-waiting", "deadline-everywhere")
async def test_a_deadline_ends_what_waits(place: Places) -> None:
    full = GatedActor()
    async with place() as here:
        service = await here.serve(full)
        await here.fill(full, "a")
        here.call("late", timeout=0.2)
        await here.answered(1)
        assert isinstance(here.errors["late"], DeadlineExceeded)
        await until(lambda: service.running_count == 1)
        assert full.slots.waiting == 0
        # The time that a request brings may be none.
        inbox, ended = here.caller.transport.inbox(), anyio.Event()
        async with here.caller.transport.subscribe(
            f"{inbox}.*", lambda m: ended.set() if b"invalid_request" in m.payload else None
        ):
            await here.caller.transport.publish(
                OPERATIONS["shout"].subject,
                b'{"text": "x"}',
                reply=inbox,
                headers={EXCHANGE_HEADER: "1", TIMEOUT_HEADER: "soon"},
            )
            await ended.wait()


@pytest.mark.requirement("share-waiting", "exchange-cancel")
async def test_a_cancelled_call_waits_no_more(place: Places) -> None:
    full = GatedActor()
    async with place() as here:
        service = await here.serve(full)
        await here.fill(full, "a", "b", "c")
        here.scopes["b"].cancel()
        await until(lambda: service.running_count == 2)
        full.gate.set()
        await here.answered(2)
        assert full.ran == ["a", "c"]


@pytest.mark.requirement("share-hand-over", "exchange-cancel")
async def test_cancelling_a_call_that_was_handed_over_cancels_its_work(place: Places) -> None:
    full, idle = GatedActor(), GatedActor()
    async with place() as here:
        await here.serve(full)
        await here.fill(full, "a", "b")
        await here.serve(idle)
        await idle.runs(1)
        here.scopes["b"].cancel()
        await idle.idle.wait()
        assert idle.ran == ["b"]


@pytest.mark.requirement("share-hand-over", "exchange-cancel")
async def test_a_cancel_that_crosses_the_hand_over_is_not_lost(place: Places) -> None:
    """The caller cancels with the old actor, which has forgotten the call; the new one has not said yet that it has it."""
    full, idle = GatedActor(), GatedActor()
    async with place() as here:
        service = await here.serve(full)
        await here.fill(full, "a")
        subject = OPERATIONS["hang"].subject
        call = await here.caller.calls.open(subject, b"{}", timeout=20)
        with closing(call):
            await until(lambda: full.slots.waiting == 1)

            def cross(message: Message) -> None:
                if message.subject.endswith(".take"):
                    call.close()

            async with here.caller.transport.subscribe("_INBOX.>", cross):
                await here.serve(idle)
                await until(lambda: idle.ended == 1 or call.result is not None)
            with pytest.raises(Cancelled):
                await call.take()
        assert service.running_count == 1
        assert idle.running == 0


@pytest.mark.requirement("overloaded-with-a-hint")
async def test_a_full_system_says_so_and_when_to_come_again(place: Places) -> None:
    full = GatedActor(slots=2, waiting=1)
    async with place() as here:
        await here.serve(full)
        await here.fill(full, "a", "b", "c")
        here.call("d")
        await here.answered(1)
        error = here.errors["d"]
        assert isinstance(error, Overloaded)
        assert error.retryable
        assert 0.5 <= error.details["retry_after"] <= 60
        full.gate.set()
        await here.answered(4)
        assert sorted(here.answers) == ["a", "b", "c"]


@pytest.mark.requirement("overloaded-with-a-hint", "share-by-capacity")
async def test_where_none_may_wait_an_idle_actor_takes_it(place: Places) -> None:
    full, idle = GatedActor(waiting=0), GatedActor(waiting=0)
    async with place() as here:
        await here.serve(full)
        await here.fill(full, "a")
        await here.serve(idle)
        here.call("b")  # Whoever gets it.
        await idle.runs(1)
        here.call("c")
        await here.answered(1)
        assert isinstance(here.errors["c"], Overloaded)


@pytest.mark.requirement("drain-hands-over", "drain-finishes")
async def test_an_actor_that_drains_hands_over_what_waits_even_to_full_ones(place: Places) -> None:
    old, new = GatedActor(), GatedActor()
    async with place() as here:
        service = await here.serve(old)
        await here.fill(old, "a", "b", "c")
        await here.serve(new)
        await new.runs(1)
        service.retire(30)
        await until(lambda: new.slots.waiting == 1)
        assert old.slots.waiting == 0
        assert service.running_count == 1
        here.call("d")
        await until(lambda: new.slots.waiting == 2)
        old.gate.set()
        new.gate.set()
        await here.answered(4)
        assert (old.ran, new.ran) == (["a"], ["b", "c", "d"])
        assert not here.errors


@pytest.mark.requirement("drain-finishes")
async def test_an_actor_that_drains_alone_finishes_what_waits(place: Places) -> None:
    actor = GatedActor()
    async with place() as here:
        service = await here.serve(actor)
        await here.fill(actor, "a", "b", "c")
        service.retire(30)
        await service.withdrawn.wait()
        actor.gate.set()
        await here.answered(3)
        assert not here.errors


@pytest.mark.requirement("drain-finishes")
async def test_the_time_of_a_drain_can_be_cut(place: Places) -> None:
    actor, drain = GatedActor(), Drain(60)
    async with place() as here:
        bus = here.caller
        async with anyio.create_task_group() as serving:
            service = Service(bus, actor, drain)
            await serving.start(service.run)
            await here.fill(actor, "a", "b")
            serving.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await service.withdrawn.wait()
                assert service.running_count == 2
                drain.cut.set()
                await here.answered(2)
        assert {type(error) for error in here.errors.values()} == {Unavailable}


@pytest.mark.requirement("share-exactly-one")
async def test_a_request_that_nobody_takes_comes_back(place: Places) -> None:
    """Another actor asks, and is gone when it is given something."""
    actor = GatedActor()
    async with place() as here:
        transport = here.caller.transport
        peers: list[str] = []
        async with transport.subscribe(
            SHARE, lambda message: peers.append(decode(message.payload, Waits).peer)
        ):
            await here.serve(actor)
            await here.fill(actor, "a", "b")
            await until(lambda: bool(peers))
            for number in range(10):  # More often than it is handed over.
                gone = transport.inbox()
                answer = f"{gone}.a{number}"
                came = anyio.Event()
                async with transport.subscribe(answer, lambda _, came=came: came.set()):  # type: ignore[misc]
                    asks = encode(Asks(gone, 1))
                    await transport.publish(f"{peers[0]}.ask", asks, reply=answer)
                    await came.wait()
                await until(lambda: actor.slots.waiting == 1)
            actor.gate.set()
            await here.answered(2)
            assert actor.ran == ["a", "b"]
            assert not here.errors


@pytest.mark.requirement("share-exactly-one", "plain-nats-client")
async def test_a_request_that_is_too_large_to_be_handed_over_stays(place: Places) -> None:
    """It fits into a message, but not with the headers that it would need on NATS."""
    full, idle = GatedActor(), GatedActor()
    idle.gate.set()
    async with place() as here:
        transport = here.caller.transport
        await here.serve(full)
        await here.fill(full, "a")
        head, tail = b'{"text": "', b'"}'
        payload = head + b"x" * (transport.max_payload - len(head) - len(tail)) + tail
        inbox, answered = transport.inbox(), anyio.Event()
        async with transport.subscribe(inbox, lambda _: answered.set()):
            await transport.publish(OPERATIONS["shout"].subject, payload, reply=inbox)
            await until(lambda: full.slots.waiting == 1)
            here.call("b")
            await here.serve(idle)
            await here.answered(1)
            full.gate.set()
            await answered.wait()
        assert len(full.ran) + len(idle.ran) == 3


@pytest.mark.requirement("share-exactly-one")
async def test_what_cannot_be_read_harms_nobody(place: Places) -> None:
    actor = GatedActor()
    async with place() as here:
        transport = here.caller.transport
        peers: list[Message] = []
        async with transport.subscribe(SHARE, peers.append):
            await here.serve(actor)
            await here.fill(actor, "a", "b")
            await until(lambda: bool(peers))
        peer = decode(peers[0].payload, Waits).peer
        for kind in ("ask", "take", "a1", "a", "tx", "nonsense"):
            await transport.publish(f"{peer}.{kind}", b"nonsense")
            await transport.publish(f"{peer}.{kind}", b'{"count": 5}')
        await transport.publish(peers[0].subject, b"nonsense")
        # Requests wait with somebody who is not there.
        await transport.publish(peers[0].subject, encode(Waits("nobody")))
        actor.gate.set()
        await here.answered(2)
        here.call("c")
        await here.answered(3)
        assert actor.ran == ["a", "b", "c"]


@pytest.mark.requirement("share-exactly-one", "share-by-capacity")
async def test_under_load_each_request_is_run_once(place: Places) -> None:
    class Brief(GatedActor):
        async def shout(self, text: str, times: int = 1) -> str:
            self.gate = anyio.Event()
            here.tasks.start_soon(open_later, self.gate)
            return await super().shout(text, times)

    async def open_later(gate: anyio.Event) -> None:
        await anyio.sleep(0.005)
        gate.set()

    actors = [Brief(slots=slots, waiting=200) for slots in (1, 2, 3)]
    async with place() as here:
        services = [await here.serve(actor) for actor in actors]
        for number in range(120):
            here.call(str(number))
            if number % 10 == 9:
                await anyio.sleep(0.003)
            if number % 17 == 0:
                here.call(f"left {number}")
                await anyio.lowlevel.checkpoint()
                here.scopes[f"left {number}"].cancel()
            if number == 60:
                services[2].retire(30)
        await here.answered(120)
        assert not here.errors
        ran = [text for actor in actors for text in actor.ran]
        assert len(ran) == len(set(ran))
        assert {text for text in ran if not text.startswith("left")} == {str(n) for n in range(120)}
        assert all(actor.most <= actor.slots.sharing.capacity for actor in actors)
        await until(lambda: not any(service.running_count for service in services))
        assert not any(actor.slots.sharing.used for actor in actors)
