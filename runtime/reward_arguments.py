"""The command line of ``ayllu rewards``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse

from .sub_commands import actions_of, at_gateway

EXAMPLES = {
    "list": "ayllu rewards list",
    "score": 'ayllu rewards score --model judge --prompt "2 + 2?" --answer 4 --answer 5\n'
    '  ayllu rewards score --model exact --prompt "2 + 2?" --answer "It is 4." --reference 4',
}
REWARDS_EXAMPLE = "\n  ".join(EXAMPLES.values())


def add_reward_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu rewards`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    parser.set_defaults(json=False)
    add = at_gateway(actions_of(parser, EXAMPLES, required=False), default_url)
    list_ = add("list", "list the reward models that are served (default)")
    list_.add_argument("--json", action="store_true", help="for programs")
    score = add("score", "score answers to a prompt, best first")
    score.add_argument("--model", required=True, help="a name from `ayllu rewards list`")
    score.add_argument("--prompt", required=True, metavar="TEXT", help="what was asked")
    score.add_argument(
        "--answer",
        required=True,
        action="append",
        dest="answers",
        metavar="TEXT",
        help="an answer; may be given several times",
    )
    score.add_argument(
        "--reference", metavar="JSON", help="what a right answer is; text that is no JSON is a text"
    )
    score.add_argument("--threshold", type=float, help="show answers from this score on")
    score.add_argument("--json", action="store_true", help="the whole response, for programs")
