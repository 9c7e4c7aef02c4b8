"""The command line of ``ayllu dataset``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse

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
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, help_: str, *, more: str = "") -> argparse.ArgumentParser:
        action = actions.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}.",
            epilog=f"example:\n  {EXAMPLES[name]}\n{more}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name != "check":
            help_url = f"of the gateway ({default_url})"
            action.add_argument("--url", default=argparse.SUPPRESS, help=help_url)
        return action

    create = add("create", "register a dataset; all of it is read and checked", more=f"\n{TYPES}")
    create.add_argument("dataset", metavar="ID", help="its id")
    create.add_argument("source", metavar="FILE_OR_URL", help="jsonl, json, csv or parquet")
    check = add("check", "look at a file row by row, without a gateway", more=f"\n{TYPES}")
    check.set_defaults(url=default_url)
    check.add_argument("source", metavar="FILE", help="jsonl, json, csv or parquet")
    for action in (create, check):
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
