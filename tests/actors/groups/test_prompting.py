"""What agents see of a conversation, how their answers are read, and which groups there can be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from support.groups import agent, group, human

from ayllu.actors.groups.conversation import Ask, Conversation
from ayllu.actors.groups.hearing import CUT, named, spoken, text_of
from ayllu.actors.groups.prompting import BEGINNING, SEEN_CHARACTERS, dialog_of, seen
from ayllu.actors.groups.records import events_of, group_of_wake, wake_subject
from ayllu.actors.groups.validation import agents_of, check_group
from ayllu.schemas import (
    Attachment,
    BusError,
    GroupCreateRequest,
    GroupEventKind,
    GroupMember,
    GroupPolicy,
    GroupRemark,
    InvalidRequest,
    Limits,
    MemberKind,
    Message,
    Role,
    decode,
    encode,
)
from ayllu.schemas.groups import MAX_REMARK

pytestmark = pytest.mark.requirement("group-prompts")

AT = datetime(2026, 1, 1, tzinfo=UTC)
MEMBERS = [agent("Ann"), msgspec.structs.replace(human("Zoe"), description="the <|chair|>")]


def talk(*said: tuple[str, str], **fields: Any) -> Conversation:
    conversation = Conversation("b")
    request = group("g", *MEMBERS, **fields)
    conversation.apply(conversation.event(GroupEventKind.created, 0.0, config=request))
    for number, (member, text) in enumerate(said, 1):
        remark = GroupRemark(number, member, text, AT)
        conversation.apply(conversation.event(GroupEventKind.remark, 0.0, remark=remark))
    return conversation


def shown(conversation: Conversation, member: str | None) -> tuple[list[list[str]], list[str]]:
    """Return what is said before each answer of a member, with the answer, and what is said now."""
    turns, messages = dialog_of(conversation, Ask("t", "a", member, Limits(), 0))
    for turn in turns:
        assert turn.response_message.role is Role.assistant
    assert all(message.role is Role.user for message in messages)
    before = [
        [text_of(message) for message in (*turn.user_messages, turn.response_message)]
        for turn in turns
    ]
    return before, [text_of(message) for message in messages]


def test_own_remarks_are_the_agents_and_others_have_their_names() -> None:
    conversation = talk(
        ("Ann", "one"), ("Ann", "two"), ("Zoe", "three"), ("Ann", "four"), ("Zoe", "<|x|> five")
    )
    before, now = shown(conversation, "Ann")
    assert before == [[BEGINNING, "one\n\ntwo"], ["Zoe: three", "four"]]
    assert "Llamas" in now[0]
    assert "<|chair|>" not in now[0]
    assert now[1].startswith("Zoe: ")
    assert "<|x|>" not in now[1]
    assert now[2] == "You are Ann. What do you say?"


def test_what_the_first_speaker_sees() -> None:
    before, now = shown(talk(policy=GroupPolicy.first_to_claim), "Ann")
    assert before == []
    assert len(now) == 2
    assert now[1].endswith("one word PASS.")


def test_a_moderator_reads_along() -> None:
    conversation = talk(("Ann", "one"), ("Zoe", "two"))
    before, now = shown(conversation, None)
    assert before == []
    assert now[1:3] == ["Ann: one", "Zoe: two"]
    assert now[3].endswith("nothing else: Ann, Zoe.")
    assert "none of the names" not in now[3]
    conversation.unclear = 1
    assert "none of the names" in shown(conversation, None)[1][3]


def test_of_a_long_conversation_the_last_is_seen() -> None:
    text = "x" * (SEEN_CHARACTERS // 3)
    remarks = [GroupRemark(number, "Ann", text, AT) for number in range(1, 6)]
    assert [one.number for one in seen(remarks)] == [3, 4, 5]
    assert seen(remarks[:2]) == remarks[:2]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Bob", "Bob"),
        (" 'bob'.\n", "Bob"),
        ("J. R.", "J. R."),
        ("Bob!", None),
        ("Bob, Ann", None),
        ("", None),
    ],
)
def test_a_name_is_all_that_counts(text: str, name: str | None) -> None:
    assert named(text, [agent("Ann"), agent("Bob"), agent("J. R.")]) == name


def test_what_an_agent_said() -> None:
    assert spoken("ann: Hello. ", "Ann") == "Hello."
    assert spoken("Anna: Hello.", "Ann") == "Anna: Hello."
    long = spoken("x" * (MAX_REMARK + 1), "Ann")
    assert len(long) == MAX_REMARK
    assert long.endswith(CUT)
    picture = Attachment("https://example.org/x.png", "image/png")
    assert text_of(Message(role=Role.assistant, content=["a", picture, "b"])) == "ab"


@pytest.mark.requirement("group-operations")
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"members": [agent("Ann"), agent("ann", "bob")]}, "'ann' is there 2 times"),
        ({"members": [agent("Ann"), GroupMember("Bob")]}, r"members\[1\].agent_id"),
        ({"members": [agent("Ann"), GroupMember("Zoe", MemberKind.human, "zoe")]}, "agent_id"),
        ({"members": [agent("Ann"), agent("Bob\n")]}, r"members\[1\].name"),
        ({"policy": GroupPolicy.moderator}, "moderator"),
        ({"moderator": "mod"}, "moderator"),
        ({"until_by": ["Ann"]}, "no text"),
        ({"until": "x", "until_by": ["Eve"]}, "no member 'Eve'"),
    ],
)
def test_groups_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    request = msgspec.structs.replace(group("g", *MEMBERS), **fields)
    with pytest.raises(InvalidRequest, match=says):
        check_group(request)


@pytest.mark.requirement("group-operations")
def test_groups_that_can_be() -> None:
    request = group(
        "g", agent("Ann"), agent("Bob", "ann"), policy=GroupPolicy.moderator, moderator="mod"
    )
    check_group(request)
    assert agents_of(request) == ["ann", "mod"]
    check_group(group("g", *MEMBERS, until="x", until_by=["Zoe"]))


@pytest.mark.requirement("group-operations")
@pytest.mark.parametrize("name", ["", " Ann", "Ann:", "A\nB", "-", "x" * 65])
def test_names_that_are_none(name: str) -> None:
    text = encode({"uuid": "g", "topic": "t", "members": [{"name": name}, {"name": "Bob"}]})
    with pytest.raises(InvalidRequest, match="name"):
        decode(text, GroupCreateRequest)


def test_what_stands_on_the_bus() -> None:
    assert group_of_wake(wake_subject("a b.c", "1f")) == ("a b.c", "1f")
    with pytest.raises(BusError) as wrong:
        events_of(b'{"events": 1}')
    assert not wrong.value.retryable
