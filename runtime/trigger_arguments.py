"""The command line of ``ayllu triggers``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse

from .sub_commands import actions_of, at_gateway

EXAMPLES = {
    "list": "ayllu triggers list",
    "show": "ayllu triggers show reviews",
    "create": "ayllu triggers create reviews.toml",
    "try": """ayllu triggers try orders '{"item": "tea", "paid": true}'
  ayllu triggers try reviews @turn.json --subject turn.writer.completed""",
    "delete": "ayllu triggers delete reviews",
}
TRIGGERS_EXAMPLE = "\n  ".join(EXAMPLES.values())
FILES = """\
a TOML file (or the same as JSON), see docs/triggers.md:
  name = "reviews"
  agent_id = "reviewer"
  subject = "turn.writer.completed"
  template = "Review what ${agent_uuid} wrote: ${text}"

events by their subjects, `*` is any one token, `>` at the end any that follow:
  turn.AGENT.completed, .failed, .cancelled       the end of a turn
  job.KIND.completed, .failed, .cancelled         sft, dpo, reward, synthetic_data, improvement
  document.BANK.inserted, .updated, .deleted      of a memory bank
  shop.order                                      your own, published on ayllu.v1.event.shop.order
in AGENT and BANK a dot is written =2E

or by a schedule, instead of the subject:
  [schedule]
  cron = "0 8 * * MON-FRI"   # in UTC; or every = 600.0 (seconds)

which of them, and what their turns may take:
  filter = { op = "gt", key = "spent.tokens", value = 100 }
  limits = { steps = 5, tokens = 2000 }
"""


def add_trigger_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu triggers`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    parser.set_defaults(json=False)
    add = at_gateway(actions_of(parser, EXAMPLES, required=False), default_url)
    list_ = add("list", "list the triggers, and how many events they have answered (default)")
    list_.add_argument("--json", action="store_true", help="for programs")
    add("show", "print a trigger, and what came of it, as JSON").add_argument(
        "name", metavar="NAME"
    )
    create = add("create", "let an agent be started by events, from a file")
    create.epilog = f"{create.epilog}\n\n{FILES}"
    create.add_argument("file", metavar="FILE", help="TOML or JSON; - is JSON from stdin")
    create.add_argument("--name", metavar="NAME", help="its name, instead of that in the file")
    try_ = add("try", "show what an event would start; nothing is started")
    try_.add_argument("name", metavar="NAME")
    try_.add_argument("event", nargs="?", default="{}", metavar="EVENT", help="JSON, @FILE, or -")
    try_.add_argument(
        "--subject", help="where the event stands; by default the trigger's own subject"
    )
    delete = add("delete", "remove a trigger; the turns that it has started go on")
    delete.add_argument("name", metavar="NAME")
