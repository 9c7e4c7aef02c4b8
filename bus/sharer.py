"""What actors that serve the same say to each other, so that none has free slots while requests wait with another.

Actors whose endpoints are the same hear ``ayllu.v1.share.<service>.<digest of the endpoints>``. There one tells that requests wait
with it, and names its own inbox. The rest goes by inboxes:

    <peer>.ask      how many requests somebody can run, and who it is
    <peer>.take     a request that is handed over, as it came, with headers that say from where
    <peer>.a<n>     the answer to the question n: how many requests came
    <peer>.t<n>     the request n was taken

Questions and requests are published with the subject of the answer as reply, so that the bus says when nobody is there: then the
question is over, and the request is ours again. A request of which neither is heard was lost on the way, or with its new actor;
its caller notices the silence.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from ..schemas import BusError, InvalidRequest, Overloaded, decode, encode
from .handover import (
    HOPS_HEADER,
    REPLY_HEADER,
    SUBJECT_HEADER,
    WAITED_HEADER,
    Asks,
    Came,
    Handed,
    Waits,
)
from .sharing import MOST_HANDOVERS, Ask, Command, Give, Refuse, Start, Tell
from .slots import Slots
from .transport import Message, Transport

log = logging.getLogger(__name__)

ASK, TAKE, ANSWER, TAKEN = "ask", "take", "a", "t"
TAKEN_SECONDS = 2.0
"""How long it may take to hear that a request was taken; then it is the new actor's, or lost."""


class Requests(Protocol):
    """The requests of a service."""

    def begin(self, name: str) -> None:
        """Begin with one that waits."""
        ...

    def refuse(self, name: str, error: Overloaded) -> None:
        """End one that waits."""
        ...

    def hand_over(self, name: str) -> Handed:
        """Have no more to do with one that waits."""
        ...

    def take(self, handed: Handed) -> None:
        """Take one that another actor hands over, or that was handed over in vain."""
        ...

    def settle(self) -> None:
        """Look whether there is anything left to do, if that is waited for."""
        ...


@dataclass(frozen=True, slots=True)
class _Sending:
    subject: str
    payload: bytes
    reply: str | None = None
    headers: dict[str, str] | None = None
    handed: int | None = None


