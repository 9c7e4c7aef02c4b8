"""Conversations of groups (extensions): agents and humans speak in turns about a topic.

All that happens is told as events, which stand in the group's journal: whoever reads them knows all that there is to know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol

from msgspec import Meta

from .delegation import AgentId, Limits, Spent
from .errors import ErrorInfo
from .webmethod import webmethod
from .wire import Reply, Wire

MAX_MEMBERS = 32
MAX_REMARKS = 1000
MAX_REMARK = 32_000
"""Characters of a remark."""
MAX_HUMAN_SECONDS = 30 * 86_400.0

GroupId = Annotated[str, Meta(min_length=1, max_length=64)]
MemberName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^\w(?:[\w .'-]*[\w.])?$",
        description="Letters and digits, with spaces, dots, hyphens and apostrophes between.",
    ),
]


class MemberKind(StrEnum):
    """Who speaks."""

    agent = "agent"
    human = "human"


class GroupMember(Wire, frozen=True):
    """A member of a group."""

    name: MemberName
    kind: MemberKind = MemberKind.agent
    agent_id: Annotated[AgentId | None, Meta(description="Of an agent.")] = None
    description: Annotated[
        str, Meta(max_length=1000, description="For the other members: who this is.")
    ] = ""


class GroupPolicy(StrEnum):
    """Who speaks next.

    `round_robin`: one member after the other. `moderator`: whom an agent names. `first_to_claim`: all agents but the one that
    spoke last are asked at once, and the first that has something to say says it, unless a human was faster.
    """

    round_robin = "round_robin"
    moderator = "moderator"
    first_to_claim = "first_to_claim"


class GroupCreateRequest(Wire, frozen=True):
    """Let a group begin its conversation."""

    uuid: GroupId
    topic: Annotated[str, Meta(min_length=1, max_length=16_000)]
    members: Annotated[list[GroupMember], Meta(min_length=2, max_length=MAX_MEMBERS)]
    policy: GroupPolicy = GroupPolicy.round_robin
    moderator: Annotated[
        AgentId | None, Meta(description="The agent that names who speaks next.")
    ] = None
    until: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | None,
        Meta(description="A text: the conversation ends with the remark that contains it."),
    ] = None
    until_by: Annotated[
        list[MemberName],
        Meta(max_length=MAX_MEMBERS, description="The members who may end it so; by default all."),
    ] = []
    max_remarks: Annotated[int, Meta(ge=1, le=MAX_REMARKS)] = 50
    limits: Annotated[
        Limits,
        Meta(
            description="What all turns together may take, the moderator's too; agents that are asked at once share what is left. "
            "The seconds count from the beginning of the conversation."
        ),
    ] = Limits()
    human_seconds: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_HUMAN_SECONDS)] | None,
        Meta(
            description="How long a human is waited for, and passed over then; by default without end."
        ),
    ] = None


class GroupPostRequest(Wire, frozen=True):
    """What a human says."""

    group_id: GroupId
    member: MemberName
    text: Annotated[str, Meta(min_length=1, max_length=MAX_REMARK)]
    message_id: Annotated[
        AgentId | None,
        Meta(
            description="The client's: a request that is sent again under the same id is the same remark."
        ),
    ] = None


class GroupRemark(Reply, frozen=True):
    """What a member said."""

    number: Annotated[int, Meta(description="From 1.")]
    member: str
    text: str
    at: datetime
    turn_id: Annotated[str | None, Meta(description="The turn that an agent said it in.")] = None
    message_id: Annotated[str | None, Meta(description="A human's own id of it.")] = None


class GroupEventKind(StrEnum):
    """What an event of a group tells.

    `created`: the conversation begins. `speaking`: an agent is asked to speak, in a turn that can be followed. `moderating`: the
    moderator is asked who speaks next. `unclear`: it named no member. `chosen`: a member speaks next. `waiting`: a human is
    waited for, or any human where no member is named. `remark`: somebody has spoken. `passed`: a member did not. `withdrawn`: the
    turn of an agent counts no more, and was cancelled. `closing`: the conversation is to end. `ended`: it has.
    """

    created = "created"
    speaking = "speaking"
    moderating = "moderating"
    unclear = "unclear"
    chosen = "chosen"
    waiting = "waiting"
    remark = "remark"
    passed = "passed"
    withdrawn = "withdrawn"
    closing = "closing"
    ended = "ended"


class GroupPass(StrEnum):
    """Why a member did not speak.

    `nothing`: it had nothing to say. `late`: a human was waited for in vain. `failed`: the agent's turn failed.
    """

    nothing = "nothing"
    late = "late"
    failed = "failed"


class GroupEnd(StrEnum):
    """Why a conversation ended.

    `said`: the text of `until` was. `silence`: nobody speaks, though all could. `deleted`: the group is removed.
    """

    said = "said"
    max_remarks = "max_remarks"
    limits = "limits"
    silence = "silence"
    closed = "closed"
    deleted = "deleted"


class GroupEvent(Reply, frozen=True, kw_only=True):
    """Something that happened in a group; the index grows by one from event to event."""

    index: int
    at: datetime
    kind: GroupEventKind
    member: Annotated[str | None, Meta(description="Whom it is about.")] = None
    agent_uuid: Annotated[str | None, Meta(description="The agent that is or was asked.")] = None
    turn_id: Annotated[str | None, Meta(description="Its turn.")] = None
    limits: Annotated[Limits, Meta(description="What the turn may take.")] = Limits()
    spent: Annotated[Spent, Meta(description="What the turn has taken.")] = Spent()
    until: Annotated[datetime | None, Meta(description="How long a human is waited for.")] = None
    remark: GroupRemark | None = None
    passed: Annotated[GroupPass | None, Meta(description="Why a member did not speak.")] = None
    error: Annotated[ErrorInfo | None, Meta(description="Why a turn failed.")] = None
    end: Annotated[GroupEnd | None, Meta(description="Why the conversation ends.")] = None
    reason: Annotated[str, Meta(description="More about it, for people.")] = ""
    config: Annotated[GroupCreateRequest | None, Meta(description="The group, when created.")] = (
        None
    )


class GroupStatus(StrEnum):
    """Where a conversation is: `waiting` for humans, `ended`, or `running`."""

    running = "running"
    waiting = "waiting"
    ended = "ended"


class GroupTurn(Reply, frozen=True):
    """A turn of an agent that is asked."""

    agent_uuid: str
    turn_id: str
    member: Annotated[str | None, Meta(description="None is the moderator.")] = None


class Group(Reply, frozen=True, kw_only=True):
    """A group as far as its conversation has come."""

    uuid: str
    config: GroupCreateRequest
    created_at: datetime
    status: GroupStatus
    index: Annotated[int, Meta(description="Of the next event.")]
    waiting_for: Annotated[list[str], Meta(description="The humans who may speak now.")] = []
    until: Annotated[datetime | None, Meta(description="How long they are waited for.")] = None
    speaking: Annotated[list[GroupTurn], Meta(description="Turns that run.")] = []
    remarks: list[GroupRemark] = []
    spent: Annotated[Spent, Meta(description="By all turns that have ended.")] = Spent()
    end: GroupEnd | None = None
    reason: Annotated[str, Meta(description="More about the end, for people.")] = ""
    ended_at: datetime | None = None


class Groups(Protocol):
    """Let agents and humans talk with each other (extensions)."""

    @webmethod(route="/groups/create")
    async def create(self, request: GroupCreateRequest) -> Group:
        """Let a group begin its conversation; the same request again is the same group."""
        ...

    @webmethod(route="/groups/get", method="GET")
    async def get(self, group_id: str) -> Group:
        """Return a group as far as its conversation has come."""
        ...

    @webmethod(route="/groups/list", method="GET")
    def list(self) -> AsyncIterator[Group]:
        """List all groups, without their remarks."""
        ...

    @webmethod(route="/groups/delete", method="DELETE")
    async def delete(self, group_id: str) -> None:
        """Remove a group; turns that run for it are cancelled."""
        ...

    @webmethod(route="/groups/post")
    async def post(self, request: GroupPostRequest) -> GroupRemark:
        """Say something as a human member, whose turn it is."""
        ...

    @webmethod(route="/groups/events", method="GET", sse=True, timeout=86_400.0)
    def events(self, group_id: str, index: int = 0) -> AsyncIterator[GroupEvent]:
        """Follow a conversation from an event on: what was, then what comes, to its end."""
        ...

    @webmethod(route="/groups/close")
    async def close(self, group_id: str, reason: str = "") -> Group:
        """End a conversation; turns that run for it are cancelled, and what was said is kept."""
        ...
