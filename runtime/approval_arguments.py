"""The command line of ``ayllu approvals``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse

from .sub_commands import actions_of, at_gateway

EXAMPLES = {
    "list": "ayllu approvals",
    "approve": """ayllu approvals approve support TURN CALL --arguments '{"city": "Lima"}'""",
    "deny": 'ayllu approvals deny support TURN CALL --reason "not on a Sunday"',
}
APPROVALS_EXAMPLE = "\n  ".join(EXAMPLES.values())


def add_approval_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu approvals`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    parser.set_defaults(json=False, agent=None)
    add = at_gateway(actions_of(parser, EXAMPLES, required=False), default_url)
    list_ = add("list", "list the calls of tools that wait for a decision (the default)")
    list_.add_argument("--agent", help="of this agent only")
    list_.add_argument("--json", action="store_true", help="for programs")
    approve = add("approve", "let a call run")
    approve.add_argument(
        "--arguments", metavar="JSON", help="run it with these instead of the model's; @FILE, or -"
    )
    deny = add("deny", "do not let a call run; the model is told")
    deny.add_argument("--reason", default="", help="for the model")
    for action in (approve, deny):
        action.add_argument("agent", metavar="AGENT")
        action.add_argument("turn", metavar="TURN")
        action.add_argument("call", metavar="CALL", help="as `ayllu approvals` shows it")
