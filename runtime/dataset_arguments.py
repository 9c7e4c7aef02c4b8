"""The command line of ``ayllu dataset``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse

from .sub_commands import actions_of, at_gateway

EXAMPLES = {
    "create": "ayllu dataset create greetings greetings.jsonl\n  ayllu dataset create news "
    "https://example.com/news.parquet --columns text=text",
    "list": "ayllu dataset list",
    "show": "ayllu dataset show greetings",
    "delete": "ayllu dataset delete greetings",
    "check": "ayllu dataset check greetings.jsonl --columns dialog=dialog",
}
EXAMPLE = "\n  ".join(EXAMPLES.values())
TYPES = """\
types of columns: dialog (a list of messages), text, number, json, media (an address, or {url, mime_type}). What is trained on:
  sft   a dialog; or prompt and completion; or text
  dpo   prompt, chosen and rejected
"""


def add_dataset_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu dataset`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    add_local = actions_of(parser, EXAMPLES)
    add = at_gateway(add_local, default_url)
    create = add("create", "register a dataset; all of it is read and checked")
    create.add_argument("dataset", metavar="ID", help="its id")
    create.add_argument("source", metavar="FILE_OR_URL", help="jsonl, json, csv or parquet")
    check = add_local("check", "look at a file row by row, without a gateway")
    check.set_defaults(url=default_url)
    check.add_argument("source", metavar="FILE", help="jsonl, json, csv or parquet")
    for action in (create, check):
        action.epilog = f"{action.epilog}\n\n{TYPES}"
        action.add_argument(
            "--columns",
            nargs="+",
            default=[],
            metavar="NAME=TYPE",
            help="what they hold; those of a file are guessed from its first rows",
        )
    list_ = add("list", "list the datasets")
    list_.add_argument("--json", action="store_true", help="for programs")
    for name, help_ in (
        ("show", "print a dataset as JSON"),
        ("delete", "forget a dataset; its file stays where it is"),
    ):
        add(name, help_).add_argument("dataset", metavar="ID", help="its id")
