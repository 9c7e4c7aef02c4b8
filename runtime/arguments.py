"""The command line's parser: what can be asked, and the help that teaches it."""

from __future__ import annotations

import argparse
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .agent_arguments import (
    AGENT_EXAMPLE,
    LETTER_EXAMPLE,
    TURN_EXAMPLE,
    add_agent_arguments,
    add_letter_arguments,
    add_turn_arguments,
)
from .approval_arguments import APPROVALS_EXAMPLE, add_approval_arguments
from .auth import EVERYTHING
from .bank_arguments import EXAMPLE as BANK_EXAMPLE
from .bank_arguments import add_bank_arguments
from .dataset_arguments import EXAMPLE as DATASET_EXAMPLE
from .dataset_arguments import add_dataset_arguments
from .group_arguments import GROUPS_EXAMPLE, add_group_arguments
from .improve_arguments import IMPROVE_EXAMPLE, add_improve_arguments
from .logs import LOG_FORMAT_VARIABLE, LOG_FORMATS
from .model_arguments import MODELS_EXAMPLE, add_model_arguments
from .reward_arguments import REWARDS_EXAMPLE, add_reward_arguments
from .seeing_arguments import (
    GRAPH_EXAMPLE,
    TOP_EXAMPLE,
    TRACE_EXAMPLE,
    add_graph_arguments,
    add_top_arguments,
    add_trace_arguments,
)
from .synthesis_arguments import SYNTHESIZE_EXAMPLE, add_synthesize_arguments
from .tool_arguments import TOOLS_EXAMPLE, add_tool_arguments
from .training_arguments import (
    JOB_EXAMPLE,
    LOGS_EXAMPLE,
    TRAIN_EXAMPLE,
    add_job_arguments,
    add_logs_arguments,
    add_train_arguments,
)
from .trigger_arguments import TRIGGERS_EXAMPLE, add_trigger_arguments

