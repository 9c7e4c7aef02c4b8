"""The machine of conversations: what happens next, by what has happened. No bus, no agents."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.groups import agent, group, human

from ayllu.actors.groups.conversation import Conversation
from ayllu.actors.groups.deciding import (
    KEPT_SECONDS,
    Action,
    Done,
    Forget,
    Listen,
    Wait,
    Withdraw,
    Write,
    next_action,
)
from ayllu.actors.groups.hearing import Outcome, closed, heard, posted, withdrawn
from ayllu.actors.groups.records import events_of, written
from ayllu.schemas import (
    AylluError,
    Conflict,
    ErrorInfo,
    GroupCreateRequest,
    GroupEnd,
    GroupEvent,
    GroupEventKind,
    GroupPass,
    GroupPolicy,
    GroupPostRequest,
    GroupRemark,
    GroupStatus,
    InvalidRequest,
    Limits,
    Spent,
)

K = GroupEventKind
ROUND_ROBIN = [agent("Ann"), human("Zoe"), agent("Bob")]
NO_WORDS = Outcome(Spent(), error=ErrorInfo("engine_error", "it broke"))
START = 1000.0


@dataclass
class Talk:
    """A conversation that is played by hand."""

    conversation: Conversation = field(default_factory=lambda: Conversation("b"))
    events: list[GroupEvent] = field(default_factory=list)
    now: float = START

    def happen(self, events: list[GroupEvent]) -> None:
        for event in events:
            self.conversation.apply(event)
        self.events += events

    def step(self) -> Action:
        """Write what is to be written, and return what is to be done besides."""
        while isinstance(action := next_action(self.conversation, self.now), Write):
            assert len(self.events) < 1000
            self.happen(action.events)
        return action

    def say(self, text: str, member: str | None = None, spent: Spent = Spent()) -> None:  # noqa: B008
        """Let an agent that is asked, the first one or one of a name, answer."""
        self.hear(Outcome(spent, text), member)

    def hear(self, outcome: Outcome, member: str | None = None) -> None:
        action = self.step()
        assert isinstance(action, Listen)
        ask = next(one for one in action.asks if member in (None, one.member))
        self.happen(heard(self.conversation, ask, outcome, self.now))

    def post(self, member: str, text: str, id_: str | None = None) -> GroupRemark:
        found = posted(self.conversation, GroupPostRequest("g", member, text, id_), self.now)
        if isinstance(found, GroupRemark):
            return found
        assert found.remark is not None
        self.happen([found])
        return found.remark

    def withdraw(self) -> None:
        action = self.step()
        assert isinstance(action, Withdraw)
        for ask in action.asks:
            self.happen(withdrawn(self.conversation, ask, NO_WORDS, self.now))

    def close(self, end: GroupEnd = GroupEnd.closed) -> None:
        self.happen(closed(self.conversation, end, "enough", self.now))

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(one.member, one.text) for one in self.conversation.remarks]

    @property
    def kinds(self) -> list[GroupEventKind]:
        return [event.kind for event in self.events]

    @property
    def end(self) -> GroupEnd | None:
        assert isinstance(self.step(), Done)
        return self.conversation.described().end


def begun(request: GroupCreateRequest) -> Talk:
    talk = Talk()
    talk.happen([talk.conversation.event(K.created, START, config=request)])
    return talk


@pytest.mark.requirement("group-machine")
def test_of_what_was_not_created_nothing_is_to_be_done() -> None:
    assert next_action(Conversation(), START) == Done()


@pytest.mark.requirement("group-round-robin")
def test_one_member_after_the_other() -> None:
    talk = begun(group("g", *ROUND_ROBIN, max_remarks=5))
    talk.say("one")
    assert talk.step() == Wait(None)
    state = talk.conversation.described()
    assert (state.status, state.waiting_for, state.until) == (GroupStatus.waiting, ["Zoe"], None)
    talk.post("Zoe", "two")
    talk.say("three")
    talk.say("four")
    talk.step()
    talk.post("Zoe", "five")
    assert talk.end is GroupEnd.max_remarks
    assert talk.said == [
        ("Ann", "one"),
        ("Zoe", "two"),
        ("Bob", "three"),
        ("Ann", "four"),
        ("Zoe", "five"),
    ]
    assert talk.kinds[:6] == [K.created, K.speaking, K.remark, K.waiting, K.remark, K.speaking]
    turns = [event.turn_id for event in talk.events if event.kind is K.speaking]
    assert turns == ["g.b.1", "g.b.2", "g.b.3"]


@pytest.mark.requirement("group-humans")
def test_a_human_who_is_late_is_passed_over() -> None:
    talk = begun(group("g", *ROUND_ROBIN, human_seconds=60.0, max_remarks=2))
    talk.say("one")
    assert talk.step() == Wait(START + 60)
    until = talk.conversation.described().until
    assert until is not None
    assert until.timestamp() == START + 60
    talk.now += 59.9
    assert isinstance(talk.step(), Wait)
    talk.now += 0.1
    talk.say("two")
    [passed] = [event for event in talk.events if event.kind is K.passed]
    assert (passed.member, passed.passed) == ("Zoe", GroupPass.late)
    assert talk.said == [("Ann", "one"), ("Bob", "two")]


@pytest.mark.requirement("group-humans")
def test_what_a_human_may_not_say() -> None:
    talk = begun(group("g", *ROUND_ROBIN, human("Yan"), max_remarks=3))
    with pytest.raises(Conflict, match="nobody has it yet"):
        talk.post("Zoe", "too early")
    talk.step()
    with pytest.raises(Conflict, match="it is Ann's") as early:
        talk.post("Zoe", "too early")
    assert early.value.details == {"floor": "Ann"}
    talk.say("one")
    talk.step()
    with pytest.raises(Conflict, match="it is Zoe's"):
        talk.post("Yan", "out of turn")
    for member, text, why in (
        ("Bob", "x", "an agent"),
        ("Eve", "x", "no member"),
        ("Zoe", " ", "empty"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            talk.post(member, text)
    first = talk.post("Zoe", "two", "m1")
    assert talk.post("Zoe", "two", "m1") == first
    with pytest.raises(Conflict, match="another remark"):
        talk.post("Zoe", "three", "m1")
    talk.say("three")
    with pytest.raises(Conflict, match="has ended"):
        talk.post("Zoe", "four")  # The runner has not noticed yet.
    assert talk.end is GroupEnd.max_remarks
    with pytest.raises(Conflict, match="has ended"):
        talk.post("Zoe", "four")
    assert talk.post("Zoe", "two", "m1") == first


@pytest.mark.requirement("group-round-robin")
@pytest.mark.parametrize(("by", "ends"), [([], "Ann"), (["Bob"], "Bob")])
def test_a_text_ends_it(by: list[str], ends: str) -> None:
    talk = begun(group("g", agent("Ann"), agent("Bob"), until="APPROVED", until_by=by))
    talk.say("It is APPROVED.")
    if by:
        talk.say("So it is approved.")
        talk.say("Well?")
        talk.say("APPROVED")
    assert talk.end is GroupEnd.said
    assert talk.conversation.described().reason == ends
    assert next_action(talk.conversation, talk.now) == Done()


@pytest.mark.requirement("group-round-robin")
def test_failed_and_empty_answers_are_passed_over_and_silence_ends_it() -> None:
    talk = begun(group("g", agent("Ann"), agent("Bob")))
    talk.hear(NO_WORDS)
    talk.say("hello")
    talk.say("  Ann: \n")
    talk.hear(NO_WORDS)
    assert talk.end is GroupEnd.silence
    passed = [(event.member, event.passed) for event in talk.events if event.kind is K.passed]
    assert passed == [
        ("Ann", GroupPass.failed),
        ("Ann", GroupPass.nothing),
        ("Bob", GroupPass.failed),
    ]
    assert [event.error for event in talk.events if event.error] == [NO_WORDS.error] * 2


MODERATED = group(
    "g",
    agent("Ann"),
    human("Zoe"),
    agent("Bob"),
    policy=GroupPolicy.moderator,
    moderator="mod",
    max_remarks=3,
)


@pytest.mark.requirement("group-moderator")
def test_a_moderator_names_who_speaks() -> None:
    talk = begun(MODERATED)
    talk.say("**Bob**.")
    talk.say("one")
    talk.say("zoe")
    assert talk.step() == Wait(None)
    talk.post("Zoe", "two")
    talk.say('"Bob"')
    talk.say("three")
    assert talk.end is GroupEnd.max_remarks
    assert talk.said == [("Bob", "one"), ("Zoe", "two"), ("Bob", "three")]
    assert talk.kinds[1:5] == [K.moderating, K.chosen, K.speaking, K.remark]
    moderating = talk.events[1]
    assert (moderating.member, moderating.agent_uuid) == (None, "mod")


@pytest.mark.requirement("group-moderator")
@pytest.mark.parametrize("answers", [["Bob speaks next.", "I"], ["", "Ann, Bob"]])
def test_a_moderator_that_names_nobody_is_asked_once_more(answers: list[str]) -> None:
    talk = begun(MODERATED)
    talk.say("Bob")
    talk.say("one")
    for answer in answers:
        talk.say(answer)
    talk.say("two")  # After Bob comes Ann.
    assert talk.said == [("Bob", "one"), ("Ann", "two")]
    kinds = talk.kinds[5:]
    assert kinds == [
        K.moderating,
        K.unclear,
        K.moderating,
        K.unclear,
        K.chosen,
        K.speaking,
        K.remark,
    ]
    assert [event.reason for event in talk.events if event.kind is K.unclear] == answers
    assert "one after the other" in talk.events[9].reason
    talk.hear(NO_WORDS)
    talk.say("Ann")
    talk.say("three")
    assert talk.end is GroupEnd.max_remarks


CLAIM = group("g", agent("Ann"), agent("Bob"), agent("Cho"), policy=GroupPolicy.first_to_claim)


@pytest.mark.requirement("group-first-to-claim")
def test_the_first_who_has_something_to_say_says_it() -> None:
    talk = begun(CLAIM)
    talk.say("pass.", "Ann")
    talk.say("one", "Cho")
    action = talk.step()
    assert isinstance(action, Withdraw)
    assert [ask.member for ask in action.asks] == ["Bob"]
    talk.withdraw()
    action = talk.step()
    assert isinstance(action, Listen)
    assert [ask.member for ask in action.asks] == ["Ann", "Bob"]
    talk.say("PASS", "Bob")
    talk.hear(NO_WORDS, "Ann")
    assert talk.end is GroupEnd.silence
    assert talk.said == [("Cho", "one")]


@pytest.mark.requirement("group-first-to-claim", "group-humans")
def test_humans_claim_by_posting() -> None:
    request = msgspec.structs.replace(
        CLAIM, members=[agent("Ann"), human("Zoe"), agent("Bob")], human_seconds=60.0
    )
    talk = begun(request)
    assert talk.post("Zoe", "zero").number == 1  # Before anybody is asked.
    talk.step()
    state = talk.conversation.described()
    assert (state.status, state.waiting_for) == (GroupStatus.running, ["Zoe"])
    assert [turn.member for turn in state.speaking] == ["Ann", "Bob"]
    talk.post("Zoe", "one")
    talk.withdraw()
    talk.say("two", "Bob")
    talk.withdraw()
    talk.say("PASS", "Ann")
    assert isinstance(talk.step(), Wait)
    assert talk.conversation.described().status is GroupStatus.waiting
    talk.post("Zoe", "three")
    talk.say("PASS", "Ann")
    talk.say("PASS", "Bob")
    talk.now += 60
    assert talk.end is GroupEnd.silence
    late = [event for event in talk.events if event.passed is GroupPass.late]
    assert [event.member for event in late] == [None]


@pytest.mark.requirement("group-first-to-claim")
def test_who_spoke_last_is_not_asked_and_humans_are_waited_for() -> None:
    members = [agent("Ann"), human("Zoe")]
    talk = begun(msgspec.structs.replace(CLAIM, members=members, max_remarks=3))
    talk.say("one")
    assert talk.step() == Wait(None)
    assert talk.kinds[-1] is K.waiting
    talk.post("Zoe", "two")
    talk.say("three")
    assert talk.end is GroupEnd.max_remarks


@pytest.mark.requirement("group-limits")
@pytest.mark.parametrize(
    ("limits", "which"),
    [
        (Limits(tokens=10), "tokens"),
        (Limits(steps=2), "steps"),
        (Limits(cost=1.0), "cost"),
        (Limits(seconds=20.0), "seconds"),
    ],
)
def test_limits_end_it(limits: Limits, which: str) -> None:
    talk = begun(group("g", agent("Ann"), agent("Bob"), limits=limits))
    talk.say("one", spent=Spent(1, 4, 0.5))
    talk.now += 10
    action = talk.step()
    assert isinstance(action, Listen)
    left = {"tokens": 6, "steps": 1, "cost": 0.5, "seconds": 10.0}
    assert action.asks[0].limits == Limits(**{which: left[which]})  # type: ignore[arg-type]
    assert action.until == (START + 20 if which == "seconds" else None)
    talk.say("two", spent=Spent(1, 6, 0.5))
    talk.now += 10
    assert talk.end is GroupEnd.limits
    assert talk.conversation.described().reason == which
    assert talk.conversation.described().spent == Spent(2, 10, 1.0)


@pytest.mark.requirement("group-limits")
def test_time_that_is_over_ends_turns_and_waits() -> None:
    talk = begun(group("g", agent("Ann"), human("Zoe"), limits=Limits(seconds=20.0)))
    talk.step()
    talk.now += 20
    talk.withdraw()
    assert talk.end is GroupEnd.limits
    assert talk.kinds[-3:] == [K.closing, K.withdrawn, K.ended]
    talk = begun(group("g", human("Zoe"), agent("Ann"), limits=Limits(seconds=20.0)))
    assert talk.step() == Wait(START + 20)


@pytest.mark.requirement("group-limits")
@pytest.mark.parametrize("limits", [Limits(tokens=2), Limits(steps=2)])
def test_what_is_left_is_shared_by_those_who_are_asked_at_once(limits: Limits) -> None:
    talk = begun(msgspec.structs.replace(CLAIM, limits=limits))
    assert talk.end is GroupEnd.limits
    talk = begun(msgspec.structs.replace(CLAIM, limits=Limits(tokens=10, steps=9, cost=6.0)))
    action = talk.step()
    assert isinstance(action, Listen)
    assert {ask.limits for ask in action.asks} == {Limits(tokens=3, steps=3, cost=2.0)}
    with_human = [*CLAIM.members, human("Zoe")]
    talk = begun(msgspec.structs.replace(CLAIM, members=with_human, limits=limits))
    assert talk.end is GroupEnd.limits


@pytest.mark.requirement("group-close")
def test_it_is_closed_at_once_or_when_its_turns_have_ended() -> None:
    talk = begun(group("g", *ROUND_ROBIN))
    talk.say("one")
    talk.step()
    talk.close()
    assert talk.kinds[-2:] == [K.closing, K.ended]
    assert talk.end is GroupEnd.closed
    known = len(talk.events)
    talk.close()
    assert len(talk.events) == known
    talk = begun(group("g", *ROUND_ROBIN))
    talk.step()
    talk.close()
    assert talk.kinds[-1] is K.closing
    talk.close()
    assert talk.kinds[-2:] == [K.speaking, K.closing]
    assert talk.conversation.described().waiting_for == []
    talk.withdraw()
    assert talk.end is GroupEnd.closed
    state = talk.conversation.described(remarks=False)
    assert (state.status, state.reason, state.remarks) == (GroupStatus.ended, "enough", [])


@pytest.mark.requirement("group-close")
def test_what_is_removed_is_forgotten_after_a_while() -> None:
    running = begun(group("g", *ROUND_ROBIN))
    running.step()
    running.close()
    running.close(GroupEnd.deleted)
    running.close(GroupEnd.deleted)
    running.withdraw()
    ended = begun(group("g", *ROUND_ROBIN))
    ended.close()
    ended.close(GroupEnd.deleted)
    for talk in (running, ended):
        assert talk.step() == Wait(START + KEPT_SECONDS)
        talk.now += KEPT_SECONDS
        assert talk.step() == Forget()
        assert talk.conversation.described().end is GroupEnd.closed
    assert running.kinds.count(K.closing) == 2


@pytest.mark.requirement("group-machine")
def test_a_closing_without_a_reason_of_its_own_is_a_closing() -> None:
    talk = begun(group("g", *ROUND_ROBIN))
    talk.happen([talk.conversation.event(K.closing, START)])
    assert talk.end is GroupEnd.closed


WORDS = st.sampled_from(["hello", "PASS", "Ann", "Bob", "Zoe", "", "APPROVED", "Ann: well"])


@pytest.mark.requirement("group-machine")
@given(
    policy=st.sampled_from(GroupPolicy),
    humans=st.sampled_from([None, 5.0]),
    tokens=st.sampled_from([None, 30]),
    data=st.data(),
)
def test_whatever_happens(
    policy: GroupPolicy, humans: float | None, tokens: int | None, data: st.DataObject
) -> None:
    """Indexes are contiguous, remarks are numbered, each turn ends once, and what is read again is the same state."""
    talk = begun(
        group(
            "g",
            *ROUND_ROBIN,
            policy=policy,
            moderator="mod" if policy is GroupPolicy.moderator else None,
            until="APPROVED",
            max_remarks=6,
            human_seconds=humans,
            limits=Limits(tokens=tokens),
        )
    )
    for _ in range(data.draw(st.integers(1, 25))):
        action = talk.step()
        if isinstance(action, Done):
            break
        if isinstance(action, Withdraw):
            talk.withdraw()
            continue
        what = data.draw(st.sampled_from(["answer", "answer", "fail", "post", "time", "close"]))
        if what == "post":
            try:
                talk.post("Zoe", data.draw(WORDS), data.draw(st.sampled_from([None, "a", "b"])))
            except AylluError as error:
                assert error.code in ("conflict", "invalid_request")
        elif what == "close":
            if data.draw(st.integers(0, 4)) == 0:
                talk.close()
        elif what == "time":
            talk.now += data.draw(st.floats(0.0, 10.0))
        elif isinstance(action, Listen):
            ask = data.draw(st.sampled_from(action.asks))
            outcome = Outcome(Spent(1, 3), data.draw(WORDS))
            if what == "fail":
                outcome = replace(NO_WORDS, spent=Spent(1, 1))
            talk.happen(heard(talk.conversation, ask, outcome, talk.now))
    check(talk)


def check(talk: Talk) -> None:
    assert [event.index for event in talk.events] == list(range(len(talk.events)))
    remarks = talk.conversation.remarks
    assert [remark.number for remark in remarks] == list(range(1, len(remarks) + 1))
    assert len(remarks) <= 6
    begun_turns = [one.turn_id for one in talk.events if one.kind in (K.speaking, K.moderating)]
    ended = [
        one.turn_id
        for one in talk.events
        if one.turn_id is not None and one.kind not in (K.speaking, K.moderating)
    ]
    assert len(set(begun_turns)) == len(begun_turns)
    assert len(set(ended)) == len(ended)
    assert set(begun_turns) == set(ended) | set(talk.conversation.open)
    if talk.conversation.ended is not None:
        assert talk.conversation.open == {}
        assert talk.kinds[-1] is K.ended
    again = Conversation("b")
    for event in talk.events:
        [read] = events_of(written([event]))
        again.apply(read)
    assert again.described() == talk.conversation.described()
    assert next_action(again, talk.now) == next_action(talk.conversation, talk.now)
