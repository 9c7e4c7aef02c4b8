"""The command lines of ``ayllu train``, ``ayllu jobs`` and ``ayllu logs``; apart from what they do, so that other commands need
not load that.
"""

from __future__ import annotations

import argparse

from ..schemas import FinetuningAlgorithm, OptimizerType
from .sub_commands import actions_of, at_gateway

TRAIN_EXAMPLES = {
    "sft": "ayllu train sft --model smollm2 --dataset dialogs.jsonl --validation held-out.jsonl --job my-first",
    "dpo": "ayllu train dpo --from my-first --dataset preferences.jsonl",
    "reward": "ayllu train reward --model smollm2 --dataset preferences.jsonl --job my-reward",
}
JOB_EXAMPLES = {
    "list": "ayllu jobs list",
    "show": "ayllu jobs show my-first",
    "cancel": "ayllu jobs cancel my-first",
    "artifacts": "ayllu jobs artifacts my-first",
}
TRAIN_EXAMPLE = "\n  ".join(TRAIN_EXAMPLES.values())
JOB_EXAMPLE = "\n  ".join(JOB_EXAMPLES.values())
LOGS_EXAMPLE = "ayllu logs -f my-first"
CONFIG_HELP = """\
--config takes a TOML file with any field of the request, see docs/training.md; options on the command line win:
  [training_config]
  n_epochs = 3
  [hyperparam_search_config]
  n_trials = 8
  parameters."optimizer_config.lr" = {low = 1e-5, high = 1e-3, log = true}
"""


def add_train_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu train`` to its parser."""
    kinds = parser.add_subparsers(dest="action", required=True, metavar="KIND")
    sft = _kind(kinds, "sft", "supervised fine-tuning: learn to answer as in examples")
    sft.add_argument(
        "--output-layer", action="store_true", help="an adapter on the output layer too"
    )
    dpo = _kind(kinds, "dpo", "preference optimisation: prefer chosen answers to rejected ones")
    dpo.add_argument(
        "--from",
        dest="start",
        metavar="JOB_OR_FOLDER",
        help="a job, whose last checkpoint is gone on with, or the folder of a checkpoint",
    )
    dpo.add_argument("--beta", type=float, help="reward_scale: what leaving the start costs (0.1)")
    dpo.add_argument("--clip", type=float, help="reward_clip: limit of a reward; 0 is none (0)")
    dpo.add_argument("--epsilon", type=float, help="share of pairs that are labelled wrong (0)")
    dpo.add_argument("--gamma", type=float, help="margin between the rewards (0)")
    reward = _kind(
        kinds, "reward", "a reward model: score chosen answers higher than rejected ones"
    )
    reward.set_defaults(output_layer=False)  # It has none; its head is trained whole.
    for kind in (sft, reward):
        _add_model(kind)
    for kind in (sft, dpo, reward):
        _add_common(kind, default_url)


def _kind(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_: str
) -> argparse.ArgumentParser:
    return kinds.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.",
        epilog=f"example:\n  {TRAIN_EXAMPLES[name]}\n\n{CONFIG_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="what is trained; a name from `ayllu call models`")
    parser.add_argument(
        "--algorithm",
        choices=[algorithm.value for algorithm in FinetuningAlgorithm],
        help="full trains all weights, the others an adapter (lora)",
    )
    parser.add_argument("--rank", type=int, help="of the adapter (8)")
    parser.add_argument("--alpha", type=int, help="the adapter's scale is alpha / rank (16)")
    parser.add_argument(
        "--modules",
        nargs="+",
        metavar="NAME",
        help="attention layers with adapters (q_proj v_proj)",
    )
    parser.add_argument("--mlp", action="store_true", help="adapters on the MLP's layers too")


def _add_common(parser: argparse.ArgumentParser, default_url: str) -> None:
    data = "a registered dataset's id, a file (jsonl, json, csv, parquet), or a URL"
    parser.add_argument("--dataset", metavar="DATA", help=data)
    parser.add_argument(
        "--validation", metavar="DATA", help="the same, held out (the dataset itself)"
    )
    parser.add_argument("--job", metavar="ID", help="the job's id; by default a new one is made")
    parser.add_argument("--config", metavar="FILE", help="a TOML file with fields of the request")
    parser.add_argument("--epochs", type=int, help="passes over the dataset (3, or 0 with --iters)")
    parser.add_argument("--iters", type=int, help="iterations at most; 0 is no limit (0)")
    parser.add_argument("--batch-size", type=int, help="examples of an iteration (4)")
    parser.add_argument(
        "--lr", type=float, help="learning rate (2e-4 for adapters, 2e-5 otherwise)"
    )
    parser.add_argument("--lr-min", type=float, help="what it falls to (0)")
    parser.add_argument("--optimizer", choices=[one.value for one in OptimizerType], help="(adamw)")
    parser.add_argument("--weight-decay", type=float, help="(0)")
    parser.add_argument("--no-shuffle", action="store_true", help="take examples in their order")
    parser.add_argument(
        "--activation-checkpointing", action="store_true", help="less memory, more time"
    )
    parser.add_argument("--max-length", type=int, help="tokens of the longest example")
    parser.add_argument("--evaluate-every", type=int, help="iterations between validations")
    parser.add_argument("--checkpoint-every", type=int, help="iterations between checkpoints")
    parser.add_argument("--processes", type=int, help="how many processes train")
    parser.add_argument("--seed", type=int, help="(0)")
    parser.add_argument("--detach", action="store_true", help="do not follow the job; print its id")
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")


def add_job_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu jobs`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    parser.set_defaults(json=False, limit=100)
    add = at_gateway(actions_of(parser, JOB_EXAMPLES, required=False), default_url)
    list_ = add("list", "list jobs: running, waiting in their order, then ended; the default")
    list_.add_argument("--json", action="store_true", help="for programs")
    list_.add_argument("--limit", type=int, default=100, help="(%(default)s)")
    for name, help_ in (
        ("show", "print where a job stands, as JSON"),
        ("cancel", "stop a job; its checkpoints are kept"),
        ("artifacts", "print what a job produced, as JSON"),
    ):
        add(name, help_).add_argument("job", metavar="JOB", help="the job's id")


def add_logs_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options of ``ayllu logs`` to its parser."""
    parser.add_argument("job", metavar="JOB", help="the job's id")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
    parser.add_argument("--json", action="store_true", help="events, for programs")
    parser.add_argument("--no-plot", action="store_true", help="no plot of the losses at the end")
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
