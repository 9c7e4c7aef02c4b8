"""The command line of ``ayllu improve``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse
from pathlib import Path

from .sub_commands import actions_of, at_gateway

LOOP_EXAMPLE = """\
model = "smollm2"                 # the base: it is served, and can be trained
name = "smollm2-sums"             # what the improved model is registered as
rounds = 2

training_prompts = { file = "train.jsonl" }      # lines: {"prompt": "What is 2 + 3?", "reference": "5"}
held_out_prompts = { file = "held-out.jsonl" }   # paths are relative to this file
context = [{ role = "system", content = "You answer with a number." }]
help = [                          # before each prompt, while the base generates
  { role = "system", content = "You answer with a number. Think step by step." },
]
[reward_scoring]
model = "sums"                    # see `ayllu rewards`
threshold = 1.0
[generation]
num_candidates = 8
temperature = 0.9
filtering_function = "top_k"
k = 1
[evaluation]
max_tokens = 64                   # the likeliest answer to each held-out prompt
[training]                        # what is left out is as in `ayllu train sft`
algorithm = "lora"
[training.optimizer_config]
lr = 3e-4
[training.training_config]
n_epochs = 3
"""
IMPROVE_EXAMPLE = (
    "ayllu improve --config loop.toml --out report\n"
    "  ayllu improve report improve-4c1d2e7f --out report\n\n"
    "loop.toml:\n  " + LOOP_EXAMPLE.replace("\n", "\n  ").rstrip()
)
IMPROVE_EXAMPLES = {"report": "ayllu improve report improve-4c1d2e7f --out report"}


def add_improve_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and the sub-command of ``ayllu improve`` to its parser."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="what to do, a TOML file")
    parser.add_argument(
        "--job", metavar="ID", help="the loop's id; by default it follows from the file's content"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the report goes (./improvement-JOB)"
    )
    parser.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the loop to its end, and write its report; --no-follow prints its id",
    )
    parser.add_argument("--json", action="store_true", help="print the report, and nothing else")
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    add = at_gateway(actions_of(parser, IMPROVE_EXAMPLES, required=False), default_url)
    report = add("report", "write the report of a loop as it stands")
    report.add_argument("job", metavar="JOB", help="the loop's id")
    report.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="a folder (./improvement-JOB)",
    )
    report.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print it, too"
    )
