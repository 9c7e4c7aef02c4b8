"""The command line: ``ayllu``."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path

import anyio

from ..bus.lifeline import die_with_parent
from ..schemas import OPERATIONS, AylluError, InvalidRequest, encode
from .agent_arguments import (
    AGENT_EXAMPLE,
    LETTER_EXAMPLE,
    TURN_EXAMPLE,
    add_agent_arguments,
    add_letter_arguments,
    add_turn_arguments,
)
from .auth import EVERYTHING
from .bank_arguments import EXAMPLE as BANK_EXAMPLE
from .bank_arguments import add_bank_arguments
from .config import load_config
from .logs import LOG_FORMAT_VARIABLE, LOG_FORMATS, configure_logs

DEFAULT_PORT = 8321
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
TOKEN_VARIABLE = "AYLLU_TOKEN"
"""The client's token; a command line can be read by others."""
EXAMPLES = {
    "up": "ayllu up --port 8321 --data-dir ~/ayllu",
    "worker": "ayllu worker inference --bus nats://10.0.0.1:4222 --config ayllu.toml",
    "chat": 'ayllu chat "Which city is the capital of France?"\n  ayllu chat --agent support "Where is my parcel?"',
    "call": 'ayllu call models\n  ayllu call completion \'{"model": "smollm2", "content": "Once", "max_tokens": 8}\'',
    "bank": BANK_EXAMPLE,
    "agents": AGENT_EXAMPLE,
    "turns": TURN_EXAMPLE,
    "dlq": LETTER_EXAMPLE,
    "spec": "ayllu spec --out spec",
    "token": "ayllu token alice --scopes Inference Models --expires 2027-12-31 >> ayllu.toml",
    "doctor": "ayllu doctor --config ayllu.toml",
}


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

    up = _add(commands, "up", "run everything on this machine: bus, models, gateway")
    up.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    up.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="0 takes a free port (%(default)s)"
    )
    up.add_argument("--data-dir", type=Path, default=default_data_dir(), help="(%(default)s)")
    up.add_argument("--config", type=Path, help="a TOML file, see docs/configuration.md")
    up.add_argument("--bus", help="use this NATS server instead of an own one")

    worker = _add(commands, "worker", "run actors against a bus that runs already")
    worker.add_argument(
        "kinds",
        nargs="+",
        choices=["gateway", "inference", "memory", "agents"],
        metavar="KIND",
        help="gateway, inference, memory or agents",
    )
    worker.add_argument("--bus", help="the NATS server's URL; or in the variable AYLLU_BUS_URL")
    worker.add_argument("--config", type=Path, help="a TOML file, see docs/configuration.md")
    worker.add_argument("--host", default="127.0.0.1", help="of a gateway (%(default)s)")
    worker.add_argument("--port", type=int, default=DEFAULT_PORT, help="of a gateway (%(default)s)")
    worker.add_argument(
        "--data-dir", type=Path, default=default_data_dir(), help="of a memory actor (%(default)s)"
    )
    worker.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)

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
        choices=sorted(OPERATIONS),
        metavar="OPERATION",
        help="its name; without one, all are listed",
    )
    call.add_argument("payload", nargs="?", default="{}", help="JSON, @FILE, or - for stdin")
    call.add_argument("--timeout", type=float, help="seconds")
    call.add_argument("--url", default=DEFAULT_URL, help="of the gateway (%(default)s)")

    bank = _add(commands, "bank", "keep and search documents")
    add_bank_arguments(bank, DEFAULT_URL)

    add_agent_arguments(
        _add(commands, "agents", "make agents, look at them, remove them"), DEFAULT_URL
    )
    add_turn_arguments(
        _add(commands, "turns", "look at the turns of an agent, follow them, cancel them"),
        DEFAULT_URL,
    )
    add_letter_arguments(
        _add(commands, "dlq", "look at what could not be handled, send it again, forget it"),
        default_data_dir(),
    )

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
        choices=[EVERYTHING, *sorted({operation.api for operation in OPERATIONS.values()})],
        metavar="API",
        help="what it allows, such as Inference (%(default)s: everything)",
    )
    token.add_argument("--expires", metavar="DATE", help="until when; by default for ever")

    doctor = _add(commands, "doctor", "say what is installed, reachable, served and wrong")
    doctor.add_argument("--url", help=f"of a gateway that must be there ({DEFAULT_URL}, if it is)")
    doctor.add_argument("--bus", help="of a bus that must be there; or in AYLLU_BUS_URL")
    doctor.add_argument("--config", type=Path, help="a TOML file, see docs/configuration.md")
    doctor.add_argument("--data-dir", type=Path, default=default_data_dir(), help="(%(default)s)")
    doctor.add_argument("--json", action="store_true", help="for programs")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.",
        epilog=f"example:\n  {EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _up(options: argparse.Namespace) -> None:
    from .gateway import check_certificate
    from .supervisor import UpOptions, up

    gateway = load_config(options.config).gateway
    check_certificate(gateway)  # What is wrong is said before anything is started.
    data_dir = options.data_dir.expanduser()
    chosen = UpOptions(options.host, options.port, data_dir, options.config, options.bus, gateway)
    _run(partial(up, chosen))


