"""A conversation as its events tell it. No I/O: the same events give the same state, for runners, readers and successors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...schemas import (
    Group,
    GroupCreateRequest,
    GroupEnd,
    GroupEvent,
    GroupEventKind,
    GroupMember,
    GroupPolicy,
    GroupRemark,
    GroupStatus,
    GroupTurn,
    Limits,
    MemberKind,
    Spent,
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A turn of an agent that runs for a group.

    Attributes:
        turn: the turn.
        agent: whose it is.
        member: who speaks; None where the moderator is asked.
        limits: what the turn may take.
        round: what it was asked in.
    """

    turn: str
    agent: str
    member: str | None
    limits: Limits
    round: int


@dataclass(frozen=True, slots=True)
class Floor:
    """Who may speak: a member, or any human where none is named; a human until a time, in seconds since the epoch."""

    member: str | None
    until: float | None = None


class Conversation:
    """The state of a group. A *round* is all that happens until somebody speaks, or is passed over.

    Args:
        born: tells the group from others that had its name before; part of its turns' ids.

    Attributes:
        config: the group; what it was created with.
        created: when, in seconds since the epoch.
        index: that of the next event.
        remarks: what was said.
        posts: the remarks of humans by the clients' ids.
        open: the turns that run for it, by their ids; those of an earlier round count no more.
        asked: how many turns were begun for it.
        round: how many rounds there were.
        floor: who may speak in this round.
        called: the members that were asked in this round.
        place: the place of the member whose turn it is, one after the other.
        passes: how many rounds in a row have passed without a remark.
        silent: whether everybody was asked in this round, and nobody speaks.
        chosen: whom the moderator named.
        unclear: how often it named nobody in this round.
        spent: what the turns that have ended have taken.
        closing: why the conversation is to end.
        deleted: when the group was removed.
        ended: the event that says that the conversation has ended.
    """

    def __init__(self, born: str = "") -> None:
        self.born = born
        self.config: GroupCreateRequest | None = None
        self.created = 0.0
        self.index = 0
        self.remarks: list[GroupRemark] = []
        self.posts: dict[str, GroupRemark] = {}
        self.open: dict[str, Ask] = {}
        self.asked = 0
        self.round = 0
        self.floor: Floor | None = None
        self.called: set[str] = set()
        self.place = 0
        self.passes = 0
        self.silent = False
        self.chosen: str | None = None
        self.unclear = 0
        self.spent = Spent()
        self.closing: GroupEvent | None = None
        self.deleted: float | None = None
        self.ended: GroupEvent | None = None

    @property
    def group(self) -> GroupCreateRequest:
        """What the group was created with; it has been."""
        assert self.config is not None
        return self.config

    @property
    def members(self) -> list[GroupMember]:
        """The members, in their order."""
        return self.group.members

    @property
    def humans(self) -> list[str]:
        """The names of the human members."""
        return [one.name for one in self.members if one.kind is MemberKind.human]

    @property
    def speaker(self) -> str | None:
        """Who spoke last."""
        return self.remarks[-1].member if self.remarks else None

    @property
    def claimed(self) -> bool:
        """Whether the first who has something to say says it."""
        return self.group.policy is GroupPolicy.first_to_claim

    @property
    def stale(self) -> list[Ask]:
        """The turns that run and count no more."""
        over = self.closing is not None or self.ended is not None
        return [ask for ask in self.open.values() if over or ask.round != self.round]

    def member(self, name: str) -> GroupMember | None:
        """Return the member of a name."""
        return next((one for one in self.members if one.name == name), None)

    def apply(self, event: GroupEvent) -> None:
        """Go on by an event."""
        self.index = event.index + 1
        _APPLY[event.kind](self, event)

    def _created(self, event: GroupEvent) -> None:
        self.config = event.config
        self.created = event.at.timestamp()

    def _asked(self, event: GroupEvent) -> None:
        turn, agent = event.turn_id or "", event.agent_uuid or ""
        self.asked += 1
        self.open[turn] = Ask(turn, agent, event.member, event.limits, self.round)
        if event.member is not None:
            self.called.add(event.member)
            if not self.claimed:
                self.floor = Floor(event.member)

    def _unclear(self, event: GroupEvent) -> None:
        self._answered(event)
        self.unclear += 1

    def _chosen(self, event: GroupEvent) -> None:
        self._answered(event)
        self.chosen = event.member

    def _waiting(self, event: GroupEvent) -> None:
        self.floor = Floor(event.member, event.until.timestamp() if event.until else None)

    def _remark(self, event: GroupEvent) -> None:
        assert event.remark is not None
        self._answered(event)
        self.remarks.append(event.remark)
        if event.remark.message_id is not None:
            self.posts[event.remark.message_id] = event.remark
        self._next_round(event.remark.member)
        self.passes = 0

    def _passed(self, event: GroupEvent) -> None:
        self._answered(event)
        if not self.claimed:
            self._next_round(event.member or "")
            self.passes += 1
        elif event.turn_id is None:
            self.silent = True

    def _closing(self, event: GroupEvent) -> None:
        if self.closing is None:
            self.closing = event
        if event.end is GroupEnd.deleted:
            self.deleted = event.at.timestamp()

    def _ended(self, event: GroupEvent) -> None:
        self.ended = event

    def _answered(self, event: GroupEvent) -> None:
        """A turn that ran for the group, if any, has ended."""
        self.open.pop(event.turn_id or "", None)
        self.spent = Spent(
            self.spent.steps + event.spent.steps,
            self.spent.tokens + event.spent.tokens,
            self.spent.cost + event.spent.cost,
        )

    def _next_round(self, last: str) -> None:
        self.round += 1
        self.floor = None
        self.called = set()
        self.chosen = None
        self.unclear = 0
        names = [one.name for one in self.members]
        self.place = (names.index(last) + 1) % len(names)

    def event(self, kind: GroupEventKind, at: float, **fields: Any) -> GroupEvent:
        """Return what may happen next."""
        return GroupEvent(index=self.index, at=moment(at), kind=kind, **fields)

    def described(self, *, remarks: bool = True) -> Group:
        """Return the group as far as its conversation has come."""
        over = self.closing is not None or self.ended is not None
        floor = self.floor if not over else None
        waiting = waiting_for(self, floor)
        status = GroupStatus.ended if self.ended is not None else GroupStatus.running
        if waiting and not self.open:
            status = GroupStatus.waiting
        ended = self.ended
        return Group(
            uuid=self.group.uuid,
            config=self.group,
            created_at=moment(self.created),
            status=status,
            index=self.index,
            waiting_for=waiting,
            until=moment(floor.until) if floor is not None and floor.until else None,
            speaking=[GroupTurn(ask.agent, ask.turn, ask.member) for ask in self.open.values()],
            remarks=self.remarks if remarks else [],
            spent=self.spent,
            end=ended.end if ended is not None else None,
            reason=ended.reason if ended is not None else "",
            ended_at=ended.at if ended is not None else None,
        )


def waiting_for(conversation: Conversation, floor: Floor | None) -> list[str]:
    """Return the humans who may speak by a floor."""
    if floor is None:
        return []
    humans = conversation.humans
    return humans if floor.member is None else [one for one in humans if one == floor.member]


def moment(seconds: float) -> datetime:
    """Return a time in seconds since the epoch as events have it."""
    return datetime.fromtimestamp(seconds, UTC)


_APPLY = {
    GroupEventKind.created: Conversation._created,
    GroupEventKind.speaking: Conversation._asked,
    GroupEventKind.moderating: Conversation._asked,
    GroupEventKind.unclear: Conversation._unclear,
    GroupEventKind.chosen: Conversation._chosen,
    GroupEventKind.waiting: Conversation._waiting,
    GroupEventKind.remark: Conversation._remark,
    GroupEventKind.passed: Conversation._passed,
    GroupEventKind.withdrawn: Conversation._answered,
    GroupEventKind.closing: Conversation._closing,
    GroupEventKind.ended: Conversation._ended,
}
