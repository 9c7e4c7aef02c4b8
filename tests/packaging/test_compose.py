"""compose.yaml and Dockerfile fit the programs that they run. No container is started here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ayllu.bus.server import find_program
from ayllu.runtime.arguments import build_parser
from ayllu.runtime.worker import KINDS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def docker_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    command = ["docker", "compose", "version"]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@pytest.mark.requirement("compose")
@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_locked_down_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["env_file"] == "ayllu.env"
    assert "environment" not in service
    assert "latest" not in service["image"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.requirement("compose")
def test_each_kind_of_actor_has_a_service_and_a_right_command_line() -> None:
    parser = build_parser()
    workers = {
        name: parser.parse_args(service["command"])
        for name, service in SERVICES.items()
        if name != "nats"
    }
    assert {kind for worker in workers.values() for kind in worker.kinds} == set(KINDS)
    assert all(worker.command == "worker" for worker in workers.values())
    target = COMPOSE["x-worker"]["configs"][0]["target"]
    assert {str(worker.config) for worker in workers.values()} == {target}
    program, *arguments = SERVICES["inference"]["healthcheck"]["test"][1:]
    assert program == "ayllu"
    assert parser.parse_args(arguments).command == "doctor"


@pytest.mark.requirement("compose")
def test_the_nats_server_takes_its_configuration(tmp_path: Path) -> None:
    content = COMPOSE["configs"]["nats"]["content"]
    password = re.search(r"password: (\S+)", content)
    assert password is not None
    assert password[1] == "$$AYLLU_NATS_PASSWORD"
    file = tmp_path / "nats.conf"
    file.write_text(content.replace("$$", "$").replace("/data/", f"{tmp_path}/"))
    done = subprocess.run(
        [find_program(), "-t", "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "AYLLU_NATS_PASSWORD": "p0123456789abcdef"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.requirement("compose")
def test_the_image_has_all_packages_pinned_and_no_root() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = set(project["tool"]["setuptools"]["package-dir"].values())
    copied = set(re.findall(r"^COPY (\w+)/ ", DOCKERFILE, re.MULTILINE))
    assert copied == wanted | {"constraints"}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}/" for name in copied} <= set(ignored)
    assert "*" in ignored
    image = re.search(r"^ARG PYTHON=python:(\S+)$", DOCKERFILE, re.MULTILINE)
    assert image is not None
    assert re.match(r"3\.11\.\d+-", image[1])
    user = re.findall(r"^USER (\d+)", DOCKERFILE, re.MULTILINE)
    assert user
    assert user[-1] != "0"
    assert SERVICES["gateway"]["image"] == f"ayllu:{project['project']['version']}"


@pytest.mark.requirement("compose")
@pytest.mark.skipif(not docker_compose(), reason="there is no docker compose here")
def test_docker_compose_takes_the_file(tmp_path: Path) -> None:
    for name in ("compose.yaml", "Dockerfile"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "ayllu.env").write_text("AYLLU_NATS_PASSWORD=x\nAYLLU_BUS_URL=nats://x\n")
    (tmp_path / "ayllu.toml").touch()
    done = subprocess.run(
        ["docker", "compose", "--project-directory", str(tmp_path), "config", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
