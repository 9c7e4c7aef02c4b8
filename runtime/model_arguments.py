"""The command line of ``ayllu models``; apart from what it does, so that other commands need not load that."""

from __future__ import annotations

import argparse
from pathlib import Path

from .sub_commands import actions_of, at_gateway

EXAMPLES = {
    "list": "ayllu models list",
    "register": "ayllu models register support --job my-first\n"
    "  ayllu models register support --path /srv/checkpoints/support --base smollm2",
    "rollback": "ayllu models rollback support --version 1",
    "unregister": "ayllu models unregister support",
}
MODELS_EXAMPLE = "\n  ".join(EXAMPLES.values())
REGISTER_HELP = """\
The model is served once it is loaded; until then, an earlier version of it answers. `ayllu chat --model NAME` talks to it;
a reward model, of a job of `ayllu train reward`, scores answers instead (`ayllu rewards score --model NAME`).
"""


def add_model_arguments(parser: argparse.ArgumentParser, default_url: str) -> None:
    """Add the options and sub-commands of ``ayllu models`` to its parser."""
    parser.add_argument("--url", default=default_url, help="of the gateway (%(default)s)")
    parser.set_defaults(json=False)
    add = at_gateway(actions_of(parser, EXAMPLES, required=False), default_url)
    list_ = add("list", "list the models that are served, and those that are registered (default)")
    list_.add_argument("--json", action="store_true", help="for programs")
    register = add("register", "serve a checkpoint as a model, without a restart")
    register.epilog = f"{register.epilog}\n\n{REGISTER_HELP}"
    register.add_argument("name", metavar="NAME", help="what requests will call it")
    source = register.add_mutually_exclusive_group(required=True)
    source.add_argument("--job", metavar="JOB", help="whose checkpoint it is")
    source.add_argument(
        "--path", type=Path, metavar="FOLDER", help="a checkpoint below a folder of serving.roots"
    )
    register.add_argument(
        "--iters", type=int, metavar="N", help="which checkpoint of the job; its last one"
    )
    register.add_argument(
        "--base", metavar="MODEL", help="the model that was trained; a job knows it"
    )
    rollback = add("rollback", "serve an earlier version of a registered model again")
    rollback.add_argument("name", metavar="NAME")
    rollback.add_argument(
        "--version", type=int, metavar="N", help="which one; the one before the current one"
    )
    unregister = add("unregister", "serve a registered model no more, and forget its versions")
    unregister.add_argument("name", metavar="NAME")
