"""Sub-commands, as all commands that have some add them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

Add = Callable[[str, str], argparse.ArgumentParser]


def actions_of(
    parser: argparse.ArgumentParser, examples: Mapping[str, str], *, required: bool = True
) -> Add:
    """Return what adds the sub-commands of a command, each with its help and its example.

    Args:
        parser: the command's parser.
        examples: of each sub-command, by its name.
        required: whether one must be given.
    """
    actions = parser.add_subparsers(dest="action", required=required, metavar="ACTION")

    def add(name: str, help_: str) -> argparse.ArgumentParser:
        return actions.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}.",
            epilog=f"example:\n  {examples[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    return add


def at_gateway(add: Add, default_url: str) -> Add:
    """Return what adds a sub-command that takes ``--url`` as its command does."""

    def add_with_url(name: str, help_: str) -> argparse.ArgumentParser:
        action = add(name, help_)
        help_url = f"of the gateway ({default_url})"
        action.add_argument("--url", default=argparse.SUPPRESS, help=help_url)
        return action

    return add_with_url
