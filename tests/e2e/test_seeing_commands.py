"""`ayllu top`, `ayllu trace` and `ayllu graph`, as their users run them: against one deployment."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.processes import AYLLU, Up, on_a_terminal, run_ayllu, running_up

from ayllu.runtime.trace_view import HEAD

pytestmark = pytest.mark.slow
ASK = '<tool_call>[{"name": "ask", "arguments": {"message": "Dig."}}]</tool_call>'
MATH = '<tool_call>[{"name": "math", "arguments": {"expression": "1 + 1"}}]</tool_call>'


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One deployment for all tests of this file: each uses agents of its own."""
    with running_up(tmp_path_factory.mktemp("seeing")) as running:
        yield running
        assert running.stop() == 0


class Commands:
    """The commands, against a deployment."""

    def __init__(self, up: Up) -> None:
        self.up = up

    def __call__(self, command: str, *words: str, stdin: str = "") -> str:
        """Return what a command that ends well writes to stdout."""
        done = run_ayllu(command, *words, *self.place(command), stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def place(self, command: str) -> list[str]:
        """Return the options that say which deployment."""
        return ["--data-dir", str(self.up.data_dir)] if command == "top" else ["--url", self.up.url]

    def create(self, uuid: str, model: str = "echo", **fields: Any) -> None:
        config = {"uuid": uuid, "instructions": "Help.", "model": model, **fields}
        self("agents", "create", "-", stdin=json.dumps(config))

    def last_turn(self, agent: str) -> str:
        done = run_ayllu("turns", "--url", self.up.url, agent, "list", "--json")
        return str(json.loads(done.stdout.splitlines()[-1])["turn_id"])

    @contextmanager
    def running_turn(self, agent: str, text: str = "Go.", until: bytes = b"5") -> Iterator[str]:
        """Let an agent take a turn that does not end by itself, and cancel it in the end."""
        command = [AYLLU, "chat", "--url", self.up.url, "--agent", agent, text]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        ) as chat:
            try:
                assert chat.stdout is not None
                said = b""
                while until not in said:
                    said += chat.stdout.read(1 << 16)
                turn = self.last_turn(agent)
                yield turn
                run_ayllu("turns", "--url", self.up.url, agent, "cancel", turn)
            finally:
                chat.kill()


@pytest.fixture
def ayllu(up: Up) -> Commands:
    return Commands(up)


@pytest.mark.requirement("top-command")
def test_top_shows_what_is_there_and_what_runs(ayllu: Commands) -> None:
    ayllu.create("slow one", "stall")
    with ayllu.running_turn("slow one") as turn:
        top = json.loads(ayllu("top", "--once", "--json"))
        assert {"agentic-system", "inference", "tools"} <= {row["service"] for row in top["actors"]}
        models = {row["model"]: row for row in top["models"]}
        assert (models["stall"]["in_use"], models["echo"]["in_use"]) == (1, 0)
        assert {"AGENTS", "TURNS"} <= {row["stream"] for row in top["streams"]}
        assert all(row["calls_per_second"] >= 0 for row in top["actors"])
        [shown] = [one for one in top["turns"] if one["agent"] == "slow one"]
        assert (shown["turn"], shown["status"], shown["step"]) == (turn, "running", "model")
        assert 0 < shown["seconds"] < 60


@pytest.mark.requirement("top-command")
def test_top_shows_a_turn_that_waits_for_people(ayllu: Commands) -> None:
    ayllu.create(
        "careful",
        available_tools=[{"tool_name": "math"}],
        executable_tools=["math"],
        require_approval=["math"],
    )
    with ayllu.running_turn("careful", MATH, b"waits for approval") as turn:
        # Without a terminal it is shown once.
        lines = [line.split() for line in ayllu("top").splitlines()]
    assert lines[0] == ["agent", "turn", "status", "does", "age", "tokens", "behind", "it"]
    shown = [line[:5] for line in lines if line[:1] == ["careful"]]
    assert shown == [["careful", turn, "waiting", "tools:", "math"]]