DEFAULT_PORT = 8321
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
TOKEN_VARIABLE = "AYLLU_TOKEN"
"""The client's token; a command line can be read by others."""
KINDS = (
    "gateway",
    "inference",
    "memory",
    "agents",
    "triggers",
    "groups",
    "tools",
    "shields",
    "datasets",
    "training",
    "rewards",
    "synthetic_data",
    "improvement",
)
"""What a worker can run; those of `ayllu.runtime.worker.KINDS`, which would load all of it."""
EXAMPLES = {
    "up": "ayllu up --port 8321 --data-dir ~/ayllu",
    "worker": "ayllu worker inference --bus nats://10.0.0.1:4222 --config ayllu.toml",
    "chat": 'ayllu chat "Which city is the capital of France?"\n  ayllu chat --agent support "Where is my parcel?"',
    "call": 'ayllu call models\n  ayllu call completion \'{"model": "smollm2", "content": "Once", "max_tokens": 8}\'',
    "bank": BANK_EXAMPLE,
    "agents": AGENT_EXAMPLE,
    "turns": TURN_EXAMPLE,
    "approvals": APPROVALS_EXAMPLE,
    "groups": GROUPS_EXAMPLE,
    "trace": TRACE_EXAMPLE,
    "graph": GRAPH_EXAMPLE,
    "triggers": TRIGGERS_EXAMPLE,
    "top": TOP_EXAMPLE,
    "dataset": DATASET_EXAMPLE,
    "synthesize": SYNTHESIZE_EXAMPLE,
    "improve": IMPROVE_EXAMPLE,
    "train": TRAIN_EXAMPLE,
    "jobs": JOB_EXAMPLE,
    "logs": LOGS_EXAMPLE,
    "models": MODELS_EXAMPLE,
    "rewards": REWARDS_EXAMPLE,
    "tools": TOOLS_EXAMPLE,
    "dlq": LETTER_EXAMPLE,
    "spec": "ayllu spec --out spec",
    "token": "ayllu token alice --scopes Inference Models --expires 2027-12-31 >> ayllu.toml",
    "doctor": "ayllu doctor --config ayllu.toml",
}


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def default_data_dir() -> Path:
    """Return where a deployment's data lives unless told otherwise (XDG base directories)."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "ayllu"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="ayllu",
        description="An agent runtime: models, agents, memory and training as actors on a NATS bus.",
        epilog="Begin with `ayllu up`, then `ayllu chat` in another terminal. Where the gateway wants a token, "
        f"commands take it from the variable {TOKEN_VARIABLE}.",
    )
    parser.add_argument("--version", action="version", version=f"ayllu {version('ayllu')}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more, on stderr")
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        default=os.environ.get(LOG_FORMAT_VARIABLE, "text"),
        help=f"of the lines on stderr (%(default)s; also in the variable {LOG_FORMAT_VARIABLE})",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_servers(commands)
    _add_talk(commands)
    _add_keepers(commands)
    _add_seeing(commands)
    _add_tools(commands)
    return parser


def _add_servers(commands: Commands) -> None:
    up = _add(commands, "up", "run everything on this machine: bus, models, gateway")
    up.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    up.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="0 takes a free port (%(default)s)"
    )
    up.add_argument("--data-dir", type=Path, default=default_data_dir(), help="(%(default)s)")
    up.add_argument("--config", type=Path, help="a TOML file, see docs/configuration.md")
    up.add_argument("--bus", help="use this NATS server instead of an own one")
    _add_import(up)

    worker = _add(commands, "worker", "run actors against a bus that runs already")
    worker.add_argument(
        "kinds",
        nargs="*",
        type=_kind,  # Not `choices`: argparse wants an empty list to be one of them.
        metavar="KIND",
        help=f"{', '.join(KINDS[:-1])} or {KINDS[-1]}",
    )
    _add_import(worker)
    worker.add_argument("--bus", help="the NATS server's URL; or in the variable AYLLU_BUS_URL")
    worker.add_argument("--config", type=Path, help="a TOML file, see docs/configuration.md")
    worker.add_argument("--host", default="127.0.0.1", help="of a gateway (%(default)s)")
    worker.add_argument("--port", type=int, default=DEFAULT_PORT, help="of a gateway (%(default)s)")
    worker.add_argument(
        "--data-dir",
        type=Path,
        default=default_data_dir(),
        help="of memory and training actors (%(default)s)",
    )
    worker.add_argument(
        "--drain-seconds",
        type=float,
        help="how long running calls of models may go on at the end, instead of serving.drain_seconds",
    )
    worker.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)


def _kind(name: str) -> str:
    if name not in KINDS:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {name!r} (choose from {', '.join(KINDS)})"
        )
    return name


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE[:NAME]",
        help="run the actors of a Python module, or the one of this name; may stand several times, see docs/own-actors.md",
    )


def _add_talk(commands: Commands) -> None:
    chat = _add(commands, "chat", "talk to a model or an agent, token by token")
    chat.add_argument("message", nargs="?", help="one message; without it, a conversation begins")
    chat.add_argument("--model", help="a name from `ayllu call models`; by default the first one")
    chat.add_argument(
        "--agent", help="an agent's id: see all that it does; the server keeps its history"
    )
    chat.add_argument("--system", help="instructions for the model")
    chat.add_argument("--max-tokens", type=int, default=0, help="of each answer; 0 is no limit")
    chat.add_argument("--temperature", type=float, default=0.0, help="0 is the most likely answer")
    chat.add_argument("--url", default=DEFAULT_URL, help="of the gateway (%(default)s)")

    call = _add(commands, "call", "call any operation, and print its reply or its events")
    call.add_argument(
        "operation",
        nargs="?",
        metavar="OPERATION",
        help="its name, one of an own actor's too; without one, all of ours are listed",
    )
    call.add_argument("payload", nargs="?", default="{}", help="JSON, @FILE, or - for stdin")
    call.add_argument("--timeout", type=float, help="seconds")
    call.add_argument("--url", default=DEFAULT_URL, help="of the gateway (%(default)s)")


def _add_keepers(commands: Commands) -> None:
    bank = _add(commands, "bank", "keep and search documents")
    add_bank_arguments(bank, DEFAULT_URL)

    add_agent_arguments(
        _add(commands, "agents", "make agents, look at them, remove them"), DEFAULT_URL
    )
    add_turn_arguments(
        _add(commands, "turns", "look at the turns of an agent, follow them, cancel them"),
        DEFAULT_URL,
    )
    add_trigger_arguments(
        _add(commands, "triggers", "let agents be started by events, or by a schedule"), DEFAULT_URL
    )
    add_approval_arguments(
        _add(commands, "approvals", "let agents' calls of tools run, or not"), DEFAULT_URL
    )
    add_group_arguments(
        _add(commands, "groups", "let agents and humans talk with each other"), DEFAULT_URL
    )
    add_dataset_arguments(
        _add(commands, "dataset", "register datasets, look at them, check files"), DEFAULT_URL
    )
    add_synthesize_arguments(
        _add(commands, "synthesize", "generate, score and filter training data"), DEFAULT_URL
    )
    add_improve_arguments(
        _add(commands, "improve", "improve a model by its own good answers, in rounds"), DEFAULT_URL
    )
    add_train_arguments(
        _add(commands, "train", "fine-tune a model, and follow the job"), DEFAULT_URL
    )
    add_job_arguments(_add(commands, "jobs", "look at fine-tuning jobs, cancel them"), DEFAULT_URL)
    add_logs_arguments(_add(commands, "logs", "show the log of a job, and its losses"), DEFAULT_URL)
    add_model_arguments(
        _add(commands, "models", "serve what was trained; list what is served"), DEFAULT_URL
    )
    add_reward_arguments(
        _add(commands, "rewards", "score answers; list the reward models"), DEFAULT_URL
    )
    add_tool_arguments(_add(commands, "tools", "look at agents' tools, and try them"), DEFAULT_URL)
    add_letter_arguments(
        _add(commands, "dlq", "look at what could not be handled, send it again, forget it"),
        default_data_dir(),
    )


def _add_seeing(commands: Commands) -> None:
    add_top_arguments(
        _add(commands, "top", "see what actors, models, agents and queues do at this moment"),
        default_data_dir(),
    )
    add_trace_arguments(
        _add(commands, "trace", "see when what happened in a turn, and in those that it started"),
        DEFAULT_URL,
    )
    add_graph_arguments(
        _add(commands, "graph", "draw who starts whom, as a Mermaid flowchart"), DEFAULT_URL
    )


def _add_tools(commands: Commands) -> None:
    spec = _add(commands, "spec", "write openapi.yaml, openapi.html and asyncapi.yaml")
    spec.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder")

    token = _add(
        commands, "token", "make a token for a client, and its entry for the configuration"
    )
    token.add_argument("name", metavar="NAME", help="whose it is")
    token.add_argument(
        "--scopes",
        nargs="+",
        default=[EVERYTHING],
        metavar="API",
        help="what it allows, such as Inference, or the Protocol of an own actor (%(default)s: everything)",
    )
    token.add_argument("--expires", metavar="DATE", help="until when; by default for ever")

    doctor = _add(commands, "doctor", "say what is installed, reachable, served and wrong")
    doctor.add_argument("--url", help=f"of a gateway that must be there ({DEFAULT_URL}, if it is)")
    doctor.add_argument("--bus", help="of a bus that must be there; or in AYLLU_BUS_URL")
    doctor.add_argument("--config", type=Path, help="a TOML file, see docs/configuration.md")
    doctor.add_argument("--data-dir", type=Path, default=default_data_dir(), help="(%(default)s)")
    doctor.add_argument("--json", action="store_true", help="for programs")


def _add(commands: Commands, name: str, help_: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.",
        epilog=f"example:\n  {EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
