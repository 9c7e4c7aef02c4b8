"""What happens next in a conversation: decided by what has happened, and by the time. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from ...schemas import (
    GroupEnd,
    GroupEvent,
    GroupEventKind,
    GroupMember,
    GroupPass,
    GroupPolicy,
    Limits,
    MemberKind,
)
from .conversation import Ask, Conversation, moment

KEPT_SECONDS = 60.0
"""How long the journal of a group that was removed stays, for those who follow it to its end."""
TRIES = 2
"""How often the moderator is asked who speaks next."""


@dataclass(frozen=True, slots=True)
class Write:
    """Events happen, all of them or none."""

    events: list[GroupEvent]


@dataclass(frozen=True, slots=True)
class Listen:
    """Turns are awaited, until a time (in seconds since the epoch) if any; the first that ends is heard."""

    asks: list[Ask]
    until: float | None


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Turns that count no more are cancelled."""

    asks: list[Ask]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is to be done until a time, or until something happens."""

    until: float | None


@dataclass(frozen=True, slots=True)
class Forget:
    """The group was removed long ago: its journal may go."""


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is to be done any more."""


Action = Write | Listen | Withdraw | Wait | Forget | Done


def next_action(conversation: Conversation, at: float) -> Action:
    """Return what is to be done at a time; events that it writes happen then."""
    if stale := conversation.stale:
        return Withdraw(stale)
    if conversation.config is None or conversation.ended is not None:
        return _after_the_end(conversation, at)
    if (over := over_at(conversation, at)) is not None:
        kind = GroupEventKind.closing if conversation.open else GroupEventKind.ended
        end, reason = over
        return Write([conversation.event(kind, at, end=end, reason=reason)])
    if conversation.open:
        return Listen(list(conversation.open.values()), _deadline(conversation))
    if conversation.floor is not None:
        return _floor_given(conversation, at)
    return _next_speaker(conversation, at)


def _after_the_end(conversation: Conversation, at: float) -> Action:
    """Forget what is to be forgotten; of a group that was forgotten nothing is left to do."""
    if conversation.deleted is None:
        return Done()
    goes = conversation.deleted + KEPT_SECONDS
    return Forget() if at >= goes else Wait(goes)


def over_at(conversation: Conversation, at: float) -> tuple[GroupEnd, str] | None:
    """Return why a conversation that has not ended must end now, if it must."""
    closing, group, remarks = conversation.closing, conversation.group, conversation.remarks
    if closing is not None:
        return closing.end or GroupEnd.closed, closing.reason
    if group.until is not None and remarks:
        last = remarks[-1]
        if group.until in last.text and (not group.until_by or last.member in group.until_by):
            return GroupEnd.said, last.member
    if len(remarks) >= group.max_remarks:
        return GroupEnd.max_remarks, ""
    if (short := _short_of(conversation, at)) is not None:
        return GroupEnd.limits, short
    if conversation.silent or conversation.passes >= len(conversation.members):
        return GroupEnd.silence, ""
    return None


def _short_of(conversation: Conversation, at: float) -> str | None:
    """Return which limit is reached."""
    left = left_at(conversation, at)
    for name in ("tokens", "steps", "cost", "seconds"):
        value = getattr(left, name)
        if value is not None and value <= 0:
            return name
    return None


def left_at(conversation: Conversation, at: float) -> Limits:
    """Return what the turns that have ended leave of the limits; the seconds may be none, which is no limit of a turn."""
    limits, spent = conversation.group.limits, conversation.spent
    deadline = _deadline(conversation)
    return msgspec.structs.replace(
        limits,
        tokens=None if limits.tokens is None else limits.tokens - spent.tokens,
        steps=None if limits.steps is None else limits.steps - spent.steps,
        cost=None if limits.cost is None else limits.cost - spent.cost,
        seconds=None if deadline is None else deadline - at,
    )


