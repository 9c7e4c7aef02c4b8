"""Who runs a request, where several actors serve the same: decided without a bus, a clock or a central place.

Requests come to one of the actors at random. Each starts what it has slots for; what comes besides waits with it, the oldest
first. An actor with whom requests begin to wait tells the others so; one that has free slots, and hears of it or has heard of it,
asks for as many as it can run, and is given the oldest. While nobody waits, nobody says anything.

A request is with one actor at any time: what is given is forgotten, and comes back only when the bus says that nobody took it.
It is given a bounded number of times; after that it stays and waits.

A request that has work for several slots (a batch) has one of its own. Its items run in that one, and in slots that no request
wants, here or elsewhere.

A `Sharing` is fed with what happens and the time; it answers with commands.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from dataclasses import dataclass

MOST_HANDOVERS = 4
"""How often a request may be handed over."""
TELL_SECONDS = 1.0
"""How often it is told that requests wait, for those who came later, or did not hear it."""
STALE_SECONDS = 4.0
"""After so long without a word, nobody waits there any more."""
ASK_SECONDS = 2.0
"""How long an answer may take; it comes within a millisecond, or not at all."""
OFFER_SECONDS = 0.1
"""How long a request is offered to others where none may wait."""
SHORTEST_RETRY, LONGEST_RETRY = 0.5, 60.0
"""The bounds of the hint when to try again, in seconds."""
RECENT = 0.1
"""What the last request counts for the mean duration."""


@dataclass(frozen=True, slots=True)
class Start:
    """Begin with a request, or an item of one."""

    name: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer that there is no capacity, and after how many seconds there may be."""

    name: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell all others that requests wait here; ``draining`` when they shall wait there rather than here."""

    draining: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask another actor for requests that wait there, at most so many."""

    peer: str
    number: int
    count: int


@dataclass(frozen=True, slots=True)
class Give:
    """Hand these requests over to another actor, then answer the question of that number with their count."""

    peer: str
    number: int
    names: tuple[str, ...]


Command = Start | Refuse | Tell | Ask | Give


@dataclass(slots=True)
class _Waiting:
    name: str
    since: float
    hops: int
    until: float

    @property
    def offered(self) -> bool:
        return self.hops < MOST_HANDOVERS


@dataclass(slots=True)
class _Running:
    since: float
    items: int = 0

    @property
    def slots(self) -> int:
        return max(1, self.items)


@dataclass(frozen=True, slots=True)
class _Peer:
    heard: float
    draining: bool


@dataclass(frozen=True, slots=True)
class _Asked:
    peer: str
    number: int
    count: int
    at: float


