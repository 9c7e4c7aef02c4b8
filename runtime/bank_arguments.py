"""The command line of ``ayllu bank``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """ayllu bank create notes ~/notes README.md
  ayllu bank query notes "how do I restart the gateway?" -k 3
  ayllu bank query notes --filter '{"op": "eq", "key": "path", "value": "README.md"}'
  ayllu bank export notes > notes.jsonl
  ayllu bank import copy notes.jsonl"""


def add_bank_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of ``ayllu bank`` to its parser."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, help_: str, *, bank: bool = True) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
        if bank:
            action.add_argument("bank", metavar="BANK", help="the bank's id")
        return action

    add("list", "list all banks", bank=False)
    create = add("create", "create a bank, from files and folders if some are given")
    create.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="a file or a folder")
    create.add_argument("--name", help="for people; by default the id")
    create.add_argument("--embedding-model", help="by default the first one of the configuration")
    create.add_argument("--chunk-size", type=int, help="the most tokens in a chunk")
    create.add_argument("--chunk-overlap", type=int, help="tokens that neighbours share")
    insert = add("insert", "add files and folders to a bank; documents are called by their paths")
    insert.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    insert.add_argument(
        "--replace", action="store_true", help="update documents that are there already"
    )
    query = add("query", "find chunks of documents")
    query.add_argument("text", nargs="?", help="words, or a question")
    query.add_argument("-k", type=int, default=5, help="how many at most (%(default)s)")
    query.add_argument("--mode", choices=["vector", "text", "hybrid", "metadata"])
    query.add_argument("--filter", help="JSON, see docs/memory.md")
    query.add_argument("--min-score", type=float)
    query.add_argument("--json", action="store_true", help="for programs")
    add("stats", "say what is in a bank")
    add("export", "write all documents as lines of JSON to stdout")
    import_ = add("import", "create a bank from lines of JSON (as export writes them)")
    import_.add_argument("file", help="a file, or - for stdin")
    import_.add_argument("--name", help="for people; by default the id")
    add("drop", "remove a bank and all that is in it")
