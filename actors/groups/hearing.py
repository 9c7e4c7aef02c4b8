"""What is said to a group, and what becomes of it: answers of agents, remarks of humans, the wish to end. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ...schemas import (
    Conflict,
    ErrorInfo,
    GroupEnd,
    GroupEvent,
    GroupEventKind,
    GroupMember,
    GroupPass,
    GroupPostRequest,
    GroupRemark,
    InvalidRequest,
    MemberKind,
    Message,
    Spent,
)
from ...schemas.groups import MAX_REMARK
from .conversation import Ask, Conversation, moment, waiting_for
from .deciding import over_at
from .prompting import PASS

CUT = "... (cut)"
AROUND_NAMES = " \t\r\n\"'`*.:"
"""What models put around a word, though it was asked for alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a turn came to: what it took, and a text, or why it failed."""

    spent: Spent
    text: str = ""
    error: ErrorInfo | None = None


def text_of(message: Message) -> str:
    """Return the text of a message, without what else it has."""
    content = message.content
    parts = content if isinstance(content, list) else [content]
    return "".join(part for part in parts if isinstance(part, str))


def heard(conversation: Conversation, ask: Ask, outcome: Outcome, at: float) -> list[GroupEvent]:
    """Return what happens when a turn of this round has ended."""
    if ask.member is None:
        return [_moderated(conversation, ask, outcome, at)]
    text = spoken(outcome.text, ask.member)
    why = _why_passed(conversation, text, outcome)
    if why is not None:
        passed = conversation.event(
            GroupEventKind.passed, at, member=ask.member, passed=why, error=outcome.error
        )
        return [_by_turn(passed, ask, outcome)]
    remark = GroupRemark(
        len(conversation.remarks) + 1, ask.member, text, moment(at), turn_id=ask.turn
    )
    event = conversation.event(GroupEventKind.remark, at, member=ask.member, remark=remark)
    return [_by_turn(event, ask, outcome)]


def withdrawn(
    conversation: Conversation, ask: Ask, outcome: Outcome, at: float
) -> list[GroupEvent]:
    """Return what happens when a turn that counts no more has ended."""
    event = conversation.event(GroupEventKind.withdrawn, at, member=ask.member)
    return [_by_turn(event, ask, outcome)]


def _by_turn(event: GroupEvent, ask: Ask, outcome: Outcome) -> GroupEvent:
    return msgspec.structs.replace(
        event, agent_uuid=ask.agent, turn_id=ask.turn, spent=outcome.spent
    )


def _why_passed(conversation: Conversation, text: str, outcome: Outcome) -> GroupPass | None:
    if outcome.error is not None:
        return GroupPass.failed
    passes = conversation.claimed and text.strip(AROUND_NAMES).upper() == PASS
    return GroupPass.nothing if passes or not text else None


def _moderated(conversation: Conversation, ask: Ask, outcome: Outcome, at: float) -> GroupEvent:
    name = None if outcome.error is not None else named(outcome.text, conversation.members)
    if name is not None:
        event = conversation.event(GroupEventKind.chosen, at, member=name)
    else:
        said = outcome.text.strip()[:200]
        event = conversation.event(GroupEventKind.unclear, at, reason=said, error=outcome.error)
    return _by_turn(event, ask, outcome)


def named(text: str, members: list[GroupMember]) -> str | None:
    """Return the member whose name a text is, and nothing else but marks around it."""
    wanted = text.strip(AROUND_NAMES).casefold()
    for member in members:
        if member.name.strip(AROUND_NAMES).casefold() == wanted:
            return member.name
    return None


def spoken(text: str, name: str) -> str:
    """Return what an agent said, without its name before it, which models repeat; what is too long is cut."""
    text = text.strip()
    if text.casefold().startswith(f"{name.casefold()}:"):
        text = text[len(name) + 1 :].strip()
    return text if len(text) <= MAX_REMARK else text[: MAX_REMARK - len(CUT)] + CUT


def posted(
    conversation: Conversation, request: GroupPostRequest, at: float
) -> GroupRemark | GroupEvent:
    """Return the remark that a human has made already under the same id, or what happens when it speaks.

    Raises:
        InvalidRequest: it is no human member.
        Conflict: it is not its turn, or the conversation has ended, or the id is that of another remark.
    """
    known = conversation.posts.get(request.message_id) if request.message_id else None
    if known is not None:
        if (known.member, known.text) != (request.member, request.text):
            raise Conflict(f"message_id: {request.message_id!r} is another remark's")
        return known
    member = conversation.member(request.member)
    if member is None:
        raise InvalidRequest(f"member: the group has no member {request.member!r}")
    if member.kind is not MemberKind.human:
        raise InvalidRequest(f"member: {member.name!r} is an agent, which speaks for itself")
    if not request.text.strip():
        raise InvalidRequest("text: it is empty")
    if conversation.ended is not None or over_at(conversation, at) is not None:
        raise Conflict("the conversation has ended")
    _check_turn(conversation, member.name)
    remark = GroupRemark(
        len(conversation.remarks) + 1,
        member.name,
        request.text,
        moment(at),
        message_id=request.message_id,
    )
    return conversation.event(GroupEventKind.remark, at, member=member.name, remark=remark)


def _check_turn(conversation: Conversation, name: str) -> None:
    if conversation.claimed:
        return  # Nobody has the floor between two remarks.
    if name not in waiting_for(conversation, conversation.floor):
        floor = conversation.floor
        has = f"it is {floor.member}'s" if floor is not None else "nobody has it yet"
        details = {"floor": floor.member if floor is not None else None}
        raise Conflict(f"it is not the turn of {name!r}: {has}", details=details)


def closed(conversation: Conversation, end: GroupEnd, reason: str, at: float) -> list[GroupEvent]:
    """Return what happens when somebody wants the conversation to end: it ends now, or once no turn runs for it."""
    if conversation.deleted is not None:
        return []
    if conversation.ended is not None:
        if end is GroupEnd.closed:
            return []
        return [conversation.event(GroupEventKind.closing, at, end=end)]  # It is removed, too.
    if conversation.closing is not None and end is GroupEnd.closed:
        return []
    closing = conversation.event(GroupEventKind.closing, at, end=end, reason=reason)
    if conversation.open:
        return [closing]
    ended = conversation.event(GroupEventKind.ended, at, end=end, reason=reason)
    return [closing, msgspec.structs.replace(ended, index=closing.index + 1)]
