"""The command line of ``ayllu synthesize``."""

from __future__ import annotations

import argparse

from ..schemas import FilteringFunction

SYNTHESIZE_EXAMPLE = """\
ayllu synthesize prompts.txt --reward judge --filter top_k --k 1 --dataset answers
  ayllu synthesize prompts.jsonl --reward valid-call --threshold 1 --target 500 --dataset calls --job calls-1
  ayllu synthesize prompts.txt --reward judge --candidates 8 --pairs --dataset preferences"""


def add_synthesize_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options of ``ayllu synthesize`` to its parser."""
    parser.add_argument(
        "prompts",
        metavar="FILE",
        help='a prompt a line; in a .jsonl file, lines are {"prompt": ..., "reference": ...}',
    )
    parser.add_argument("--job", metavar="ID", help="the job's id; by default a new one is made")
    parser.add_argument("--model", help="who answers; by default the deployment's first model")
    parser.add_argument("--reward", metavar="MODEL", help="the reward model, see `ayllu rewards`")
    parser.add_argument("--threshold", type=float, help="the least score that passes")
    parser.add_argument(
        "--filter",
        choices=[one.value for one in FilteringFunction],
        default="none",
        help="what is kept of each prompt's candidates (%(default)s)",
    )
    parser.add_argument("--k", type=int, help="how many top_k, top_k_top_p, random keep")
    parser.add_argument("--p", type=float, help="the mass that top_p, top_k_top_p keep")
    parser.add_argument("--candidates", type=int, metavar="N", help="answers to each prompt (4)")
    parser.add_argument("--temperature", type=float, help="of the sampling (1)")
    parser.add_argument("--max-tokens", type=int, default=0, help="of a candidate; 0 is no limit")
    parser.add_argument("--seed", type=int, help="makes answers and choices repeatable")
    parser.add_argument("--system", metavar="TEXT", help="a system message before each prompt")
    parser.add_argument(
        "--help-file",
        metavar="FILE",
        help="a .json file with messages that stand before each prompt in generation only",
    )
    parser.add_argument(
        "--max-similarity",
        type=float,
        metavar="S",
        help="leave out candidates that are as similar to an earlier one: 1 is equal",
    )
    parser.add_argument("--target", type=int, metavar="N", help="go on until N are accepted")
    parser.add_argument(
        "--max-candidates", type=int, metavar="N", help="with --target: at most so many"
    )
    parser.add_argument("--dataset", metavar="ID", help="register what is accepted as a dataset")
    parser.add_argument(
        "--pairs",
        action="store_true",
        help="with --dataset: pairs of the best and the worst answer, for `ayllu train dpo`",
    )
    parser.add_argument("--detach", action="store_true", help="do not follow the job; print its id")
    parser.add_argument("--json", action="store_true", help="print what is accepted as JSON lines")
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
