"""The command line of ``ayllu tools``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse
from pathlib import Path

from .sub_commands import actions_of, at_gateway

EXAMPLES = {
    "list": "ayllu tools list",
    "show": "ayllu tools show math",
    "call": """ayllu tools call math '{"expression": "2 ** 10"}'
  ayllu tools call math expression='2 ** 10'
  ayllu tools call code_interpreter @cell.json --out pictures
  ayllu tools call weather.today city=Cusco --bus "$(cat ~/ayllu/bus.url)\"""",
}
TOOLS_EXAMPLE = "\n  ".join(EXAMPLES.values())


def add_tool_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu tools`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    parser.set_defaults(json=False)
    add = at_gateway(actions_of(parser, EXAMPLES, required=False), default_url)
    list_ = add("list", "list the tools that agents may be given (default)")
    list_.add_argument("--json", action="store_true", help="for programs")
    show = add("show", "show what a tool does, and the JSON schema of its arguments")
    show.add_argument("name", metavar="NAME", help="from `ayllu tools list`")
    show.add_argument("--json", action="store_true", help="all that is known of it, for programs")
    call = add("call", "call a tool as an agent would, and print what it answers")
    call.add_argument("name", metavar="NAME", help="from `ayllu tools list`")
    call.add_argument(
        "arguments",
        nargs="*",
        metavar="ARGUMENT",
        help="a JSON object, @FILE or - that has one, or NAME=VALUE each, where VALUE is JSON, or a text",
    )
    call.add_argument(
        "--out", type=Path, metavar="DIR", help="save the attachments of the answer as files here"
    )
    call.add_argument(
        "--bus",
        help="call it on this bus instead of through the gateway, which does not know the operations of own actors",
    )
    call.add_argument("--json", action="store_true", help="the whole answer, for programs")
