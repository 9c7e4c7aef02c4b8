"""Bundles: what becomes ready together travels together, in order, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.bus.bundles import BUNDLED_BYTES, Bundles, Inbox, unbundled
from ayllu.bus.local import LocalTransport
from ayllu.bus.transport import Message
from ayllu.schemas import BusError

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("exchange-bundles")]


class Wire:
    """A bus on which everything under one prefix is heard."""

    def __init__(self) -> None:
        self.transport = LocalTransport()
        self.bundles = Bundles(self.transport)
        self.messages: list[tuple[str, bytes]] = []

    def frames(self) -> list[tuple[str, str, bytes]]:
        """Return the frames as a caller sees them: its name, kind and payload."""
        found = []
        for subject, payload in self.messages:
            name, kind = subject.split(".")[1:]
            if kind == "b":
                found += [(owner, "d", event) for owner, event in unbundled(payload)]
            else:
                found.append((name, kind, payload))
        return found

    def _take(self, message: Message) -> None:
        self.messages.append((message.subject, message.payload))


@asynccontextmanager
async def wire() -> AsyncIterator[Wire]:
    made = Wire()
    async with made.transport.subscribe("p.*.*", made._take), anyio.create_task_group() as tasks:
        await tasks.start(made.bundles.run)
        yield made
        tasks.cancel_scope.cancel()


async def test_events_of_one_turn_share_a_message() -> None:
    async with wire() as bus:
        for name in ("1", "2", "3"):
            await bus.bundles.add(Inbox(f"p.{name}"), b'{"n":%s}' % name.encode())
        await bus.bundles.flush()
        assert bus.messages == [("p.0.b", b'1 {"n":1}\n2 {"n":2}\n3 {"n":3}')]


async def test_a_single_event_goes_as_ever() -> None:
    async with wire() as bus:
        await bus.bundles.add(Inbox("p.1"), b"{}")
        await bus.bundles.flush()
        assert bus.messages == [("p.1.d", b"{}")]


async def test_what_cannot_be_a_line_or_is_large_goes_alone_and_in_order() -> None:
    large = b"x" * (BUNDLED_BYTES + 1)
    async with wire() as bus:
        for event in (b"1", b"2", b"a\nb", b"3", large, b"4"):
            await bus.bundles.add(Inbox("p.1"), event)
        await bus.bundles.flush()
        assert [payload for _, _, payload in bus.frames()] == [
            b"1",
            b"2",
            b"a\nb",
            b"3",
            large,
            b"4",
        ]


async def test_no_message_is_larger_than_the_bus_takes() -> None:
    async with wire() as bus:
        for number in range(400):
            await bus.bundles.add(Inbox(f"p.{number + 1}"), b"y" * 10_000)
        await bus.bundles.flush()
        assert len(bus.frames()) == 400
        assert max(len(payload) for _, payload in bus.messages) < 2 * BUNDLED_BYTES


async def test_whoever_is_cancelled_while_waiting_loses_nobody_s_frames() -> None:
    async with wire() as bus:
        await bus.bundles.add(Inbox("p.1"), b"mine")
        await bus.bundles.add(Inbox("p.2"), b"another's")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await bus.bundles.flush()
        await bus.bundles.flush()
        assert sorted(name for name, _, _ in bus.frames()) == ["1", "2"]


async def test_a_bus_that_fails_stops_nothing() -> None:
    class Failing(LocalTransport):
        async def publish(self, *_: object, **__: object) -> None:
            raise BusError("gone")

    bundles = Bundles(Failing())
    async with anyio.create_task_group() as tasks:
        await tasks.start(bundles.run)
        for _ in range(3):
            await bundles.add(Inbox("p.1"), b"1")
            with anyio.fail_after(5):
                await bundles.flush()
        tasks.cancel_scope.cancel()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["event", "event", "event", "lines", "control", "turn"]),
        st.integers(0, 3),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(scripts=st.lists(STEPS, min_size=1, max_size=5))
async def test_each_call_s_frames_stay_in_order(scripts: list[list[tuple[str, int]]]) -> None:
    """Calls that run at once add events and send other frames, each waiting as the actor's side does."""
    async with wire() as bus:

        async def call(name: str, script: list[tuple[str, int]]) -> None:
            for number, (step, turns) in enumerate(script):
                payload = b"%d" % number
                if step == "event":
                    await bus.bundles.add(Inbox(f"p.{name}"), payload)
                elif step == "lines":
                    await bus.bundles.add(Inbox(f"p.{name}"), payload + b"\n")
                elif step == "control":
                    await bus.bundles.flush()
                    await bus.transport.publish(f"p.{name}.h", payload)
                else:
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
            await bus.bundles.flush()
            await bus.transport.publish(f"p.{name}.e", b"end")

        async with anyio.create_task_group() as tasks:
            for number, script in enumerate(scripts, 1):
                tasks.start_soon(call, str(number), script)
        for number, script in enumerate(scripts, 1):
            seen = [payload for name, _, payload in bus.frames() if name == str(number)]
            sent = [
                b"%d" % place + (b"\n" if step == "lines" else b"")
                for place, (step, _) in enumerate(script)
                if step != "turn"
            ]
            assert seen == [*sent, b"end"]