def share_of(left: Limits, turns: int) -> Limits | None:
    """Return what each of so many turns that begin now may take; None where it is nothing for some."""
    tokens = None if left.tokens is None else left.tokens // turns
    steps = None if left.steps is None else left.steps // turns
    if tokens == 0 or steps == 0:
        return None
    cost = None if left.cost is None else left.cost / turns
    return msgspec.structs.replace(left, tokens=tokens, steps=steps, cost=cost)


def _deadline(conversation: Conversation) -> float | None:
    seconds = conversation.group.limits.seconds
    return None if seconds is None else conversation.created + seconds


def _floor_given(conversation: Conversation, at: float) -> Action:
    """Wait for a human, or pass over it; agents have answered already."""
    floor = conversation.floor
    assert floor is not None
    if floor.until is not None and at >= floor.until:
        passed = conversation.event(
            GroupEventKind.passed, at, member=floor.member, passed=GroupPass.late
        )
        return Write([passed])
    ends = [one for one in (floor.until, _deadline(conversation)) if one is not None]
    return Wait(min(ends, default=None))


def _next_speaker(conversation: Conversation, at: float) -> Action:
    if conversation.claimed:
        return _offer(conversation, at)
    if conversation.group.policy is GroupPolicy.round_robin:
        return _give_floor(conversation, conversation.members[conversation.place], at)
    named = conversation.member(conversation.chosen) if conversation.chosen is not None else None
    if named is not None:
        return _give_floor(conversation, named, at)
    if conversation.unclear < TRIES:
        agent = conversation.group.moderator or ""
        return _ask(conversation, [(agent, None)], at)
    name = conversation.members[conversation.place].name
    why = "the moderator named nobody: they speak one after the other"
    return Write([conversation.event(GroupEventKind.chosen, at, member=name, reason=why)])


def _give_floor(conversation: Conversation, member: GroupMember, at: float) -> Action:
    if member.kind is MemberKind.agent:
        return _ask(conversation, [(member.agent_id or "", member.name)], at)
    return Write([_waiting(conversation, member.name, at)])


def _offer(conversation: Conversation, at: float) -> Action:
    """Ask everybody who did not speak last."""
    asks = [
        (one.agent_id or "", one.name)
        for one in conversation.members
        if one.kind is MemberKind.agent
        and one.name != conversation.speaker
        and one.name not in conversation.called
    ]
    if asks:
        action = _ask(conversation, asks, at)
        if not conversation.humans or action.events[0].kind is not GroupEventKind.speaking:
            return action
        waiting = _waiting(conversation, None, at)
        waiting = msgspec.structs.replace(waiting, index=action.events[-1].index + 1)
        return replace(action, events=[*action.events, waiting])
    if conversation.humans:
        return Write([_waiting(conversation, None, at)])
    # All agents were asked, and nobody else is there.
    return Write([conversation.event(GroupEventKind.ended, at, end=GroupEnd.silence)])


def _ask(conversation: Conversation, asks: Sequence[tuple[str, str | None]], at: float) -> Write:
    """Let agents speak, each in a turn of its own, or end where the limits leave nothing for that."""
    share = share_of(left_at(conversation, at), len(asks))
    if share is None:
        why = "too little is left"
        ended = conversation.event(GroupEventKind.ended, at, end=GroupEnd.limits, reason=why)
        return Write([ended])
    group, first = conversation.group, conversation.asked + 1
    return Write(
        [
            GroupEvent(
                index=conversation.index + number,
                at=moment(at),
                kind=GroupEventKind.moderating if member is None else GroupEventKind.speaking,
                member=member,
                agent_uuid=agent,
                turn_id=turn_of(group.uuid, conversation.born, first + number),
                limits=share,
            )
            for number, (agent, member) in enumerate(asks)
        ]
    )


def turn_of(group: str, born: str, number: int) -> str:
    """Return the id of a turn that a group asks for."""
    return f"{group}.{born}.{number}"


def _waiting(conversation: Conversation, member: str | None, at: float) -> GroupEvent:
    seconds = conversation.group.human_seconds
    until = moment(at + seconds) if seconds is not None else None
    return conversation.event(GroupEventKind.waiting, at, member=member, until=until)
