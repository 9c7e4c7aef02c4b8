"""`ayllu agents`, `ayllu turns`, `ayllu chat --agent` and `ayllu dlq`, as their users run them: against one deployment."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.processes import AYLLU, Commands, Up, on_a_terminal, run_ayllu, running_up, wait_for

from ayllu.actors.agents.streams import command_subject, wake_subject
from ayllu.bus import connect

pytestmark = pytest.mark.slow

ECHO = {"instructions": "Help.", "model": "echo"}
CALL = '<tool_call>[{"name": "clock", "arguments": {"zone": "UTC"}}]</tool_call>'
"""What the model of these tests repeats, and so says itself."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One deployment for all tests of this file: each uses agents of its own."""
    with running_up(tmp_path_factory.mktemp("agents")) as running:
        yield running
        assert running.stop() == 0


class AgentCommands(Commands):
    """The commands, and what these tests do with agents."""

    def create(self, uuid: str, **fields: Any) -> None:
        """Create an agent."""
        config = json.dumps({"uuid": uuid, **ECHO, **fields})
        assert self.said("agents", "create", "-", stdin=config) == f"{uuid}\n"

    def turns(self, agent: str) -> list[dict[str, Any]]:
        """Return all turns of an agent."""
        lines = self.said("turns", agent, "list", "--json").splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def ayllu(up: Up) -> AgentCommands:
    return AgentCommands(up)


@pytest.mark.requirement("agent-commands")
@pytest.mark.parametrize(
    ("command", "actions"),
    [
        (["agents"], ["list", "show", "create", "delete"]),
        (["turns", "a"], ["show", "follow", "cancel"]),
        (["dlq"], ["list", "show", "replay", "remove"]),
    ],
)
def test_help_teaches(command: list[str], actions: list[str]) -> None:
    whole = run_ayllu(command[0], "--help").stdout.partition("example:")[2]
    for action in actions:
        assert action in whole
        done = run_ayllu(*command, action, "--help")
        assert done.returncode == 0
        assert f"ayllu {command[0]} " in done.stdout.partition("example:")[2]


@pytest.mark.requirement("agent-commands")
def test_agents_come_and_go(ayllu: AgentCommands, tmp_path: Path) -> None:
    file = tmp_path / "support.toml"
    file.write_text(
        'uuid = "support"\ninstructions = "Answer\\nbriefly."\nmodel = "echo"\nmax_steps = 3\n'
        "[sampling_params]\ntemperature = 0.5\n"
    )
    assert ayllu.said("agents", "create", file) == "support\n"
    assert ayllu.said("agents", "create", file, "--uuid", "other") == "other\n"
    listed = ayllu.said("agents", "list")
    assert "support\techo\tAnswer briefly.\n" in listed
    assert "other\t" in listed
    lines = ayllu.said("agents", "list", "--json").splitlines()
    assert {"support", "other"} <= {json.loads(line)["agent_uuid"] for line in lines}
    shown = json.loads(ayllu.said("agents", "show", "support"))
    assert shown["config"]["sampling_params"] == {"temperature": 0.5}
    again = ayllu("agents", "create", file)
    assert (again.returncode, again.stdout) == (1, "")
    assert "already" in again.stderr
    assert ayllu.said("agents", "delete", "other") == ""
    assert "other\t" not in ayllu.said("agents", "list")


@pytest.mark.requirement("agent-commands")
@pytest.mark.parametrize(
    ("words", "stdin", "status", "says"),
    [
        (["agents", "show", "nobody"], "", 1, "nobody"),
        (["agents", "delete", "nobody"], "", 1, "nobody"),
        (["agents", "create", "/no/such/file.toml"], "", 2, "cannot be read"),
        (["agents", "create", "-"], "{", 2, "malformed"),
        (["agents", "create", "-"], "[]", 2, "it must be an object"),
        (["agents", "create", "-"], '{"uuid": "x", "modle": "echo"}', 2, "modle"),
        (["agents", "create", "-"], json.dumps({"uuid": "x", **ECHO, "model": "no"}), 1, "'no'"),
        (["turns", "nobody"], "", 1, "nobody"),
        (["turns", "nobody", "show", "t"], "", 1, "nobody"),
        (["turns", "nobody", "follow", "t"], "", 1, "nobody"),
        (["turns", "nobody", "cancel", "t"], "", 1, "nobody"),
        (["turns"], "", 2, "AGENT"),
        (["chat", "--agent", "nobody", "hi"], "", 1, "nobody"),
        (["chat", "--agent", "nobody"], "", 1, "nobody"),
        (["chat", "--agent", "nobody", "--model", "echo", "hi"], "", 2, "its own model"),
    ],
)
def test_errors_say_what_is_wrong(
    ayllu: AgentCommands, words: list[str], stdin: str, status: int, says: str
) -> None:
    done = ayllu(*words, stdin=stdin)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.requirement("agent-commands")
