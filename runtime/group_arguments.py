"""The command line of ``ayllu groups``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse

from .sub_commands import actions_of, at_gateway

EXAMPLES = {
    "list": "ayllu groups list",
    "show": "ayllu groups show review",
    "create": "ayllu groups create review.toml",
    "join": "ayllu groups join review --as Ada",
    "follow": "ayllu groups follow review",
    "close": 'ayllu groups close review --reason "it is decided"',
    "delete": "ayllu groups delete review",
}
GROUPS_EXAMPLE = "\n  ".join(EXAMPLES.values())
CONFIG_EXAMPLE = """\
a TOML file (or the same as JSON), see docs/groups.md:
  uuid = "review"
  topic = "Write one sentence about llamas."
  members = [{name = "Writer", agent_id = "writer"}, {name = "Ada", kind = "human"}]
"""


def add_group_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu groups`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    add = at_gateway(actions_of(parser, EXAMPLES), default_url)
    add("list", "list all groups").add_argument("--json", action="store_true", help="for programs")
    show = add("show", "print a group with all that was said as JSON")
    create = add("create", "let a group begin its conversation, from a file")
    create.epilog = f"{create.epilog}\n\n{CONFIG_EXAMPLE}"
    create.add_argument("file", metavar="FILE", help="TOML or JSON; - is JSON from stdin")
    create.add_argument("--uuid", metavar="GROUP", help="its id, instead of that in the file")
    join = add("join", "follow a conversation, and speak in it as a human member")
    join.add_argument("--as", dest="member", required=True, metavar="MEMBER", help="who you are")
    follow = add("follow", "show a conversation from its beginning to its end")
    close = add("close", "end a conversation; what was said is kept")
    close.add_argument("--reason", default="", help="for whoever looks at the group")
    delete = add("delete", "remove a group; turns that run for it are cancelled")
    for action in (show, join, follow, close, delete):
        action.add_argument("group", metavar="GROUP")
    for action in (join, follow):
        action.add_argument(
            "--from", dest="index", type=int, default=0, metavar="INDEX", help="of the first event"
        )
