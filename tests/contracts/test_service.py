"""Calls from a typed client to a served actor: one body, on the bus within a process and on a real nats-server."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from support.shapes import CountRequest, Number, Numbers, Shapes, ShapesActor

from ayllu.bus.bus import Bus, connect, local_bus
from ayllu.bus.calls import CLAIM_HEADER, EXCHANGE_HEADER, TIMEOUT_HEADER
from ayllu.bus.client import client
from ayllu.bus.context import CallContext, current_call
from ayllu.bus.exchange import WINDOW
from ayllu.bus.service import Service, serve
from ayllu.bus.slots import Slots
from ayllu.bus.transport import Message
from ayllu.schemas import (
    BusError,
    CompletionRequest,
    DeadlineExceeded,
    EngineDead,
    Inference,
    InternalError,
    InvalidRequest,
    NotFound,
    Unavailable,
    decode,
)
from ayllu.schemas.proxy import EventStream

pytestmark = pytest.mark.asyncio

OpenBus = Callable[[], AbstractAsyncContextManager[Bus]]


@pytest.fixture(params=["local", "nats"])
def open_bus(request: pytest.FixtureRequest) -> OpenBus:
    if request.param == "local":
        return local_bus
    url = request.getfixturevalue("nats_url")
    return lambda: connect(url)


@asynccontextmanager
async def serving(open_bus: OpenBus) -> AsyncIterator[tuple[Bus, Shapes, ShapesActor]]:
    """Serve the actor; in the end nothing of any call is left."""
    actor = ShapesActor()
    with anyio.fail_after(30):
        async with open_bus() as bus, anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, actor)
            yield bus, client(Shapes, bus), actor
            tasks.cancel_scope.cancel()
        assert bus.calls.open_count == 0
        assert actor.running == 0


@pytest.mark.requirement("typed-client")
async def test_unary(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, _actor):
        assert await shapes.shout("hey", times=2) == "HEYHEY"
        assert await shapes.count(CountRequest(to=3)) == Numbers(values=[0, 1, 2])


@pytest.mark.requirement("typed-client", "exchange-frames")
async def test_a_stream_comes_in_order_and_ends_in_the_assembled_reply(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, _actor):
        stream = shapes.stream_count(CountRequest(to=5 * WINDOW))
        assert [number.value async for number in stream] == list(range(5 * WINDOW))
        assert isinstance(stream, EventStream)
        assert stream.result is not None
        assert decode(stream.result, Numbers).values == list(range(5 * WINDOW))
        assert [number async for number in stream] == []


async def test_a_list_has_no_assembled_reply(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, _actor):
        stream = shapes.list(CountRequest(to=3))
        assert [number async for number in stream] == [Number(value=i) for i in range(3)]
        assert isinstance(stream, EventStream)
        assert stream.result is None


@pytest.mark.requirement("claim-check")
async def test_what_is_too_large_for_a_message_travels_through_the_store(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (bus, shapes, _actor):
        size = bus.transport.max_payload + 1
        text = await shapes.shout("x" * size)
        assert text == "X" * size
        sizes = [len(n.padding) async for n in shapes.stream_count(CountRequest(to=2, size=size))]
        assert sizes == [size, size]
        # Each event fits, what they amount to does not.
        stream = shapes.stream_count(CountRequest(to=size // 6))
        assert len([number async for number in stream]) == size // 6
        assert isinstance(stream, EventStream)
        assert stream.result is not None
        assert len(decode(stream.result, Numbers).values) == size // 6


@pytest.mark.requirement("one-error-tree")
async def test_errors(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, _actor):
        with pytest.raises(NotFound) as known:
            await shapes.fail("known")
        assert known.value.details == {"how": "known"}
        with pytest.raises(InternalError) as unknown:
            await shapes.fail("unknown")
        assert "secret" not in str(unknown.value.info)
        seen = []
        with pytest.raises(NotFound):
            async for number in shapes.stream_count(CountRequest(to=9, fail_at=2)):
                seen.append(number.value)
        assert seen == [0, 1]


@pytest.mark.requirement("one-error-tree")
async def test_an_error_that_quotes_a_long_request_still_reaches_the_caller(
    open_bus: OpenBus,
) -> None:
    async with serving(open_bus) as (_, shapes, _actor):
        with pytest.raises(NotFound) as long:
            await shapes.fail("long")
        assert len(long.value.message) < 3000
        assert long.value.details == {"omitted": "the details are too large"}


@pytest.mark.requirement("exchange-cancel")
async def test_work_that_was_given_up_before_it_was_taken_is_cancelled(open_bus: OpenBus) -> None:
    """An actor that was held up takes a call of which its caller hears no more."""
    async with serving(open_bus) as (bus, _, actor):
        inbox = bus.calls.subject.removesuffix("*").removesuffix(">") + "gone"
        headers = {EXCHANGE_HEADER: "1"}
        await bus.transport.publish("ayllu.v1.op.shapes.hang", b"{}", reply=inbox, headers=headers)
        await actor.started.wait()
        await actor.idle.wait()


async def test_an_actor_s_own_timeout_is_not_the_call_s_deadline(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, _actor):
        with pytest.raises(InternalError):
            await shapes.fail("timeout")


@pytest.mark.requirement("exchange-window")
async def test_a_slow_reader_slows_the_work(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, actor):
        stream = shapes.stream_count(CountRequest(to=20 * WINDOW))
        assert (await anext(stream)).value == 0
        await anyio.sleep(0.2)  # Time enough for all of it, if nothing held it.
        assert actor.produced <= 2 * WINDOW
        assert [number.value async for number in stream] == list(range(1, 20 * WINDOW))


@pytest.mark.requirement("exchange-cancel")
async def test_leaving_a_stream_cancels_the_work(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, actor):
        stream = shapes.stall(3)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        assert isinstance(stream, EventStream)
        await stream.aclose()
        await actor.idle.wait()


@pytest.mark.requirement("exchange-cancel")
async def test_dropping_a_stream_cancels_the_work(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, actor):
        async for value in shapes.stall(3):
            if value == 2:
                break
        gc.collect()
        await actor.idle.wait()


@pytest.mark.requirement("exchange-cancel")
async def test_cancelling_a_call_cancels_the_work(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, actor):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shapes.hang)
            await actor.started.wait()
            tasks.cancel_scope.cancel()
        await actor.idle.wait()
        assert actor.ended == 1


@pytest.mark.requirement("deadline-everywhere")
async def test_a_deadline_ends_both_sides(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (bus, _, actor):
        with pytest.raises(DeadlineExceeded):
            await client(Shapes, bus, timeout=0.2).hang()
        await actor.idle.wait()


@pytest.mark.requirement("deadline-everywhere", "trace-context")
async def test_a_call_within_a_call_inherits_deadline_and_trace(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (_, shapes, _actor):
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        token = current_call.set(CallContext(anyio.current_time() + 5, trace))
        try:
            context = await shapes.context()
        finally:
            current_call.reset(token)
        assert 4 < context.seconds <= 5
        assert context.traceparent.split("-")[1] == "a" * 32
        assert context.traceparent != trace
        token = current_call.set(CallContext(anyio.current_time() - 1, "nonsense"))
        try:
            with pytest.raises(DeadlineExceeded):
                await shapes.context()
        finally:
            current_call.reset(token)


@pytest.mark.requirement("exchange-absent-responder")
async def test_nobody_serves_it(open_bus: OpenBus) -> None:
    with anyio.fail_after(10):
        async with open_bus() as bus:
            with pytest.raises(Unavailable) as absent:
                await client(Shapes, bus).shout("hey")
            assert absent.value.retryable


async def test_an_actor_that_stops_lets_running_calls_end(open_bus: OpenBus) -> None:
    with anyio.fail_after(20):
        async with open_bus() as bus, anyio.create_task_group() as serving_tasks:
            await serving_tasks.start(serve, bus, ShapesActor())
            stream = client(Shapes, bus).stream_count(CountRequest(to=4 * WINDOW))
            assert (await anext(stream)).value == 0
            serving_tasks.cancel_scope.cancel()
            # The actor takes no new calls, but this one goes on to its end.
            rest: list[int] = []
            with anyio.CancelScope(shield=True):
                rest += [number.value async for number in stream]
            assert rest == list(range(1, 4 * WINDOW))


class TellingActor(ShapesActor):
    """Tells something of its own, as others may get it wrong too."""

    service_name = "telling"

    def __init__(self) -> None:
        super().__init__()
        self.told: object = {"done": 1, "calls": 99}

    def service_stats(self) -> object:
        if self.told is None:
            raise RuntimeError("a defect")
        return self.told


@pytest.mark.requirement("actor-numbers")
async def test_every_actor_tells_what_it_does(open_bus: OpenBus) -> None:
    actor = TellingActor()

    async def told() -> Mapping[str, object]:
        [one] = [one.data for one in await bus.transport.stats("") if one.name == "telling"]
        return one

    with anyio.fail_after(30):
        async with open_bus() as bus, anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, actor)
            shapes = client(Shapes, bus)
            counts = {"calls": 0, "errors": 0, "running": 0, "waiting": 0}
            assert await told() == {**counts, "done": 1}
            await shapes.shout("x")
            for how in ("known", "unknown"):
                with pytest.raises((NotFound, InternalError)):
                    await shapes.fail(how)
            assert await told() == {**counts, "done": 1, "calls": 3, "errors": 2}
            async with anyio.create_task_group() as hanging:
                hanging.start_soon(shapes.hang)
                await actor.started.wait()
                assert (await told())["running"] == 1
                hanging.cancel_scope.cancel()
            while (await told())["calls"] != 4:  # The caller left before the work had ended.
                await anyio.lowlevel.checkpoint()
            for wrong in (None, [1], {"done": object()}):
                actor.told = wrong
                assert await told() == {**counts, "calls": 4, "errors": 2}
            tasks.cancel_scope.cancel()


class SlottedActor(ShapesActor):
    """Runs one request at a time."""

    service_name = "slotted"

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(1, waiting=5)


@pytest.mark.requirement("actor-numbers")
async def test_requests_that_wait_for_a_slot_do_not_run(open_bus: OpenBus) -> None:
    with anyio.fail_after(30):
        async with open_bus() as bus, anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, SlottedActor())
            shapes = client(Shapes, bus)
            for _ in range(3):
                tasks.start_soon(shapes.hang)
            told: Mapping[str, object] = {}
            while told.get("waiting") != 2:
                await anyio.lowlevel.checkpoint()
                [told] = [one.data for one in await bus.transport.stats("slotted")]
            assert told == {"calls": 0, "errors": 0, "running": 1, "waiting": 2}
            tasks.cancel_scope.cancel()


@pytest.mark.requirement("switch-loses-nothing")
async def test_one_that_is_retired_for_another_loses_no_call(open_bus: OpenBus) -> None:
    async def hammer(shapes: Shapes) -> None:
        while not stop.is_set():
            answered.append(await shapes.shout("hey"))

    async def replace(old: Service) -> Service:
        new = Service(old.bus, ShapesActor())
        await tasks.start(new.run)
        old.retire(30)
        await old.withdrawn.wait()
        return new

    answered: list[str] = []
    stop = anyio.Event()
    with anyio.fail_after(30):
        async with open_bus() as bus, anyio.create_task_group() as tasks:
            shapes = client(Shapes, bus)
            first = service = Service(bus, ShapesActor())
            await tasks.start(service.run)
            stream = shapes.stream_count(CountRequest(to=4 * WINDOW))
            assert (await anext(stream)).value == 0
            async with anyio.create_task_group() as calls:
                for _ in range(8):
                    calls.start_soon(hammer, shapes)
                for _ in range(5):
                    service = await replace(service)
                stop.set()
            assert set(answered) == {"HEY"}
            # It was retired long ago, and goes on with what it had begun.
            assert first.running_count == 1
            rest = [number.value async for number in stream]
            assert rest == list(range(1, 4 * WINDOW))
            tasks.cancel_scope.cancel()


async def test_patience_with_calls_of_a_retired_actor_ends(open_bus: OpenBus) -> None:
    async def hang() -> None:
        with pytest.raises(Unavailable):
            await client(Shapes, service.bus).hang()

    with anyio.fail_after(20):
        async with open_bus() as bus, anyio.create_task_group() as tasks:
            actor = ShapesActor()
            service = Service(bus, actor)
            await tasks.start(service.run)
            tasks.start_soon(hang)
            await actor.started.wait()
            service.retire(0.01)


@pytest.mark.requirement("supervision")
async def test_a_dead_engine_crashes_its_actor_and_its_callers_may_retry(open_bus: OpenBus) -> None:
    actor = ShapesActor()
    errors: list[EngineDead] = []

    async def hang(shapes: Shapes) -> None:
        with pytest.raises(EngineDead) as caught:
            await shapes.hang()
        errors.append(caught.value)

    with anyio.fail_after(20):
        async with open_bus() as bus:
            shapes = client(Shapes, bus)
            with pytest.raises(ExceptionGroup) as crash:
                async with anyio.create_task_group() as tasks:
                    await tasks.start(serve, bus, actor)
                    async with anyio.create_task_group() as calls:
                        calls.start_soon(hang, shapes)
                        await actor.started.wait()
                        with pytest.raises(EngineDead):
                            await shapes.fail("dead")
                    await anyio.sleep_forever()
            assert crash.group_contains(EngineDead)
    assert errors[0].retryable


@pytest.mark.requirement("plain-nats-client")
async def test_a_plain_request_gets_a_plain_reply(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (bus, _, _actor):
        assert (await ask(bus, "shout", b'{"text":"hey"}', 1))[0].payload == b'"HEY"'
        [error] = await ask(bus, "shout", b'{"txet":"hey"}', 1)
        assert error.headers is not None
        assert error.headers["Nats-Service-Error-Code"] == "400"
        assert b"invalid_request" in error.payload
        events = await ask(bus, "count.stream", b'{"to":2}', 3)
        assert [event.payload for event in events] == [b'{"value":0}', b'{"value":1}', b""]


async def ask(bus: Bus, operation: str, payload: bytes, replies: int) -> list[Message]:
    """Ask as any NATS client would, without our headers."""
    inbox, got, done = bus.transport.inbox(), list[Message](), anyio.Event()

    def receive(message: Message) -> None:
        got.append(message)
        if len(got) == replies:
            done.set()

    async with bus.transport.subscribe(inbox, receive):
        await bus.transport.publish(f"ayllu.v1.op.shapes.{operation}", payload, reply=inbox)
        await done.wait()
    return got


async def end_of(bus: Bus, payload: bytes, headers: dict[str, str]) -> bytes:
    """Return the terminal frame of a request that is made by hand."""
    inbox, ended = bus.transport.inbox(), anyio.Event()
    frames: list[bytes] = []

    def receive(message: Message) -> None:
        if message.subject.endswith(".e"):
            frames.append(message.payload)
            ended.set()

    async with bus.transport.subscribe(f"{inbox}.*", receive):
        await bus.transport.publish(
            "ayllu.v1.op.shapes.shout",
            payload,
            reply=inbox,
            headers={EXCHANGE_HEADER: "1", **headers},
        )
        await ended.wait()
    return frames[0]


@pytest.mark.parametrize("timeout", ["soon", "-1", "nan", "inf"])
async def test_a_timeout_that_is_none_is_refused(open_bus: OpenBus, timeout: str) -> None:
    async with serving(open_bus) as (bus, _, _actor):
        frame = await end_of(bus, b'{"text":""}', {TIMEOUT_HEADER: timeout})
        assert b"invalid_request" in frame


async def test_a_claim_that_is_none_is_refused(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (bus, _, _actor):
        frame = await end_of(bus, b"nonsense", {CLAIM_HEADER: "1"})
        assert b"error" in frame
        assert b"internal" not in frame


@pytest.mark.requirement("exchange-dead-caller")
async def test_the_work_of_a_caller_that_is_gone_is_cancelled(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (bus, _, actor):
        headers = {EXCHANGE_HEADER: "1"}
        await bus.transport.publish(
            "ayllu.v1.op.shapes.hang", b"{}", reply=bus.transport.inbox(), headers=headers
        )
        await actor.started.wait()
        await actor.idle.wait()


@pytest.mark.requirement("exchange-bundles")
async def test_streams_at_once_share_messages_and_keep_their_order(open_bus: OpenBus) -> None:
    bundles = 0

    def look(message: Message) -> None:
        nonlocal bundles
        bundles += message.subject.endswith(".0.b")

    async with serving(open_bus) as (bus, shapes, _actor):

        async def follow() -> None:
            stream = shapes.stream_count(CountRequest(to=200))
            assert [number.value async for number in stream] == list(range(200))
            assert isinstance(stream, EventStream)
            assert decode(stream.result or b"", Numbers) == Numbers(values=list(range(200)))

        async with bus.transport.subscribe("_INBOX.>", look), anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(follow)
        assert bundles > 0


@pytest.mark.requirement("exchange-bundles")
async def test_a_caller_that_knows_no_bundles_gets_none(open_bus: OpenBus) -> None:
    kinds: list[str] = []
    ended = anyio.Event()

    def take(message: Message) -> None:
        kinds.append(message.subject.rpartition(".")[2])
        if kinds.count("e") == 3:
            ended.set()

    async with serving(open_bus) as (bus, _shapes, _actor):
        inbox = bus.transport.inbox()
        async with bus.transport.subscribe(f"{inbox}.*.*", take):
            for number in (1, 2, 3):
                await bus.transport.publish(
                    "ayllu.v1.op.shapes.count.stream",
                    b'{"to": 20}',
                    reply=f"{inbox}.{number}",
                    headers={EXCHANGE_HEADER: "1"},
                )
            await ended.wait()
    assert set(kinds) <= {"a", "d", "h", "e"}


@pytest.mark.requirement("no-leaks")
async def test_many_streams_with_random_cancels_leave_nothing(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (bus, shapes, actor):

        async def follow(leave_after: int) -> None:
            async for number in shapes.stream_count(CountRequest(to=300)):
                if number.value == leave_after:
                    break

        async with anyio.create_task_group() as tasks:
            for index in range(100):
                tasks.start_soon(follow, index * 7 % 400)
        gc.collect()
        await actor.idle.wait()
        while bus.calls.open_count:
            await anyio.sleep(0.01)


async def test_what_is_no_implementation_is_refused() -> None:
    class Partial(Shapes):
        """Implements nothing."""

    class Plain:
        """Inherits from no Protocol."""

    async with local_bus() as bus:
        for actor in (Partial(), Plain()):  # type: ignore[abstract]
            with pytest.raises(TypeError):
                await serve(bus, actor)


async def test_arguments_are_checked_before_they_are_sent(open_bus: OpenBus) -> None:
    async with serving(open_bus) as (bus, shapes, _actor):
        with pytest.raises(TypeError):
            await shapes.shout(1, 2, 3)  # type: ignore[call-arg, arg-type]
        with pytest.raises(InvalidRequest):
            await shapes.shout(text=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await shapes.count(Number(value=1))  # type: ignore[arg-type]
        with pytest.raises(Unavailable):
            await client(Inference, bus).completion(CompletionRequest(model="x", content="x"))


async def test_a_reply_that_is_not_one_is_a_bus_error(open_bus: OpenBus) -> None:
    """An own responder that answers a unary call twice."""
    async with open_bus() as bus:

        def twice(message: Message) -> None:
            async def answer() -> None:
                for kind, payload in (
                    ("a", b'{"control":"x"}'),
                    ("d", b"1"),
                    ("d", b"2"),
                    ("e", b'{"count":2}'),
                ):
                    await bus.transport.publish(f"{message.reply}.{kind}", payload)

            tasks.start_soon(answer)

        with anyio.fail_after(10):
            async with (
                anyio.create_task_group() as tasks,
                bus.transport.subscribe("ayllu.v1.op.shapes.shout", twice),
            ):
                with pytest.raises(BusError):
                    await client(Shapes, bus).shout("x")