def test_a_file_that_is_no_toml(ayllu: AgentCommands, tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("uuid = ")
    done = ayllu("agents", "create", file)
    assert done.returncode == 2
    assert f"{file} is not TOML" in done.stderr


@pytest.mark.requirement("agent-chat")
def test_a_chat_shows_all_that_an_agent_does(ayllu: AgentCommands) -> None:
    created = run_ayllu("bank", "create", "facts", __file__, "--url", ayllu.up.url)
    assert created.returncode == 0, created.stderr
    tools = [{"tool_name": "bell", "parameters": {}}]
    ayllu.create("clerk", memory_bank_uuids=["facts"], retrieval={"k": 1}, available_tools=tools)
    shown = ayllu.said("chat", "--agent", "clerk", f"Well. {CALL}")
    lines = shown.splitlines()
    assert lines[0] == "[1 memory]"
    assert lines[1].startswith("  test_agent_commands.py: ")
    assert lines[2:] == [
        "[2 model]",
        "Well. ",
        '  -> clock {"zone":"UTC"}',
        "[3 tools]",
        "  <- clock: There is no tool 'clock'.",
        "[4 model]",
        lines[-1],
    ]
    assert "clock" in lines[-1]
    [turn] = ayllu.turns("clerk")
    assert turn["status"] == "completed"
    assert ayllu.said("turns", "clerk", "follow", turn["turn_id"]) == shown
    whole = json.loads(ayllu.said("turns", "clerk", "show", turn["turn_id"]))
    assert [step["step_type"] for step in whole["steps"]] == [
        "memory_retrieval",
        "model_inference",
        "tool_execution",
        "model_inference",
    ]


@pytest.mark.requirement("agent-chat")
def test_a_conversation_has_its_history_on_the_server(ayllu: AgentCommands) -> None:
    ayllu.create("talker")
    done = ayllu("chat", "--agent", "talker", stdin="Hello there\n\nAnd bye\n")
    assert done.returncode == 0
    assert "[1 model]\nHello there\n" in done.stdout
    assert "[1 model]\nAnd bye\n" in done.stdout
    listed = ayllu.said("turns", "talker").splitlines()
    assert [line.split("\t")[1::2] for line in listed] == [
        ["completed", "Hello there"],
        ["completed", "And bye"],
    ]
    [_, second] = ayllu.turns("talker")
    whole = json.loads(ayllu.said("turns", "talker", "show", second["turn_id"]))
    assert whole["history"]["turns"] == 1


@pytest.mark.requirement("agent-chat")
def test_a_terminal_gets_colours_and_no_control_characters(ayllu: AgentCommands) -> None:
    ayllu.create("painter")
    command = [AYLLU, "chat", "--url", ayllu.up.url, "--agent", "painter", "ring \x1b[31m\x07 it"]
    environment = {"TERM": "xterm-256color", "NO_COLOR": ""}
    _, text = on_a_terminal(command, whole=True, environment=environment)
    assert "\x1b[2m[1 model]\x1b[0m" in text
    assert "ring \ufffd[31m\ufffd it" in text
    assert "1 steps, " in text


@pytest.mark.requirement("agent-chat", "agent-commands")
def test_ctrl_c_leaves_a_turn_and_cancel_ends_it(ayllu: AgentCommands) -> None:
    ayllu.create("slow", model="stall")
    command = [AYLLU, "chat", "--url", ayllu.up.url, "--agent", "slow", "Go."]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as chat:
        assert chat.stdout is not None
        shown = ""
        while not shown.endswith("5"):
            shown += chat.stdout.read(1)
        chat.send_signal(signal.SIGINT)
        _, said = chat.communicate(timeout=30)
        assert chat.returncode == 130
    [turn] = ayllu.turns("slow")
    assert turn["status"] == "running"
    assert f"ayllu turns slow follow {turn['turn_id']}" in said
    words = ["turns", "slow", "cancel", turn["turn_id"], "--reason", "enough"]
    assert ayllu.said(*words) == "cancelled\n"
    followed = ayllu("turns", "slow", "follow", turn["turn_id"])
    assert (followed.returncode, followed.stdout) == (1, "[1 model]\n1 2 3 4 5\n")
    assert "enough" in followed.stderr


@pytest.mark.requirement("dlq-command")
def test_dead_letters_are_seen_sent_again_and_forgotten(ayllu: AgentCommands) -> None:
    ayllu.create("poisoned")

    async def poison() -> None:
        async with connect(ayllu.up.bus_url) as bus:
            streams = bus.storage.streams
            await streams.append(command_subject("poisoned"), b'{"c": "dance"}', msg_id="poison")
            await streams.append(wake_subject("poisoned"), b"", msg_id="wake poison")

    def dlq(*words: str) -> subprocess.CompletedProcess[str]:
        action, *rest = words
        done = run_ayllu("dlq", action, "--data-dir", str(ayllu.up.data_dir), *rest)
        assert "Traceback" not in done.stderr
        return done

    def listed() -> list[dict[str, Any]]:
        done = dlq("list", "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert listed() == []
    anyio.run(poison)
    wait_for("the letter", lambda: len(listed()) == 1)
    [letter] = listed()
    [id_, _, attempts, subject, reason] = dlq("list").stdout.rstrip("\n").split("\t")
    assert (id_, attempts, subject) == (letter["id"], "1", command_subject("poisoned"))
    assert "dance" in reason
    shown = json.loads(run_ayllu("dlq", "show", "--bus", ayllu.up.bus_url, id_).stdout)
    assert shown["payload"] == {"c": "dance"}
    # It is no better the second time: an executor that was woken buries it again, as another letter.
    assert dlq("replay", id_).returncode == 0
    wait_for("the next letter", lambda: [one["id"] != id_ for one in listed()] == [True])
    [again] = listed()
    assert dlq("remove", again["id"]).returncode == 0
    assert listed() == []
    for action in ("show", "replay", "remove"):
        gone = dlq(action, id_)
        assert (gone.returncode, gone.stdout) == (1, "")
        assert id_ in gone.stderr


@pytest.mark.requirement("dlq-command")
def test_a_bus_that_is_not_there(tmp_path: Path) -> None:
    none = run_ayllu("dlq", "list", "--data-dir", str(tmp_path))
    assert none.returncode == 2
    assert "--bus" in none.stderr
    away = run_ayllu("dlq", "list", "--bus", "nats://127.0.0.1:1")
    assert away.returncode == 1
    assert "does not answer" in away.stderr
    assert "Traceback" not in away.stderr