@pytest.mark.requirement("top-command")
def test_top_on_a_terminal_is_shown_anew_until_somebody_has_seen_enough(ayllu: Commands) -> None:
    master, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "60"}
    command = [AYLLU, "top", *ayllu.place("top")]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment) as top:
        os.close(terminal)
        shown = b""
        while shown.count(b"calls/s") < 2:
            shown += os.read(master, 1 << 16)
        top.send_signal(signal.SIGINT)
        while b"\x1b[?1049l" not in shown:
            shown += os.read(master, 1 << 16)
        assert top.wait(20) == 130
    os.close(master)
    assert b"\x1b[?1049h" in shown, "it has a screen of its own"
    assert b"\x1b[?25h" in shown, "the cursor is back"


@pytest.mark.requirement("trace-command")
def test_the_trace_of_a_turn_that_asked_another_agent(ayllu: Commands) -> None:
    ayllu.create("digger")
    ayllu.create("boss", sub_agents=[{"tool_name": "ask", "agents": ["digger"]}])
    ayllu("chat", "--agent", "boss", ASK)
    turn = ayllu.last_turn("boss")
    lines = ayllu("trace", turn).splitlines()
    assert lines[0].split() == ["start", "took", "tokens"]
    shape = [line[len(HEAD) :].split() for line in lines[1:]]
    assert shape[0] == ["boss", "/", turn, "completed"]
    assert shape[1:4] == [["├─", "model"], ["├─", "tools"], ["│", "└─", "ask", "ok"]]
    assert shape[4][:4] == ["│", "└─", "digger", "/"]
    assert shape[4][5].rstrip(",") == "completed"
    assert shape[5:] == [["│", "└─", "model"], ["└─", "model"]]
    whole = json.loads(ayllu("trace", turn, "--agent", "boss", "--json"))
    assert whole["steps"][1]["calls"][0]["children"][0]["agent_uuid"] == "digger"
    command = [AYLLU, "trace", turn, "--url", ayllu.up.url]
    environment = {"TERM": "xterm-256color", "NO_COLOR": ""}
    _, text = on_a_terminal(command, whole=True, environment=environment)
    assert "\x1b[32m" in text
    graph = ayllu("graph")
    number = re.search(r'(a\d+)\["boss"\]', graph)
    assert number is not None
    assert f'{number[1]} -->|"ask"|' in graph


@pytest.mark.requirement("trace-command")
def test_a_turn_is_followed_to_its_end(ayllu: Commands) -> None:
    ayllu.create("slow two", "stall")
    with ayllu.running_turn("slow two") as turn:
        assert "running" in ayllu("trace", turn)
        command = [AYLLU, "trace", turn, "--follow", "--url", ayllu.up.url]
        master, terminal = pty.openpty()
        with subprocess.Popen(command, stdout=terminal, stderr=terminal) as trace:
            os.close(terminal)
            shown = b""
            while b"running" not in shown:
                shown += os.read(master, 1 << 16)
            ayllu("turns", "slow two", "cancel", turn)
            while b"cancelled" not in shown:
                shown += os.read(master, 1 << 16)
            assert trace.wait(20) == 0
        os.close(master)


@pytest.mark.requirement("trace-command")
def test_errors_say_what_is_wrong(ayllu: Commands) -> None:
    for words, status, says in (
        (["nowhere"], 1, "no turn 'nowhere' has begun"),
        (["nowhere", "--agent", "nobody"], 1, "nobody"),
        ([], 2, "TURN"),
    ):
        done = run_ayllu("trace", *words, "--url", ayllu.up.url)
        assert (done.returncode, done.stdout) == (status, "")
        assert says in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.requirement("graph-command")
def test_the_graph_has_triggers_groups_and_tools(ayllu: Commands) -> None:
    tools: dict[str, Any] = {
        "available_tools": [{"tool_name": "math"}],
        "executable_tools": ["math"],
    }
    ayllu.create("watcher", **tools)
    trigger = {"name": "nightly", "agent_id": "watcher", "schedule": {"cron": "0 3 * * *"}}
    ayllu("call", "triggers.create", json.dumps(trigger))
    members = [{"name": "Rosa", "kind": "human"}, {"name": "Ana", "agent_id": "watcher"}]
    group = {"uuid": "panel", "topic": "The weather", "members": members}
    ayllu("call", "groups.create", json.dumps(group))
    graph = ayllu("graph")
    for part in ('(["0 3 #42; #42; #42;"])', '-->|"nightly"|', '(("panel"))', '{{"Rosa"}}'):
        assert part in graph
    assert "%% without" not in graph
    assert '[/"math"/]' not in graph
    assert '[/"math"/]' in ayllu("graph", "--tools")
