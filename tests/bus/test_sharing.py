"""Who runs what: fed with what happens and with times, never with a bus or a clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ayllu.bus.sharing import (
    ASK_SECONDS,
    LONGEST_RETRY,
    MOST_HANDOVERS,
    OFFER_SECONDS,
    SHORTEST_RETRY,
    STALE_SECONDS,
    TELL_SECONDS,
    Ask,
    Command,
    Give,
    Refuse,
    Sharing,
    Start,
    Tell,
)


def done(sharing: Sharing) -> list[Command]:
    """Return what is to be done, and take it out."""
    commands = list(sharing.commands)
    sharing.commands.clear()
    return commands


def full(*, capacity: int = 1, waiting: int = 2) -> Sharing:
    """Return an actor all of whose slots are taken, by the requests r0, r1, ..."""
    sharing = Sharing(capacity, waiting)
    for number in range(capacity):
        sharing.arrive(f"r{number}", 0.0)
    assert done(sharing) == [Start(f"r{number}") for number in range(capacity)]
    return sharing


@pytest.mark.requirement("share-by-capacity")
def test_what_has_a_slot_begins_and_nothing_is_said() -> None:
    sharing = full(capacity=2)
    assert sharing.used == 2
    assert sharing.next_tick == math.inf
    sharing.leave("r0", 1.0)
    sharing.arrive("a", 1.0)
    assert done(sharing) == [Start("a")]


@pytest.mark.requirement("share-by-capacity", "overloaded-with-a-hint")
def test_what_has_none_waits_in_order_and_the_rest_is_refused() -> None:
    sharing = full()
    for name in "abc":
        sharing.arrive(name, 1.0)
    tell, refuse = done(sharing)
    assert tell == Tell(False)
    assert isinstance(refuse, Refuse)
    assert refuse.name == "c"
    assert sharing.waiting == 2
    sharing.leave("r0", 2.0)
    assert done(sharing) == [Start("a")]
    sharing.leave("a", 3.0)
    assert done(sharing) == [Start("b")]


@pytest.mark.requirement("overloaded-with-a-hint")
def test_the_hint_follows_what_requests_take() -> None:
    sharing = Sharing(2, 10)
    assert sharing.retry_after == SHORTEST_RETRY  # nothing is known: a second each, two at once
    sharing.arrive("a", 0.0)
    sharing.leave("a", 8.0)
    assert sharing.retry_after == 4.0
    for name in "bcdef":
        sharing.arrive(name, 8.0)
    assert sharing.retry_after == 16.0
    sharing.leave("b", 12.0)
    assert sharing.retry_after == pytest.approx(7.6 * 3 / 2)
    sharing.leave("c", 10_000.0)
    assert sharing.retry_after == LONGEST_RETRY


@pytest.mark.requirement("share-by-capacity")
def test_one_that_waits_may_leave_and_a_stranger_too() -> None:
    sharing = full()
    sharing.arrive("a", 1.0)
    sharing.arrive("b", 1.0)
    sharing.leave("a", 2.0)
    sharing.leave("nobody", 2.0)
    sharing.withdraw("nobody")
    assert sharing.waiting == 1
    done(sharing)
    sharing.leave("r0", 2.0)
    assert done(sharing) == [Start("b")]


@pytest.mark.requirement("share-hand-over")
def test_the_oldest_are_handed_over_to_whoever_asks() -> None:
    sharing = full(waiting=5)
    for name in "abc":
        sharing.arrive(name, 1.0)
    done(sharing)
    sharing.asked("peer", 7, 2)
    assert done(sharing) == [Give("peer", 7, ("a", "b"))]
    sharing.asked("peer", 8, -3)
    assert done(sharing) == [Give("peer", 8, ())]
    sharing.asked("peer", 9, 1000)
    assert done(sharing) == [Give("peer", 9, ("c",))]
    # What was given is somebody else's.
    assert sharing.waiting == 0
    sharing.leave("a", 2.0)
    sharing.leave("r0", 2.0)
    assert done(sharing) == []


@pytest.mark.requirement("share-hand-over")
def test_an_actor_with_free_slots_asks_for_as_many_as_it_can_run() -> None:
    sharing = Sharing(3, 5)
    sharing.arrive("own", 0.0)
    done(sharing)
    sharing.told("peer", 0.0)
    assert done(sharing) == [Ask("peer", 1, 2)]
    assert sharing.asking
    sharing.told("other", 0.0)  # One question at a time.
    assert done(sharing) == []
    sharing.arrive("a", 0.0, hops=1)
    sharing.given(1, 1, 0.0)
    # It gave all it had; the other one is asked for the slot that is left.
    assert done(sharing) == [Start("a"), Ask("other", 2, 1)]
    sharing.given(1, 1, 0.0)  # an old answer
    assert sharing.asking
    sharing.arrive("b", 0.0, hops=1)
    sharing.given(2, 1, 0.0)
    assert done(sharing) == [Start("b")]
    sharing.leave("a", 0.1)  # It gave as many as it was asked for: there may be more.
    assert done(sharing) == [Ask("other", 3, 1)]


@pytest.mark.requirement("share-hand-over")
def test_peers_are_asked_in_turn() -> None:
    sharing = full()
    sharing.told("a", 0.0)
    sharing.told("b", 0.0)
    asked = []
    for number in range(1, 5):
        sharing.leave(f"r{number - 1}", 0.0)
        [ask] = done(sharing)
        assert isinstance(ask, Ask)
        asked.append(ask.peer)
        sharing.arrive(f"r{number}", 0.0, hops=1)
        sharing.given(ask.number, 1, 0.0)
        done(sharing)
    assert asked == ["a", "b", "a", "b"]


@pytest.mark.requirement("share-hand-over")
def test_a_peer_that_says_nothing_is_not_asked_for_ever() -> None:
    sharing = Sharing(1, 5)
    sharing.told("dead", 0.0)
    sharing.told("stale", 0.0)
    assert done(sharing) == [Ask("dead", 1, 1)]
    assert sharing.next_tick == ASK_SECONDS
    sharing.tick(ASK_SECONDS / 2)
    assert done(sharing) == []
    sharing.tick(ASK_SECONDS)
    assert done(sharing) == [Ask("stale", 2, 1)]
    sharing.told("dead", STALE_SECONDS + 1)
    sharing.given(2, 1, STALE_SECONDS + 1)
    assert done(sharing) == [Ask("dead", 3, 1)]
    sharing.given(3, 0, STALE_SECONDS + 1)  # Meanwhile nothing was heard of the other one.
    assert done(sharing) == []


@pytest.mark.requirement("share-hand-over")
def test_it_is_told_again_while_requests_wait() -> None:
    sharing = full()
    sharing.arrive("a", 1.0)
    sharing.arrive("b", 1.5)
    assert done(sharing) == [Tell(False)]
    assert sharing.next_tick == 1.0 + TELL_SECONDS
    sharing.tick(1.0 + TELL_SECONDS)
    assert done(sharing) == [Tell(False)]
    sharing.asked("peer", 1, 2)
    done(sharing)
    sharing.tick(10.0)
    assert done(sharing) == []
    sharing.arrive("c", 10.0)
    assert done(sharing) == [Tell(False)]


@pytest.mark.requirement("share-bounded-hops")
def test_a_request_is_handed_over_a_bounded_number_of_times() -> None:
    sharing = full()
    sharing.arrive("tired", 1.0, hops=MOST_HANDOVERS)
    assert done(sharing) == []  # of no interest to others
    sharing.asked("peer", 1, 1)
    assert done(sharing) == [Give("peer", 1, ())]
    sharing.leave("r0", 2.0)
    assert done(sharing) == [Start("tired")]


@pytest.mark.requirement("share-hand-over")
def test_what_was_handed_over_waits_by_its_age_and_is_never_refused() -> None:
    sharing = full(waiting=1)
    sharing.arrive("own", 10.0)
    sharing.arrive("older", 11.0, hops=1, waited=5.0)
    sharing.arrive("younger", 11.0, hops=1, waited=0.5)
    assert sharing.waiting == 3
    done(sharing)
    order = []
    running = "r0"
    for _ in range(3):
        sharing.leave(running, 12.0)
        [start] = done(sharing)
        assert isinstance(start, Start)
        running = start.name
        order.append(running)
    assert order == ["older", "own", "younger"]


@pytest.mark.requirement("overloaded-with-a-hint")
def test_where_none_may_wait_a_request_is_offered_to_others_for_a_moment() -> None:
    sharing = full(waiting=0)
    sharing.arrive("a", 1.0)
    sharing.arrive("b", 1.0)
    tell, refuse = done(sharing)
    assert tell == Tell(False)
    assert isinstance(refuse, Refuse)
    assert refuse.name == "b"
    assert sharing.next_tick == 1.0 + OFFER_SECONDS
    sharing.tick(1.0 + OFFER_SECONDS)
    [refuse] = done(sharing)
    assert isinstance(refuse, Refuse)
    assert refuse.name == "a"
    sharing.arrive("handed", 2.0, hops=1)
    done(sharing)
    sharing.tick(100.0)
    assert done(sharing) == [Tell(False)]


@pytest.mark.requirement("drain-hands-over")
def test_one_that_drains_asks_for_nothing_and_gives_all() -> None:
    sharing = full(waiting=5)
    sharing.told("peer", 0.0)
    sharing.arrive("a", 0.0)
    done(sharing)
    sharing.drain(0.1)
    assert done(sharing) == [Tell(True)]
    sharing.told("peer", 0.2)
    sharing.asked("peer", 1, 3)
    assert done(sharing) == [Give("peer", 1, ("a",))]
    sharing.leave("r0", 0.3)
    assert done(sharing) == []
    sharing.arrive("late", 0.3)
    assert done(sharing) == [Start("late")]
    idle = Sharing(1, 1)
    idle.drain(0.0)
    assert done(idle) == []


@pytest.mark.requirement("drain-hands-over")
def test_what_waits_with_one_that_drains_is_taken_to_wait_elsewhere() -> None:
    sharing = full(capacity=2, waiting=3)
    sharing.arrive("a", 0.0)
    sharing.told("busy", 0.0)
    done(sharing)
    sharing.told("drains", 0.0, draining=True)
    assert done(sharing) == [Ask("drains", 1, 2)]
    sharing.arrive("b", 0.0, hops=1)
    sharing.arrive("c", 0.0, hops=1)
    sharing.given(1, 2, 0.0)
    assert done(sharing) == []  # There is no more room.
    sharing.leave("r0", 0.1)
    assert done(sharing) == [Start("a"), Ask("drains", 2, 1)]


@pytest.mark.requirement("share-batches")
def test_a_batch_has_a_slot_of_its_own_and_those_that_nobody_wants() -> None:
    sharing = Sharing(3, 5)
    sharing.arrive("batch", 0.0)
    for item in ("i1", "i2", "i3", "i4"):
        sharing.want(item, "batch", 0.0)
    assert done(sharing) == [Start("batch"), Start("i1"), Start("i2"), Start("i3")]
    assert sharing.used == 3
    sharing.arrive("chat", 0.0)
    done(sharing)
    sharing.leave("i1", 1.0)
    assert done(sharing) == [Start("chat")]
    sharing.leave("i2", 1.0)
    assert done(sharing) == [Start("i4")]
    sharing.leave("i3", 1.0)
    assert sharing.used == 2
    sharing.leave("i4", 1.0)
    assert sharing.used == 2  # The batch keeps its own one.
    sharing.leave("batch", 1.0)
    sharing.leave("chat", 1.0)
    assert sharing.used == 0


@pytest.mark.requirement("share-batches")
def test_batches_go_on_in_their_own_slots_however_many_there_are() -> None:
    sharing = Sharing(2, 5)
    for batch in ("x", "y"):
        sharing.arrive(batch, 0.0)
    for item in ("x1", "y1", "x2", "y2"):
        sharing.want(item, item[0], 0.0)
    sharing.arrive("chat", 0.0)
    started = done(sharing)
    assert [Start("x1"), Start("y1")] == started[2:4]
    sharing.leave("y1", 1.0)
    assert done(sharing) == [Start("y2")]
    sharing.leave("x2", 1.0)  # It was given up.
    sharing.leave("x1", 1.0)
    assert done(sharing) == []
    sharing.leave("x", 1.0)
    assert done(sharing) == [Start("chat")]


@pytest.mark.requirement("share-batches")
def test_items_of_a_request_that_ended_hold_nothing() -> None:
    sharing = Sharing(2, 5)
    sharing.arrive("x", 0.0)
    for item in ("x1", "x2", "x3"):
        sharing.want(item, "x", 0.0)
    done(sharing)
    sharing.leave("x", 1.0)
    assert sharing.used == 0
    assert done(sharing) == [Start("x3")]
    for item in ("x1", "x2", "x3"):
        sharing.leave(item, 1.0)
    sharing.want("x4", "x", 1.0)
    assert done(sharing) == [Start("x4")]
    assert sharing.used == 0


@pytest.mark.requirement("share-batches")
def test_requests_elsewhere_come_before_items_here() -> None:
    sharing = Sharing(2, 5)
    sharing.arrive("x", 0.0)
    sharing.want("x1", "x", 0.0)
    sharing.want("x2", "x", 0.0)
    sharing.want("x3", "x", 0.0)
    sharing.told("peer", 0.0)
    assert done(sharing) == [Start("x"), Start("x1"), Start("x2")]
    sharing.leave("x2", 1.0)
    assert done(sharing) == [Ask("peer", 1, 1)]
    sharing.given(1, 0, 1.0)
    assert done(sharing) == [Start("x3")]


@dataclass
class Actor:
    """An actor of the model, with its inboxes."""

    name: str
    sharing: Sharing
    running: set[str] = field(default_factory=set)
    waiting: dict[str, tuple[int, float]] = field(default_factory=dict)  # hops, since
    items: dict[str, str] = field(default_factory=dict)  # that run or wait, and their requests
    started: set[str] = field(default_factory=set)
    alive: bool = True


Sent = tuple[str, tuple[object, ...]]


class SharingMachine(RuleBasedStateMachine):
    """Some actors and the messages between them, which keep their order per sender and receiver, and nothing else."""

    @initialize(
        capacities=st.lists(st.integers(1, 3), min_size=2, max_size=4), waiting=st.integers(0, 4)
    )
    def start(self, capacities: list[int], waiting: int) -> None:
        self.now = 0.0
        self.next = self.next_item = 0
        self.bound = waiting
        self.actors = {
            f"actor{n}": Actor(f"actor{n}", Sharing(capacity, waiting))
            for n, capacity in enumerate(capacities)
        }
        self.links: dict[tuple[str, str], deque[Sent]] = {}
        self.over: set[str] = set()

    def pick(self, number: int, *, serving: bool = True) -> Actor:
        actors = [
            a for a in self.actors.values() if a.alive and not (serving and a.sharing.draining)
        ]
        return actors[number % len(actors)]

    def send(self, source: Actor, target: str, kind: str, *content: object) -> None:
        self.links.setdefault((source.name, target), deque()).append((kind, content))

    def act(self, actor: Actor) -> None:
        commands = actor.sharing.commands
        while commands:
            match commands.popleft():
                case Start(name) if name in actor.items:
                    actor.started.add(name)
                case Start(name):
                    assert name not in actor.running
                    actor.waiting.pop(name, None)
                    actor.running.add(name)
                case Refuse(name, seconds):
                    assert SHORTEST_RETRY <= seconds <= LONGEST_RETRY
                    actor.waiting.pop(name, None)
                    self.over.add(name)
                case Tell(draining):
                    for other in self.actors.values():
                        if other is not actor:
                            self.send(actor, other.name, "told", draining)
                case Ask(peer, number, count):
                    assert count > 0
                    self.send(actor, peer, "ask", number, count)
                case Give(peer, number, names):
                    for name in names:
                        hops, since = actor.waiting.pop(name)
                        assert hops < MOST_HANDOVERS
                        self.send(actor, peer, "take", name, hops + 1, self.now - since)
                    self.send(actor, peer, "given", number, len(names))

    def take(self, actor: Actor, name: str, hops: int, waited: float) -> None:
        actor.waiting[name] = hops, self.now - waited
        actor.sharing.arrive(name, self.now, hops=hops, waited=waited)
        self.act(actor)

    def deliver(self, link: tuple[str, str]) -> None:
        kind, content = self.links[link].popleft()
        source, actor = self.actors[link[0]], self.actors[link[1]]
        if not actor.alive:
            # The bus tells the sender so.
            if kind == "take" and source.alive:
                self.take(source, *content)  # type: ignore[arg-type]
            elif kind == "take":
                self.over.add(str(content[0]))
            elif kind == "ask" and source.alive:
                source.sharing.given(content[0], 0, self.now)  # type: ignore[arg-type]
                self.act(source)
            return
        if kind == "told":
            actor.sharing.told(source.name, self.now, draining=bool(content[0]))
        elif kind == "ask":
            actor.sharing.asked(source.name, *content)  # type: ignore[arg-type]
        elif kind == "take":
            self.take(actor, *content)  # type: ignore[arg-type]
        else:
            number, count = content
            actor.sharing.given(number, count, self.now)  # type: ignore[arg-type]
        self.act(actor)

    def deliver_all(self) -> None:
        for _ in range(10_000):
            links = [link for link, waiting in self.links.items() if waiting]
            if not links:
                return
            self.deliver(links[0])
        raise AssertionError("the actors talk for ever")

    @rule(number=st.integers(0, 3), count=st.integers(1, 3))
    def arrive(self, number: int, count: int) -> None:
        actor = self.pick(number)
        for _ in range(count):
            self.next += 1
            name = f"r{self.next}"
            actor.waiting[name] = 0, self.now
            actor.sharing.arrive(name, self.now)
            self.act(actor)

    @rule(number=st.integers(0, 3))
    def deliver_one(self, number: int) -> None:
        links = [link for link, waiting in self.links.items() if waiting]
        if links:
            self.deliver(links[number % len(links)])

    @rule(number=st.integers(0, 3), which=st.integers(0, 20), waits=st.booleans())
    def end(self, number: int, which: int, waits: bool) -> None:
        actor = self.pick(number, serving=False)
        names = sorted(actor.waiting if waits else actor.running)
        if names:
            name = names[which % len(names)]
            for item in [item for item, owner in actor.items.items() if owner == name]:
                self.end_item(actor, item)
            actor.waiting.pop(name, None)
            actor.running.discard(name)
            self.over.add(name)
            actor.sharing.leave(name, self.now)
            self.act(actor)

    @rule(number=st.integers(0, 3), which=st.integers(0, 20), count=st.integers(1, 3))
    def want_items(self, number: int, which: int, count: int) -> None:
        actor = self.pick(number, serving=False)
        names = sorted(actor.running)
        for _ in range(count if names else 0):
            self.next_item += 1
            item = f"item{self.next_item}"
            actor.items[item] = names[which % len(names)]
            actor.sharing.want(item, names[which % len(names)], self.now)
            self.act(actor)

    @rule(number=st.integers(0, 3), which=st.integers(0, 20))
    def end_one_item(self, number: int, which: int) -> None:
        actor = self.pick(number, serving=False)
        names = sorted(actor.items)
        if names:
            self.end_item(actor, names[which % len(names)])

    def end_item(self, actor: Actor, item: str) -> None:
        del actor.items[item]
        actor.started.discard(item)
        actor.sharing.leave(item, self.now)
        self.act(actor)

    @rule()
    def a_moment_passes(self) -> None:
        self.now += 0.001

    @property
    def serving(self) -> int:
        return sum(a.alive and not a.sharing.draining for a in self.actors.values())

    @rule(number=st.integers(0, 3))
    def drain(self, number: int) -> None:
        actor = self.pick(number)
        if self.serving > 1:
            actor.sharing.drain(self.now)
            self.act(actor)

    @rule()
    def settle(self) -> None:
        self.deliver_all()
        self.check_work_conserving()

    def check_work_conserving(self) -> None:
        """No request waits that somebody has a free slot for; no item waits beside a free slot."""
        alive = [actor for actor in self.actors.values() if actor.alive]
        for actor in alive:
            free = actor.sharing.used < actor.sharing.capacity
            assert not (free and actor.waiting)
            assert not (free and actor.items.keys() - actor.started)
            if free and not actor.sharing.draining:
                for other in alive:
                    assert not [
                        n for n, (hops, _) in other.waiting.items() if hops < MOST_HANDOVERS
                    ]

    @invariant()
    def nothing_is_lost_or_run_twice(self) -> None:
        places = [
            name for a in self.actors.values() if a.alive for name in (*a.running, *a.waiting)
        ]
        for link in self.links.values():
            places += [str(content[0]) for kind, content in link if kind == "take"]
        assert len(places) == len(set(places))
        assert {*places, *self.over} == {f"r{n}" for n in range(1, self.next + 1)}
        assert not set(places) & self.over

    @invariant()
    def bounds_hold(self) -> None:
        for actor in self.actors.values():
            if not actor.alive:
                continue
            sharing = actor.sharing
            assert sharing.waiting == len(actor.waiting)
            assert sharing.used <= sharing.capacity
            held = {name: max(1, self.items_of(actor, name)) for name in actor.running}
            assert sharing.used == sum(held.values())
            own = [hops for hops, _ in actor.waiting.values() if hops == 0]
            assert len(own) <= (self.bound or sharing.capacity)
            assert all(hops <= MOST_HANDOVERS for hops, _ in actor.waiting.values())

    def items_of(self, actor: Actor, name: str) -> int:
        return sum(actor.items[item] == name for item in actor.started)


class UnreliableMachine(SharingMachine):
    """The same where time passes, words are lost, and actors die: it settles a little later."""

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.5, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for actor in self.actors.values():
            if actor.alive:
                actor.sharing.tick(self.now)
                self.act(actor)

    @rule(number=st.integers(0, 11))
    def a_word_is_lost(self, number: int) -> None:
        links = [waiting for waiting in self.links.values() if waiting and waiting[0][0] != "take"]
        if links:
            links[number % len(links)].popleft()

    @rule(number=st.integers(0, 3))
    def die(self, number: int) -> None:
        if self.serving > 1:
            actor = self.pick(number)
            actor.alive = False
            self.over |= {*actor.running, *actor.waiting}

    @rule()
    def settle(self) -> None:
        for _ in range(4):
            self.deliver_all()
            self.time_passes(TELL_SECONDS)
        self.deliver_all()
        self.check_work_conserving()


TestSharing = SharingMachine.TestCase
TestSharing.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSharing.pytestmark = [  # type: ignore[attr-defined]
    pytest.mark.requirement("share-work-conserving", "share-exactly-one")
]
TestUnreliable = UnreliableMachine.TestCase
TestUnreliable.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestUnreliable.pytestmark = [  # type: ignore[attr-defined]
    pytest.mark.requirement("share-work-conserving")
]
