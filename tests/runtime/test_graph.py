"""Who starts whom, as Mermaid."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ayllu.runtime.graph import CLASSES, label, mermaid
from ayllu.schemas import (
    Agent,
    AgenticSystemCreateRequest,
    Delegation,
    Group,
    GroupCreateRequest,
    GroupMember,
    GroupStatus,
    MemberKind,
    Schedule,
    SubAgent,
    Trigger,
    TriggerCreateRequest,
)

pytestmark = pytest.mark.requirement("graph-command")
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def agent(name: str, *subs: SubAgent, tools: frozenset[str] = frozenset()) -> Agent:
    config = AgenticSystemCreateRequest(
        uuid=name, instructions="", model="m", sub_agents=list(subs), executable_tools=set(tools)
    )
    return Agent(name, NOW, config)


def trigger(name: str, agent_id: str, subject: str, schedule: Schedule | None = None) -> Trigger:
    return Trigger(
        name, NOW, TriggerCreateRequest(name, agent_id, schedule=schedule), subject=subject
    )


def body(text: str) -> list[str]:
    lines = text.splitlines()
    assert lines[0] == "flowchart LR"
    assert text.endswith(f"{CLASSES}\n")
    return [line.strip() for line in lines[1 : -len(CLASSES.splitlines())]]


def test_nothing() -> None:
    assert body(mermaid([])) == []


def test_call_fan_out_and_hand_off_are_different_arrows() -> None:
    subs = [
        SubAgent("ask", ["b"]),
        SubAgent("all", ["b", "gone"], kind=Delegation.fan_out),
        SubAgent("over", ["a"], kind=Delegation.hand_off),
        SubAgent("ask", ["b"]),
    ]
    assert body(mermaid([agent("a", *subs), agent("b")])) == [
        'a0["a"]',
        'a1["b"]',
        'a2["gone"]:::missing',
        'a0 -->|"ask"| a1',
        'a0 ==>|"all at once"| a1',
        'a0 ==>|"all at once"| a2',
        'a0 -.->|"over hands off"| a0',
    ]


def test_tools_are_shown_if_wanted() -> None:
    agents = [
        agent("a", tools=frozenset({"math", "code"})),
        agent("math", tools=frozenset({"math"})),
    ]
    assert body(mermaid(agents)) == ['a0["a"]', 'a1["math"]']
    assert body(mermaid(agents, tools=True))[2:] == [
        't2[/"code"/]',
        't3[/"math"/]',
        "a0 --> t2",
        "a0 --> t3",
        "a1 --> t3",
    ]


def test_triggers() -> None:
    triggers = [
        trigger("done", "b", "ayllu.v1.event.turn.a.completed"),
        trigger("daily", "a", "s", Schedule(cron="0 8 * * *")),
        trigger("often", "nobody", "s", Schedule(every=60)),
    ]
    lines = body(mermaid([agent("a"), agent("b")], triggers))
    assert lines[2:] == [
        'e2(["ayllu.v1.event.turn.a.completed"]):::event',
        'e3(["0 8 #42; #42; #42;"]):::event',
        'e4(["every 60 s"]):::event',
        'a5["nobody"]:::missing',
        'e2 -->|"done"| a1',
        'e3 -->|"daily"| a0',
        'e4 -->|"often"| a5',
    ]


def test_groups() -> None:
    members = [
        GroupMember("Ana", agent_id="a"),
        GroupMember("b"),
        GroupMember("Rosa", kind=MemberKind.human),
    ]
    config = GroupCreateRequest("panel", "The topic", members, moderator="chair")
    group = Group(uuid="panel", config=config, created_at=NOW, status=GroupStatus.running, index=0)
    alone = replace(group, uuid="b", config=replace(config, moderator=None))
    assert len(body(mermaid([], groups=[alone]))) == 7
    assert body(mermaid([agent("a")], groups=[group])) == [
        'a0["a"]',
        'g1(("panel"))',
        'a2["b"]:::missing',
        'h3{{"Rosa"}}',
        'a4["chair"]:::missing',
        "g1 --- a0",
        "g1 --- a2",
        "g1 --- h3",
        'g1 ---|"moderator"| a4',
    ]


@pytest.mark.requirement("seeing-hostile")
@given(st.text())
def test_whatever_agents_are_called(name: str) -> None:
    shown = label(name)
    assert re.fullmatch(r"(?:\w|(?<=\w)[-.](?=\w)| |#\d+;)*", shown)
    assert len(re.sub(r"#\d+;", "x", shown)) <= 61
    [line] = body(mermaid([agent(name)]))
    assert line == f'a0["{shown or " "}"]'


def test_labels_are_readable() -> None:
    assert label("the front desk\n(new)") == "the front desk #40;new#41;"
    assert label("Ñusta 3") == "Ñusta 3"
    assert label("ask_the-clerk v1.2") == "ask_the-clerk v1.2"
    assert label("1. _x_ - y.") == "1#46; #95;x#95; #45; y#46;"
    assert label('"]; click a "x" <b>') == "#34;#93;#59; click a #34;x#34; #60;b#62;"
    assert label("x" * 100) == "x" * 60 + "#8230;"


def test_many_arrows_are_drawn_soon() -> None:
    names = [f"a{number}" for number in range(300)]
    agents = [
        agent(name, SubAgent("ask", names[:60]), SubAgent("ask", names[:60])) for name in names
    ]
    began = time.process_time()
    drawn = body(mermaid(agents))
    assert time.process_time() - began < 2
    assert sum("-->" in line for line in drawn) == 300 * 60
