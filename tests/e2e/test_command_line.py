"""The command line where nothing has to run: help, errors, documents."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.processes import run_ayllu

from ayllu.schemas import OPERATIONS

COMMANDS = ["up", "worker", "chat", "call", "bank", "agents", "turns", "dlq", "spec", "doctor"]


@pytest.mark.requirement("command-line")
@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str) -> None:
    done = run_ayllu(command, "--help")
    assert done.returncode == 0
    assert f"ayllu {command}" in done.stdout.partition("example:")[2]


def test_call_lists_the_operations() -> None:
    lines = run_ayllu("call").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(OPERATIONS)
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.requirement("documents-served")
def test_spec_writes_the_documents(tmp_path: Path) -> None:
    done = run_ayllu("spec", "--out", str(tmp_path / "out"))
    assert done.returncode == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["asyncapi.yaml", "openapi.html", "openapi.yaml"]


@pytest.mark.requirement("command-line")
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["up", "--host", "0.0.0.0", "--port", "0"], 1, "loopback"),
        (["up", "--host", "no.such.host.invalid"], 2, "not an address"),
        (["up", "--config", "/no/such/file.toml"], 2, "cannot be read"),
        (["worker", "inference"], 2, "AYLLU_BUS_URL"),
        (["chat", "hi", "--url", "http://127.0.0.1:1"], 1, "ayllu up"),
        (["call", "models", "--url", "nonsense"], 2, "not a websocket address"),
        (["call", "completion", "{"], 2, "malformed"),
        (["call", "completion", '{"modle": "x"}'], 2, "modle"),
        (["call", "completion", "@/no/such/file"], 2, "cannot be read"),
        (["call", "models.nothing"], 2, "no operation"),
        (["worker", "--bus", "nats://127.0.0.1:1"], 2, "--import"),
        (["worker", "nothing", "--bus", "nats://127.0.0.1:1"], 2, "invalid choice"),
        (["worker", "--import", "no_such", "--bus", "nats://127.0.0.1:1"], 2, "no module no_such"),
    ],
)
def test_errors_say_what_to_do(arguments: list[str], status: int, says: str) -> None:
    done = run_ayllu(*arguments)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_ayllu("up", "--port", port, "--data-dir", str(tmp_path))
    assert done.returncode == 2
    assert port in done.stderr


@pytest.mark.requirement("model-registry")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models = 1", "$.models"),
        ('[[models]]\nname = "x"\nengine = "nothing"\nsource = "y"', "x"),
        ("[gateway]\nmax_calls = 1", "max_calls"),
        ("[gateway]\nwrite_timeout = 0", "$.gateway.write_timeout"),
        ("= 1", "not TOML"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "ayllu.toml"
    config.write_text(text)
    done = run_ayllu("up", "--config", str(config), "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()
