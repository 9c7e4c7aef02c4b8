"""Who starts whom, as a Mermaid flowchart. No I/O.

Mermaid reads labels as HTML and Markdown, and ends strings at quotation marks: only words stand as they are, every other
character is written by its number, and nodes are called by numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..schemas import Agent, Delegation, Group, MemberKind, Trigger
from .terminal import one_line

LONGEST = 60
"""How many characters of a name are shown."""
ARROWS = {Delegation.call: "-->", Delegation.fan_out: "==>", Delegation.hand_off: "-.->"}
WORDS = {Delegation.call: "", Delegation.fan_out: " at once", Delegation.hand_off: " hands off"}
CLASSES = """\
  classDef missing stroke-dasharray: 4 4
  classDef event fill:none,stroke:none"""


def label(text: str) -> str:
    """Return a text as it stands in a label of Mermaid, cut where it is long."""
    line = " ".join(one_line(text).split())
    line = line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
    return re.sub(r"[^\W_]+(?:[-_.][^\W_]+)*| |(.)", _escaped, line, flags=re.DOTALL)


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[1] is None else f"#{ord(found[1])};"


@dataclass(slots=True)
class _Flow:
    """A flowchart that is drawn: nodes by what they are and what they are called."""

    numbers: dict[tuple[str, str], str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)
    edges: dict[str, None] = field(default_factory=dict)

    def node(self, kind: str, name: str, shape: str) -> str:
        """Return the number of a node, which is drawn once; ``shape`` stands around its ``%s``."""
        number = self.numbers.get((kind, name))
        if number is None:
            number = self.numbers[kind, name] = f"{kind}{len(self.numbers)}"
            text = f'"{label(name) or " "}"'
            self.nodes.append(f"  {number}{shape % text}")
        return number

    def edge(self, from_: str, arrow: str, to: str, text: str = "") -> None:
        """Draw an arrow, once."""
        said = f'|"{text}"|' if text else ""
        self.edges[f"  {from_} {arrow}{said} {to}"] = None


def mermaid(
    agents: Sequence[Agent],
    triggers: Sequence[Trigger] = (),
    groups: Sequence[Group] = (),
    *,
    tools: bool = False,
) -> str:
    """Return the flowchart of who starts whom.

    Args:
        agents: the agents; one that others name and that is not among them is drawn with a broken line.
        triggers: what starts agents.
        groups: where agents talk.
        tools: whether the tools of agents are shown.
    """
    flow = _Flow()
    known = {agent.agent_uuid for agent in agents}

    def agent_node(name: str) -> str:
        return flow.node("a", name, "[%s]" if name in known else "[%s]:::missing")

    for agent in agents:
        agent_node(agent.agent_uuid)
    for agent in agents:
        number = agent_node(agent.agent_uuid)
        for sub in agent.config.sub_agents:
            for name in sub.agents:
                text = f"{label(sub.tool_name)}{WORDS[sub.kind]}"
                flow.edge(number, ARROWS[sub.kind], agent_node(name), text)
        for tool in sorted(agent.config.executable_tools) if tools else ():
            flow.edge(number, "-->", flow.node("t", tool, "[/%s/]"))
    for trigger in triggers:
        schedule = trigger.config.schedule
        when = trigger.subject
        if schedule is not None:
            when = schedule.cron or f"every {schedule.every:g} s"
        event = flow.node("e", when, "([%s]):::event")
        flow.edge(event, "-->", agent_node(trigger.config.agent_id), label(trigger.name))
    for group in groups:
        circle = flow.node("g", group.uuid, "((%s))")
        for member in group.config.members:
            if member.kind is MemberKind.agent:
                flow.edge(circle, "---", agent_node(member.agent_id or member.name))
            else:
                flow.edge(circle, "---", flow.node("h", member.name, "{{%s}}"))
        if group.config.moderator is not None:
            flow.edge(circle, "---", agent_node(group.config.moderator), "moderator")
    return "\n".join(["flowchart LR", *flow.nodes, *flow.edges, CLASSES]) + "\n"