class Sharer:
    """Does what an actor's `Slots` decide.

    Args:
        transport: the bus.
        slots: of the actor.
        subject: where its equals hear (`share_subject`).
        requests: of the service.
    """

    def __init__(
        self, transport: Transport, slots: Slots, subject: str, requests: Requests
    ) -> None:
        self._transport = transport
        self._slots = slots
        self._sharing = slots.sharing
        self._subject = subject
        self._requests = requests
        self._peer = transport.inbox()
        self._away: dict[int, tuple[Handed, float]] = {}
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._outbox = asyncio.Queue[_Sending]()
        slots.act = self.act

    @property
    def busy(self) -> bool:
        """Whether requests are on the way to this actor or from it."""
        return bool(self._away) or self._sharing.asking

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Hear what the others say."""
        async with (
            self._transport.subscribe(f"{self._peer}.*", self._on_peer),
            self._transport.subscribe(self._subject, self._on_told),
        ):
            try:
                yield
            finally:
                if self._timer is not None:
                    self._timer.cancel()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send what is to be said, in order, until cancelled."""
        task_status.started()
        while True:
            sending = await self._outbox.get()
            try:
                await self._transport.publish(
                    sending.subject, sending.payload, reply=sending.reply, headers=sending.headers
                )
            except BusError as error:
                log.warning("another actor was not reached: %s", error)
                if sending.handed is not None:
                    self._came_back(sending.handed, final=True)
            finally:
                self._outbox.task_done()

    async def flush(self) -> None:
        """Wait until all that was to be said is on its way."""
        await self._outbox.join()

    def arrive(self, name: str, handed: Handed | None = None) -> None:
        """A request came."""
        now = self._now()
        if handed is None:
            self._sharing.arrive(name, now)
        else:
            self._sharing.arrive(name, now, hops=handed.hops, waited=handed.waited)
        self.act()

    def leave(self, name: str) -> None:
        """A request ended, in whatever way."""
        self._sharing.leave(name, self._now())
        self.act()

    def withdraw(self, name: str) -> None:
        """A request is ending; it is not handed over any more."""
        self._sharing.withdraw(name)
        self.act()

    def drain(self) -> None:
        """Take nothing any more, and be rid of what waits."""
        self._sharing.drain(self._now())
        self.act()

    def act(self) -> None:
        """Do what was decided."""
        commands = self._sharing.commands
        while commands:
            self._do(commands.popleft())
        self._set_timer()

    def _do(self, command: Command) -> None:
        match command:
            case Start(name):
                if not self._slots.begin_item(name):
                    self._requests.begin(name)
            case Refuse(name, seconds):
                self._requests.refuse(name, self._overloaded(seconds))
            case Tell(draining):
                self._send(_Sending(self._subject, encode(Waits(self._peer, draining))))
            case Ask(peer, number, count):
                asks = encode(Asks(self._peer, count))
                self._send(_Sending(f"{peer}.{ASK}", asks, reply=f"{self._peer}.{ANSWER}{number}"))
            case Give(peer, number, names):
                for name in names:
                    self._hand_over(peer, self._requests.hand_over(name))
                answer = encode(Came(len(names)))
                self._send(_Sending(f"{peer}.{ANSWER}{number}", answer))

    def _overloaded(self, seconds: float) -> Overloaded:
        sharing = self._sharing
        seconds = round(seconds, 1)
        return Overloaded(
            f"all {sharing.capacity} slots are taken and {sharing.waiting} requests wait for one; try again in {seconds:g} s",
            details={"retry_after": seconds},
        )

    def _hand_over(self, peer: str, handed: Handed) -> None:
        self._number += 1
        self._away[self._number] = handed, self._now() + TAKEN_SECONDS
        message = handed.message
        headers = {
            **(message.headers or {}),
            SUBJECT_HEADER: message.subject,
            HOPS_HEADER: str(handed.hops),
            WAITED_HEADER: f"{handed.waited:.3f}",
        }
        if message.reply is not None:
            headers[REPLY_HEADER] = message.reply
        reply = f"{self._peer}.{TAKEN}{self._number}"
        self._send(_Sending(f"{peer}.{TAKE}", message.payload, reply, headers, self._number))

    def _now(self) -> float:
        # Not anyio's: handlers of messages are called outside of tasks.
        return asyncio.get_running_loop().time()

    def _send(self, sending: _Sending) -> None:
        self._outbox.put_nowait(sending)

    def _on_told(self, message: Message) -> None:
        try:
            waits = decode(message.payload, Waits)
        except InvalidRequest as error:
            log.warning("an actor tells that requests wait, wrongly: %s", error)
            return
        if waits.peer != self._peer:
            self._sharing.told(waits.peer, self._now(), draining=waits.draining)
            self.act()

    def _on_peer(self, message: Message) -> None:
        kind = message.subject[len(self._peer) + 1 :]
        try:
            if kind == ASK:
                asks = decode(message.payload, Asks)
                number = int((message.reply or "").rpartition(f".{ANSWER}")[2])
                self._sharing.asked(asks.peer, number, asks.count)
            elif kind == TAKE:
                self._take(message)
            elif kind.startswith(ANSWER):
                count = 0 if message.no_responders else decode(message.payload, Came).count
                self._sharing.given(int(kind[len(ANSWER) :]), count, self._now())
            elif message.no_responders:
                self._came_back(int(kind[len(TAKEN) :]))
            else:
                self._away.pop(int(kind[len(TAKEN) :]), None)
        except (InvalidRequest, ValueError, KeyError) as error:
            log.warning("another actor said something that cannot be read: %s", error)
        self.act()
        self._requests.settle()

    def _take(self, message: Message) -> None:
        headers = dict(message.headers or {})
        subject, reply = headers.pop(SUBJECT_HEADER), headers.pop(REPLY_HEADER, None)
        hops, waited = int(headers.pop(HOPS_HEADER)), float(headers.pop(WAITED_HEADER))
        original = Message(subject, message.payload, reply, headers or None)
        self._requests.take(Handed(original, hops, waited))
        if message.reply is not None:
            self._send(_Sending(message.reply, b""))

    def _came_back(self, number: int, *, final: bool = False) -> None:
        """Take a request again that nobody took; ``final`` when it cannot be sent at all."""
        if (away := self._away.pop(number, None)) is not None:
            handed = away[0]
            self._requests.take(replace(handed, hops=MOST_HANDOVERS) if final else handed)
            self._requests.settle()

    def _set_timer(self) -> None:
        when = self._sharing.next_tick
        for _, until in self._away.values():
            when = min(when, until)
            break  # The first is the oldest.
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
            self._timer = None
        if when < math.inf:
            self._timer = asyncio.get_running_loop().call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._now()
        for number in [number for number, (_, until) in self._away.items() if until <= now]:
            del self._away[number]
            log.warning("nobody told that a request was taken; its caller notices if it is lost")
        self._sharing.tick(now)
        self.act()
        self._requests.settle()
