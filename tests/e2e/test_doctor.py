"""`ayllu doctor`, as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.processes import AYLLU, SCRIPTED, running_up

Findings = dict[str, tuple[str, str, str]]


def doctor(*arguments: str, **variables: str) -> tuple[int, Findings]:
    """Return the exit status, and for each finding its status, what was found and the advice."""
    environment = {key: value for key, value in os.environ.items() if key != "AYLLU_BUS_URL"}
    done = subprocess.run(
        [AYLLU, "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**environment, **variables},
    )
    assert "Traceback" not in done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0)
    findings = {
        one["name"]: (one["status"], one["found"], one.get("advice", ""))
        for one in told["findings"]
    }
    assert all(advice for status, _, advice in findings.values() if status != "ok")
    return done.returncode, findings


@pytest.mark.requirement("doctor")
def test_a_fresh_machine(tmp_path: Path) -> None:
    status, found = doctor("--data-dir", str(tmp_path / "data"))
    assert status == 0
    assert found["packages"][0] == "ok"
    assert "anyio" in found["packages"][1]
    assert "train" in found["extra train"][2] or found["extra train"][0] == "ok"
    assert found["nats-server"][0] == "ok"
    assert found["configuration"][0] == "ok"
    assert found["model smollm2-135m-instruct"][0] == "ok"
    assert found["data directory"][0] == "ok"
    assert not (tmp_path / "data").exists()


@pytest.mark.requirement("doctor")
def test_what_is_wrong_is_named_and_fails(tmp_path: Path) -> None:
    config = tmp_path / "ayllu.toml"
    config.write_text("[gateway]\nnonsense = 1\n")
    status, found = doctor(
        "--config", str(config), "--url", "http://127.0.0.1:1", "--data-dir", "/proc/nothing"
    )
    assert status == 1
    assert found["configuration"][0] == "fail"
    assert "nonsense" in found["configuration"][1]
    assert found["gateway"][0] == "fail"
    assert found["data directory"][0] == "fail"


@pytest.mark.slow
@pytest.mark.requirement("doctor")
def test_a_bus_that_is_not_there_and_no_secrets(tmp_path: Path) -> None:
    status, found = doctor(
        "--data-dir", str(tmp_path), AYLLU_BUS_URL="nats://user:hush@127.0.0.1:1"
    )
    assert status == 1
    assert found["bus"][0] == "fail"
    assert "hush" not in repr(found)


@pytest.mark.requirement("doctor")
def test_a_model_whose_file_is_missing(tmp_path: Path) -> None:
    config = tmp_path / "ayllu.toml"
    config.write_text('[[models]]\nname = "m"\nengine = "llama_cpp"\nsource = "/no/such.gguf"\n')
    status, found = doctor("--config", str(config), "--data-dir", str(tmp_path))
    assert status == 0
    assert found["model m"][0] == "warn"
    assert "/no/such.gguf" in found["model m"][1]


@pytest.mark.requirement("doctor")
def test_a_bus_without_actors(tmp_path: Path, nats_url: str) -> None:
    status, found = doctor("--bus", nats_url, "--data-dir", str(tmp_path))
    assert found["bus"][0] == "ok"
    assert (status, found["models on the bus"][0]) == (1, "fail")


@pytest.mark.slow
@pytest.mark.requirement("doctor")
def test_a_deployment_that_is_well(tmp_path: Path) -> None:
    with running_up(tmp_path / "data", SCRIPTED) as up:
        status, found = doctor("--url", up.url, "--data-dir", str(up.data_dir))
        assert status == 0, found
        assert found["gateway"][0] == "ok"
        served = ("ok", "all-minilm-l6-v2, count, echo, stall", "")
        assert found["models on the bus"] == served
        password = up.bus_url.partition("@")[0].rpartition(":")[2]
        assert password not in repr(found)
    status, found = doctor("--data-dir", str(up.data_dir))
    assert (status, found["bus"][0]) == (0, "warn")


def test_lines_for_people(tmp_path: Path) -> None:
    done = subprocess.run(
        [AYLLU, "doctor", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok  ", "warn", "fail", "      -> ")) for line in lines)