class Sharing:
    """One actor's view.

    Args:
        capacity: how many slots it has.
        waiting: how many requests may wait; of what was handed over there may be more. With 0, a request that finds no slot is
            offered to the others for a moment.

    Attributes:
        capacity: how many slots it has.
        commands: what is to be done, in order; whoever does it takes it out.
        draining: whether it takes nothing any more.
    """

    def __init__(self, capacity: int, waiting: int) -> None:
        self.capacity = capacity
        self.commands: deque[Command] = deque()
        self.draining = False
        self._bound = waiting or capacity
        self._patience = math.inf if waiting else OFFER_SECONDS
        self._used = 0
        self._running: dict[str, _Running] = {}
        self._owners: dict[str, str] = {}  # of the items that run
        self._items: deque[tuple[str, str]] = deque()  # that wait, with their owners
        self._queue: list[_Waiting] = []
        self._offered = 0
        self._told = -math.inf
        self._peers: dict[str, _Peer] = {}  # with whom requests wait; whom to ask next is the first
        self._asked: _Asked | None = None
        self._number = 0
        self._mean: float | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def used(self) -> int:
        """How many slots are taken."""
        return self._used

    @property
    def asking(self) -> bool:
        """Whether requests of others may be on the way."""
        return self._asked is not None

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do; infinite when it has nothing."""
        times = [one.until for one in self._queue] if self._patience < math.inf else []
        if self._offered:
            times.append(self._told + TELL_SECONDS)
        if self._asked is not None:
            times.append(self._asked.at + ASK_SECONDS)
        return min(times, default=math.inf)

    def arrive(self, name: str, now: float, *, hops: int = 0, waited: float = 0.0) -> None:
        """A request came: from a caller, or (with ``hops``, how often it was handed over) from another actor."""
        if self._used < self.capacity:
            self._start(name, now)
        elif hops or len(self._queue) < self._bound:
            until = math.inf if hops else now + self._patience
            self._wait(_Waiting(name, now - waited, hops, until), now)
        else:
            self.commands.append(Refuse(name, self.retry_after))
        self._settle(now)

    def want(self, item: str, owner: str, now: float) -> None:
        """A request that runs has an item of work for a slot."""
        running = self._running.get(owner)
        if running is None:
            self.commands.append(Start(item))
        elif not running.items:
            self._start_item(item, owner)
        else:
            self._items.append((item, owner))
            self._settle(now)

    def leave(self, name: str, now: float) -> None:
        """A request, or an item of one, ended, ran or not."""
        if name in self._running:
            self._end(name, now)
        elif name in self._owners:
            self._end_item(name)
        else:
            self.withdraw(name)
        self._settle(now)

    def withdraw(self, name: str) -> None:
        """A request, or an item of one, waits no more; one that runs goes on."""
        for one in self._queue:
            if one.name == name:
                self._unqueue([one])
                return
        self._items = deque(pair for pair in self._items if pair[0] != name)

    def told(self, peer: str, now: float, *, draining: bool = False) -> None:
        """Another actor tells that requests wait there."""
        if not self.draining:
            self._peers[peer] = _Peer(now, draining)
            self._settle(now)

    def asked(self, peer: str, number: int, count: int) -> None:
        """Another actor asks for requests that wait here."""
        given = [one for one in self._queue if one.offered][: max(0, count)]
        self._unqueue(given)
        self.commands.append(Give(peer, number, tuple(one.name for one in given)))

    def given(self, number: int, count: int, now: float) -> None:
        """The answer to our question of that number, after the requests themselves; 0 if nobody was there to hear it."""
        asked = self._asked
        if asked is None or asked.number != number:
            return
        self._asked = None
        peer = self._peers.pop(asked.peer, None)
        if peer is not None and count >= asked.count:
            self._peers[asked.peer] = peer  # There may be more; others come first.
        self._settle(now)

    def drain(self, now: float) -> None:
        """Take nothing from others any more, and give them all that waits, if they have room for it."""
        self.draining = True
        self._peers.clear()
        if self._offered:
            self._tell(now)
        self._settle(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        if self._asked is not None and now >= self._asked.at + ASK_SECONDS:
            self.given(self._asked.number, 0, now)
        late = [one for one in self._queue if now >= one.until]
        self._unqueue(late)
        self.commands.extend(Refuse(one.name, self.retry_after) for one in late)
        if self._offered and now >= self._told + TELL_SECONDS:
            self._tell(now)

    @property
    def retry_after(self) -> float:
        """After how many seconds a request that came now might begin, as far as one can tell."""
        mean = 1.0 if self._mean is None else self._mean
        wait = (len(self._queue) + 1) / self.capacity * mean
        return min(max(wait, SHORTEST_RETRY), LONGEST_RETRY)

    def _settle(self, now: float) -> None:
        """Give what slots are free to those who wait: here, with others, and then to items of batches."""
        while self._queue and self._used < self.capacity:
            first = self._queue[0]
            self._unqueue([first])
            self._start(first.name, now)
        if self._asked is None and self._peers:
            self._ask(now)
        while self._items and self._asked is None and self._used < self.capacity:
            self._start_item(*self._items.popleft())

    def _ask(self, now: float) -> None:
        free = self.capacity - self._used
        room = max(0, self._bound - len(self._queue))
        for name, peer in list(self._peers.items()):
            if now - peer.heard > STALE_SECONDS:
                del self._peers[name]
                continue
            count = free + room if peer.draining else free
            if count > 0:
                self._number += 1
                self._asked = _Asked(name, self._number, count, now)
                self.commands.append(Ask(name, self._number, count))
                return

    def _start(self, name: str, now: float) -> None:
        self._running[name] = _Running(now)
        self._used += 1
        self.commands.append(Start(name))

    def _end(self, name: str, now: float) -> None:
        running = self._running.pop(name)
        self._used -= running.slots
        seconds = now - running.since
        mean = seconds if self._mean is None else self._mean
        self._mean = mean + RECENT * (seconds - mean)
        # What it leaves behind holds no slot of ours any more.
        self._owners = {item: owner for item, owner in self._owners.items() if owner != name}

    def _start_item(self, item: str, owner: str) -> None:
        running = self._running.get(owner)
        if running is not None:
            before = running.slots
            running.items += 1
            self._used += running.slots - before
            self._owners[item] = owner
        self.commands.append(Start(item))

    def _end_item(self, item: str) -> None:
        owner = self._owners.pop(item)
        running = self._running[owner]
        before = running.slots
        running.items -= 1
        self._used -= before - running.slots
        if not running.items:
            for pair in self._items:
                if pair[1] == owner:
                    self._items.remove(pair)
                    self._start_item(*pair)
                    return

    def _wait(self, one: _Waiting, now: float) -> None:
        insort(self._queue, one, key=lambda waiting: waiting.since)
        if one.offered:
            self._offered += 1
            if self._offered == 1:
                self._tell(now)

    def _unqueue(self, gone: list[_Waiting]) -> None:
        if gone:
            names = {one.name for one in gone}
            self._queue = [one for one in self._queue if one.name not in names]
            self._offered -= sum(one.offered for one in gone)

    def _tell(self, now: float) -> None:
        self._told = now
        self.commands.append(Tell(self.draining))