def _worker(options: argparse.Namespace) -> None:
    from .supervisor import BUS_URL_VARIABLE, PARENT_VARIABLE, check_loopback, open_listener
    from .worker import run_worker

    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        die_with_parent(int(parent))
    bus_url = options.bus or os.environ.get(BUS_URL_VARIABLE)
    if not bus_url:
        raise InvalidRequest(f"which bus? Give --bus or set {BUS_URL_VARIABLE}")
    config = load_config(options.config)
    listener = None
    if options.listen_fd is not None:
        listener = socket.socket(fileno=options.listen_fd)
        if listener.family != socket.AF_UNIX and not config.gateway.tokens:
            check_loopback(listener.getsockname()[0])  # The tokens may be gone since it was opened.
    elif "gateway" in options.kinds:
        authenticated = bool(config.gateway.tokens)
        listener = open_listener(options.host, options.port, authenticated=authenticated)
    data_dir = options.data_dir.expanduser()
    _run(partial(run_worker, options.kinds, bus_url, config, data_dir, listener))


def _chat(options: argparse.Namespace) -> None:
    from .chat import ChatOptions, chat

    if options.agent is not None:
        from .agent_commands import chat_with_agent

        if options.model or options.system or options.max_tokens or options.temperature:
            raise InvalidRequest("an agent has its own model, instructions and sampling")
        token = os.environ.get(TOKEN_VARIABLE)
        _run(partial(chat_with_agent, options.url, token, options.agent, options.message))
        return
    chosen = ChatOptions(
        options.url,
        options.model,
        options.system,
        options.max_tokens,
        options.temperature,
        os.environ.get(TOKEN_VARIABLE),
    )
    _run(partial(chat, chosen, options.message))


def _call(options: argparse.Namespace) -> None:
    from .call import call_operation, list_operations, read_payload

    if options.operation is None:
        list_operations(OPERATIONS)
        return
    payload = read_payload(options.payload)
    operation = OPERATIONS[options.operation]
    token = os.environ.get(TOKEN_VARIABLE)
    _run(partial(call_operation, options.url, operation, payload, options.timeout, token))


def _bank(options: argparse.Namespace) -> None:
    from .banks import run

    _run(partial(run, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _agents(options: argparse.Namespace) -> None:
    from .agent_commands import run_agents

    _run(partial(run_agents, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _turns(options: argparse.Namespace) -> None:
    from .agent_commands import run_turns

    _run(partial(run_turns, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _dlq(options: argparse.Namespace) -> None:
    from .dead_letters import run
    from .supervisor import BUS_URL_VARIABLE

    bus_url = options.bus or os.environ.get(BUS_URL_VARIABLE)
    _run(partial(run, bus_url, options.data_dir.expanduser(), options))


def _spec(options: argparse.Namespace) -> None:
    from .documents import write_documents

    for path in write_documents(OPERATIONS, options.out):
        sys.stdout.write(f"{path}\n")


def _token(options: argparse.Namespace) -> None:
    from .tokens import make_token

    make_token(options.name, options.scopes, options.expires)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import DoctorOptions, Finding, examine
    from .supervisor import BUS_URL_VARIABLE

    findings: list[Finding] = []

    def report(finding: Finding) -> None:
        findings.append(finding)
        if not options.json:
            advice = f"\n      -> {finding.advice}" if finding.advice else ""
            line = f"{finding.status:<5} {finding.name}: {finding.found}{advice}"
            sys.stdout.write(line + os.linesep)

    chosen = DoctorOptions(
        options.url or DEFAULT_URL,
        options.url is not None,
        options.bus or os.environ.get(BUS_URL_VARIABLE),
        options.config,
        options.data_dir.expanduser(),
    )
    _run(partial(examine, chosen, report))
    well = all(finding.status != "fail" for finding in findings)
    if options.json:
        sys.stdout.write(encode({"ok": well, "findings": findings}).decode() + os.linesep)
    return 0 if well else 1


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "up": _up,
    "worker": _worker,
    "chat": _chat,
    "call": _call,
    "bank": _bank,
    "agents": _agents,
    "turns": _turns,
    "dlq": _dlq,
    "spec": _spec,
    "token": _token,
    "doctor": _doctor,
}


def _run(main: Callable[[], Awaitable[None]]) -> None:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        anyio.run(main)
    else:
        anyio.run(main, backend_options={"use_uvloop": True})


def _first_error(error: BaseException) -> BaseException:
    return _first_error(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status: 2 where the caller must change something, 1 for all other errors."""
    options = build_parser().parse_args(arguments)
    try:
        configure_logs(options.log_format, verbose=options.verbose)
        os.environ[LOG_FORMAT_VARIABLE] = options.log_format  # Children log as we do.
        return COMMANDS[options.command](options) or 0
    except KeyboardInterrupt:
        # A thread that waits for stdin would hold up the usual end until something comes.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(130)
    except (AylluError, BrokenPipeError, BaseExceptionGroup) as error:
        first = _first_error(error)
        if isinstance(first, BrokenPipeError):
            # Whoever read our output has seen enough (`ayllu call ... | head -1`).
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        if not isinstance(first, AylluError):
            raise
        sys.stderr.write(f"ayllu {options.command}: {first.message}\n")
        return 2 if isinstance(first, InvalidRequest) else 1


if __name__ == "__main__":
    sys.exit(main())
