"""The command line of ``ayllu bank``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLES = {
    "list": "ayllu bank list",
    "create": "ayllu bank create notes ~/notes README.md",
    "insert": "ayllu bank insert notes ~/notes --replace",
    "query": """ayllu bank query notes "how do I restart the gateway?" -k 3
  ayllu bank query notes --filter '{"op": "eq", "key": "path", "value": "README.md"}' --json""",
    "stats": "ayllu bank stats notes",
    "export": "ayllu bank export notes > notes.jsonl",
    "import": "ayllu bank import copy notes.jsonl",
    "drop": "ayllu bank drop notes",
}
EXAMPLE = "\n  ".join(EXAMPLES.values())


class _AnyOrder(argparse.ArgumentParser):
    """Takes options between its words, too: ``create notes --chunk-size 50 FOLDER`` (python/cpython#59317)."""

    _within = False

    def parse_known_args(  # type: ignore[override]  # no overloads: nobody calls it but argparse
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        if self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


def add_bank_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu bank`` to its parser."""
    help_url = f"of the gateway ({default_url})"
    parser.add_argument("--url", default=default_url, help=help_url)
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=_AnyOrder
    )

    def add(name: str, help_: str, *, bank: bool = True) -> argparse.ArgumentParser:
        action = actions.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}.",
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        # Before the action or after it.
        action.add_argument("--url", default=argparse.SUPPRESS, help=help_url)
        if bank:
            action.add_argument("bank", metavar="BANK", help="the bank's id")
        return action

    def add_settings(action: argparse.ArgumentParser) -> None:
        action.add_argument("--name", help="for people; by default the id")
        action.add_argument(
            "--embedding-model",
            metavar="MODEL",
            help="by default the first one of the configuration",
        )
        action.add_argument(
            "--chunk-size", type=int, metavar="TOKENS", help="the most tokens in a chunk"
        )
        action.add_argument(
            "--chunk-overlap", type=int, metavar="TOKENS", help="tokens that neighbours share"
        )

    add("list", "list all banks", bank=False)
    create = add("create", "create a bank, from files and folders if some are given")
    create.add_argument(
        "paths", nargs="*", type=Path, default=[], metavar="PATH", help="a file or a folder"
    )
    add_settings(create)
    insert = add("insert", "add files and folders to a bank; documents are called by their paths")
    insert.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    insert.add_argument(
        "--replace", action="store_true", help="update documents that are there already"
    )
    query = add("query", "find chunks of documents")
    query.add_argument("text", nargs="?", help="words, or a question")
    query.add_argument(
        "-k", type=int, default=5, metavar="COUNT", help="how many at most (%(default)s)"
    )
    query.add_argument(
        "--mode",
        choices=["vector", "text", "hybrid", "metadata"],
        help="by meaning, by words, by both, or by the filter alone; by default what fits",
    )
    query.add_argument("--filter", metavar="JSON", help="of metadata; see docs/memory.md")
    query.add_argument("--min-score", type=float, metavar="SCORE", help="leave out what has less")
    query.add_argument("--json", action="store_true", help="for programs, documents included")
    add("stats", "say what is in a bank")
    add("export", "write all documents as lines of JSON to stdout")
    import_ = add("import", "create a bank from lines of JSON (as export writes them)")
    import_.add_argument("file", metavar="FILE", help="a file, or - for stdin")
    add_settings(import_)
    add("drop", "remove a bank and all that is in it")
