"""The command line: ``ayllu``."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import anyio

from ..bus.lifeline import die_with_parent
from ..schemas import OPERATIONS, AylluError, InvalidRequest, encode
from .arguments import DEFAULT_URL, TOKEN_VARIABLE, build_parser
from .config import load_config
from .logs import LOG_FORMAT_VARIABLE, configure_logs


def _up(options: argparse.Namespace) -> None:
    from .gateway import check_certificate
    from .supervisor import UpOptions, up

    gateway = load_config(options.config).gateway
    check_certificate(gateway)  # What is wrong is said before anything is started.
    data_dir = options.data_dir.expanduser()
    chosen = UpOptions(
        options.host,
        options.port,
        data_dir,
        options.config,
        options.bus,
        gateway,
        options.imports,
    )
    _run(partial(up, chosen))


def _worker(options: argparse.Namespace) -> None:
    from .importing import import_actors
    from .supervisor import BUS_URL_VARIABLE, PARENT_VARIABLE, check_loopback, open_listener
    from .working import run_worker

    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is not None:
        die_with_parent(int(parent))
    bus_url = options.bus or os.environ.get(BUS_URL_VARIABLE)
    if not bus_url:
        raise InvalidRequest(f"which bus? Give --bus or set {BUS_URL_VARIABLE}")
    if not options.kinds and not options.imports:
        raise InvalidRequest("which actors? Name a KIND, or give --import")
    own = import_actors(options.imports)
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
    run = partial(run_worker, options.kinds, bus_url, config, data_dir, listener)
    _run(partial(run, drain_seconds=options.drain_seconds, own=own))


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
    from .call import call_operation, list_operations, operation_named, read_payload

    if options.operation is None:
        list_operations(OPERATIONS)
        return
    payload = read_payload(options.payload)
    operation = operation_named(options.operation)
    token = os.environ.get(TOKEN_VARIABLE)
    _run(partial(call_operation, options.url, operation, payload, options.timeout, token))


def _bank(options: argparse.Namespace) -> None:
    from .banks import run

    _run(partial(run, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _agents(options: argparse.Namespace) -> None:
    from .agent_commands import run_agents

    _run(partial(run_agents, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _approvals(options: argparse.Namespace) -> None:
    from .approval_commands import run_approvals

    _run(partial(run_approvals, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _groups(options: argparse.Namespace) -> None:
    from .group_commands import run_groups

    _run(partial(run_groups, options.url, os.environ.get(TOKEN_VARIABLE), options))
    if options.action == "join":
        # The conversation is over, and a thread waits for a line of stdin: it would hold up the usual end.
        sys.stdout.flush()
        os._exit(0)


def _turns(options: argparse.Namespace) -> None:
    from .agent_commands import run_turns

    _run(partial(run_turns, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _dataset(options: argparse.Namespace) -> None:
    from .dataset_commands import run_dataset

    _run(partial(run_dataset, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _synthesize(options: argparse.Namespace) -> None:
    from .synthesis_commands import run_synthesize

    _run(partial(run_synthesize, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _improve(options: argparse.Namespace) -> None:
    from .improve_commands import hint, prepare_improve, run_improve

    request = prepare_improve(options)
    try:
        _run(partial(run_improve, options.url, os.environ.get(TOKEN_VARIABLE), options, request))
    except KeyboardInterrupt:
        if request is not None:
            sys.stderr.write(
                f"the loop goes on; the same command run again follows it\n{hint(request.job_uuid)}\n"
            )
        raise


def _train(options: argparse.Namespace) -> None:
    from .train_commands import run_train

    _run(partial(run_train, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _jobs(options: argparse.Namespace) -> None:
    from .job_commands import run_jobs

    _run(partial(run_jobs, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _logs(options: argparse.Namespace) -> None:
    from .job_commands import run_logs

    _run(partial(run_logs, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _models(options: argparse.Namespace) -> None:
    from .model_commands import run_models

    _run(partial(run_models, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _rewards(options: argparse.Namespace) -> None:
    from .reward_commands import run_rewards

    _run(partial(run_rewards, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _tools(options: argparse.Namespace) -> None:
    from .tool_commands import run_tools

    _run(partial(run_tools, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _trace(options: argparse.Namespace) -> None:
    from .trace_commands import run_trace

    _run(partial(run_trace, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _triggers(options: argparse.Namespace) -> None:
    from .trigger_commands import run_triggers

    _run(partial(run_triggers, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _graph(options: argparse.Namespace) -> None:
    from .graph_commands import run_graph

    _run(partial(run_graph, options.url, os.environ.get(TOKEN_VARIABLE), options))


def _top(options: argparse.Namespace) -> None:
    from .supervisor import BUS_URL_VARIABLE
    from .top_commands import run_top

    bus_url = options.bus or os.environ.get(BUS_URL_VARIABLE)
    _run(partial(run_top, bus_url, options.data_dir.expanduser(), options))


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
    "approvals": _approvals,
    "groups": _groups,
    "dataset": _dataset,
    "synthesize": _synthesize,
    "improve": _improve,
    "train": _train,
    "jobs": _jobs,
    "models": _models,
    "rewards": _rewards,
    "tools": _tools,
    "logs": _logs,
    "trace": _trace,
    "graph": _graph,
    "triggers": _triggers,
    "top": _top,
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
