"""What a group must be. No I/O."""

from __future__ import annotations

import re
from collections import Counter

from ...schemas import GroupCreateRequest, GroupMember, GroupPolicy, InvalidRequest, MemberKind

_LINE = re.compile(r"[\w .'-]+")


def check_group(request: GroupCreateRequest) -> None:
    """Refuse a group that can have no conversation.

    Raises:
        InvalidRequest: all that is wrong.
    """
    wrong = [
        why for number, one in enumerate(request.members) for why in _wrong_member(number, one)
    ]
    names = Counter(one.name.casefold() for one in request.members)
    wrong += [f"members: {name!r} is there {n} times" for name, n in names.items() if n > 1]
    if (request.policy is GroupPolicy.moderator) != (request.moderator is not None):
        wrong.append("moderator: an agent for the policy `moderator`, and for no other one")
    if request.until_by and request.until is None:
        wrong.append("until_by: there is no text `until`")
    known = {one.name for one in request.members}
    wrong += [
        f"until_by: there is no member {name!r}" for name in request.until_by if name not in known
    ]
    if wrong:
        raise InvalidRequest("; ".join(wrong))


def agents_of(request: GroupCreateRequest) -> list[str]:
    """Return the agents that a group needs, each once."""
    agents = [one.agent_id for one in request.members] + [request.moderator]
    return list(dict.fromkeys(one for one in agents if one is not None))


def _wrong_member(number: int, member: GroupMember) -> list[str]:
    wrong = []
    if _LINE.fullmatch(member.name) is None:
        wrong.append(f"members[{number}].name: it has other characters than names have")
    if (member.kind is MemberKind.agent) != (member.agent_id is not None):
        wrong.append(f"members[{number}].agent_id: every agent has one, and no human")
    return wrong
