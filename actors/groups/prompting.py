"""What an agent sees of a conversation: what it said itself as its own, what others said as theirs. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ...schemas import AgenticSystemTurn, GroupMember, GroupRemark, Message, Role
from ..untrusted import without_control_tokens
from .conversation import Ask, Conversation

PASS = "PASS"
SEEN_CHARACTERS = 100_000
"""How much of a long conversation its members see: the last of it."""
BEGINNING = "The conversation begins."


def dialog_of(
    conversation: Conversation, ask: Ask
) -> tuple[list[AgenticSystemTurn], list[Message]]:
    """Return what an agent has said, and what was said to it before each time; and what is said to it now."""
    turns: list[AgenticSystemTurn] = []
    said: list[Message] = []
    for remark in seen(conversation.remarks):
        text = without_control_tokens(remark.text)
        if remark.member != ask.member:
            said.append(_user(f"{remark.member}: {text}"))
        elif turns and not said:
            before = turns.pop()
            turns.append(
                _turn(before.user_messages, f"{before.response_message.content}\n\n{text}")
            )
        else:
            turns.append(_turn(said or [_user(BEGINNING)], text))
            said = []
    return turns, [_user(introduction(conversation)), *said, _user(question(conversation, ask))]


def seen(remarks: Sequence[GroupRemark]) -> Sequence[GroupRemark]:
    """Return the last remarks, as far as they are seen."""
    left = SEEN_CHARACTERS
    for place in range(len(remarks) - 1, -1, -1):
        left -= len(remarks[place].text)
        if left < 0:
            return remarks[place + 1 :]
    return remarks


def introduction(conversation: Conversation) -> str:
    """Return what a conversation is about, and whose it is; it is said in each turn, since a model may not see the first ones."""
    who = "\n".join(f"- {_described(one)}" for one in conversation.members)
    topic = without_control_tokens(conversation.group.topic)
    return f"The topic of this conversation: {topic}\nIts members:\n{who}"


def question(conversation: Conversation, ask: Ask) -> str:
    """Return what an agent is asked for."""
    if ask.member is None:
        names = ", ".join(one.name for one in conversation.members)
        again = "Your last answer was none of the names. " if conversation.unclear else ""
        return f"You are the moderator. {again}Who speaks next? Answer with one of these names, and nothing else: {names}."
    asked = f"You are {ask.member}. What do you say?"
    if not conversation.claimed:
        return asked
    return f"{asked} If you have nothing to say now, answer with the one word {PASS}."


def _described(member: GroupMember) -> str:
    if not member.description:
        return member.name
    return f"{member.name}: {without_control_tokens(member.description)}"


def _turn(messages: list[Message], text: str) -> AgenticSystemTurn:
    return AgenticSystemTurn(messages, [], Message(role=Role.assistant, content=text))


def _user(text: str) -> Message:
    return Message(role=Role.user, content=text)
