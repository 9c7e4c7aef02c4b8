"""The command lines of ``ayllu agents``, ``ayllu turns`` and ``ayllu dlq``; apart from what they do, so that other commands
need not load that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .sub_commands import actions_of, at_gateway

AGENT_EXAMPLES = {
    "list": "ayllu agents list",
    "show": "ayllu agents show support",
    "create": "ayllu agents create support.toml",
    "delete": "ayllu agents delete support",
}
TURN_EXAMPLES = {
    "list": "ayllu turns support",
    "show": "ayllu turns support show TURN",
    "follow": "ayllu turns support follow TURN",
    "cancel": 'ayllu turns support cancel TURN --reason "not needed any more"',
}
LETTER_EXAMPLES = {
    "list": "ayllu dlq list",
    "show": "ayllu dlq show ID",
    "replay": "ayllu dlq replay ID",
    "remove": "ayllu dlq remove ID",
}
CONFIG_EXAMPLE = """\
a TOML file (or the same as JSON), see docs/agents.md:
  uuid = "support"
  instructions = "Answer in one sentence."
  model = "smollm2"
  [[sub_agents]]          # whom it may ask, see docs/teams.md
  tool_name = "ask_expert"
  agents = ["expert"]
"""
AGENT_EXAMPLE, TURN_EXAMPLE, LETTER_EXAMPLE = (
    "\n  ".join(examples.values()) for examples in (AGENT_EXAMPLES, TURN_EXAMPLES, LETTER_EXAMPLES)
)


def add_agent_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu agents`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    add = at_gateway(actions_of(parser, AGENT_EXAMPLES), default_url)
    add("list", "list all agents").add_argument("--json", action="store_true", help="for programs")
    add("show", "print an agent as JSON").add_argument("agent", metavar="AGENT")
    create = add("create", "create an agent from a file")
    create.epilog = f"{create.epilog}\n\n{CONFIG_EXAMPLE}"
    create.add_argument("file", metavar="FILE", help="TOML or JSON; - is JSON from stdin")
    create.add_argument("--uuid", metavar="AGENT", help="its id, instead of that in the file")
    delete = add("delete", "remove an agent; its turns end")
    delete.add_argument("agent", metavar="AGENT")


def add_turn_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu turns`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    parser.add_argument("agent", metavar="AGENT", help="the agent's id")
    parser.set_defaults(json=False, limit=100)
    add = at_gateway(actions_of(parser, TURN_EXAMPLES, required=False), default_url)
    list_ = add("list", "list the last turns, oldest first (the default)")
    list_.add_argument("--limit", type=int, default=100, help="how many at most (%(default)s)")
    list_.add_argument("--json", action="store_true", help="for programs")
    add("show", "print a turn as JSON").add_argument("turn", metavar="TURN")
    follow = add("follow", "show what a turn does, from its beginning to its end")
    follow.add_argument("turn", metavar="TURN")
    cancel = add("cancel", "cancel a turn; what it has finished is kept")
    cancel.add_argument("turn", metavar="TURN")
    cancel.add_argument("--reason", default="", help="for whoever looks at the turn")


def add_letter_arguments(parser: argparse.ArgumentParser, data_dir: Path) -> None:
    """Add the options and sub-commands of ``ayllu dlq`` to its parser."""
    add = actions_of(parser, LETTER_EXAMPLES)

    def add_at_bus(name: str, help_: str, *, one: bool = True) -> argparse.ArgumentParser:
        action = add(name, help_)
        action.add_argument("--bus", help="the NATS server's URL; or in AYLLU_BUS_URL")
        action.add_argument(
            "--data-dir",
            type=Path,
            default=data_dir,
            help="of an `ayllu up`, whose bus is taken if none is named (%(default)s)",
        )
        if one:
            action.add_argument("letter", metavar="ID", help="as `ayllu dlq list` shows it")
        return action

    list_ = add_at_bus("list", "list what could not be handled, oldest first", one=False)
    list_.add_argument("--json", action="store_true", help="for programs, with payloads")
    add_at_bus("show", "print a dead letter as JSON")
    add_at_bus("replay", "send a dead letter to where it was, and remove it")
    add_at_bus("remove", "forget a dead letter")
