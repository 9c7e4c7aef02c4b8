"""``ayllu improve``: its file, its errors, and loops through a gateway whose stages doubles play."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from support.gateway import running_gateway
from support.improvement import Gate, Improving, Script, running_improvement
from support.processes import AYLLU, run_ayllu

from ayllu.runtime.arguments import build_parser
from ayllu.runtime.improve_arguments import LOOP_EXAMPLE
from ayllu.runtime.improve_commands import prepare_improve, run_improve
from ayllu.runtime.improve_files import request_of
from ayllu.runtime.job_commands import JobFailed
from ayllu.schemas import (
    FilteringFunction,
    ImprovementReport,
    ImproveRequest,
    InvalidRequest,
    JobFailure,
    Message,
    PostTrainingJobStatus,
    Role,
    decode,
)

pytestmark = pytest.mark.requirement("improvement-command")
SMALL = """
model = "tiny"
name = "better"
training_prompts = { prompts = ["1 + 1?", "1 + 2?"], references = ["2", 3] }
held_out_prompts = { file = "held-out.txt" }
[reward_scoring]
model = "sums"
"""


def write(folder: Path, text: str = SMALL) -> Path:
    (folder / "held-out.txt").write_text("".join(f"{n} + 3?\n" for n in range(10)))
    path = folder / "loop.toml"
    path.write_text(text)
    return path


def test_the_example_of_the_help_is_a_request(tmp_path: Path) -> None:
    for name in ("train.jsonl", "held-out.jsonl"):
        (tmp_path / name).write_text('{"prompt": "What is 2 + 3?", "reference": "5"}\n')
    request = request_of(write(tmp_path, LOOP_EXAMPLE), None)
    assert request.training_prompts.prompts == [Message(Role.user, "What is 2 + 3?")]
    assert request.training_prompts.references == ["5"]
    assert (request.rounds, request.generation.num_candidates) == (2, 8)
    assert request.training.optimizer_config.lr == 3e-4
    assert request.training.algorithm_config.rank == 8
    shown = run_ayllu("improve", "--help")
    assert shown.returncode == 0
    assert 'model = "sums"' in shown.stdout


def test_prompts_may_stand_in_the_file_and_what_is_left_out_has_defaults(tmp_path: Path) -> None:
    request = request_of(write(tmp_path), None)
    assert request.training_prompts.prompts[1] == Message(Role.user, "1 + 2?")
    assert request.training_prompts.references == ["2", 3]
    assert len(request.held_out_prompts.prompts) == 10
    assert (request.training.algorithm.value, request.training.training_config.n_epochs) == (
        "lora",
        3,
    )
    full = 'training = { algorithm = "full", training_config = { n_iters = 7 } }\n' + SMALL
    training = request_of(write(tmp_path, full), None).training
    assert (training.optimizer_config.lr, training.training_config.n_epochs) == (2e-5, 0)
    dialogs = SMALL.replace('"1 + 1?"', '{ role = "user", content = "1 + 1?" }')
    assert request_of(write(tmp_path, dialogs), None) == request


def test_the_id_follows_from_what_is_asked_for(tmp_path: Path) -> None:
    request = request_of(write(tmp_path), None)
    assert request_of(write(tmp_path, "# a word\n" + SMALL), None).job_uuid == request.job_uuid
    assert request_of(write(tmp_path, "rounds = 2\n" + SMALL), None).job_uuid != request.job_uuid
    (tmp_path / "held-out.txt").write_text("another one?\n")
    assert request_of(tmp_path / "loop.toml", None).job_uuid != request.job_uuid
    assert request_of(write(tmp_path, 'job_uuid = "mine"\n' + SMALL), None).job_uuid == "mine"
    assert request_of(write(tmp_path, 'job_uuid = "mine"\n' + SMALL), "ours").job_uuid == "ours"


def test_a_filter_that_takes_no_k_has_none(tmp_path: Path) -> None:
    text = SMALL + '[generation]\nfiltering_function = "top_p"\np = 0.9\n'
    generation = request_of(write(tmp_path, text), None).generation
    assert generation.filtering_function is FilteringFunction.top_p
    assert (generation.k, generation.p) == (None, 0.9)
    assert request_of(write(tmp_path, SMALL + "[generation]\n"), None).generation.k == 1


WRONG = [
    ("= 3", "is not TOML"),
    (SMALL.replace('name = "better"', ""), "`name`"),
    ("speed = 3\n" + SMALL, "`speed`"),
    (SMALL + "[generation]\nnum_candidates = 0\n", "$.generation.num_candidates"),
    (SMALL + "[training.optimizer_config]\nlr = -1\n", "$.training.optimizer_config.lr"),
    (SMALL + "[training]\noptimizer_config = 3\n", "$.training.optimizer_config"),
    ("training = 3\n" + SMALL, "$.training"),
    ("generation = 3\n" + SMALL, "$.generation"),
    (SMALL.replace('file = "held-out.txt"', 'file = "no.txt"'), "no.txt cannot be read"),
    (SMALL.replace('file = "held-out.txt"', "file = 3"), "$.held_out_prompts"),
    (SMALL.replace('file = "held-out.txt"', 'file = "x", prompts = []'), "$.held_out_prompts"),
    (SMALL.replace('{ file = "held-out.txt" }', "3"), "$.held_out_prompts"),
    (SMALL.replace('"1 + 1?"', "3"), "$.training_prompts.prompts[0]"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_what_is_wrong_with_a_file_is_said_with_its_path(
    text: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidRequest) as raised:
        request_of(path, None)
    assert said in raised.value.message
    assert str(path) in raised.value.message


def test_a_file_must_be_there() -> None:
    done = run_ayllu("improve")
    assert (done.returncode, "--config" in done.stderr) == (2, True)
    done = run_ayllu("improve", "--config", "no.toml")
    assert (done.returncode, "no.toml cannot be read" in done.stderr) == (2, True)


@asynccontextmanager
async def improving_behind_a_gateway(script: Script) -> AsyncIterator[tuple[str, Improving]]:
    async with running_gateway() as running, running_improvement(running.bus, script) as improving:
        yield running.url, improving


async def command(url: str, *arguments: str) -> None:
    options = build_parser().parse_args(["improve", *arguments])
    await run_improve(url, None, options, prepare_improve(options))


@pytest.mark.asyncio
async def test_one_command_runs_a_loop_and_writes_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    async with improving_behind_a_gateway(Script()) as (url, improving):
        await command(url, "--config", str(path), "--out", str(out))
        shown = capsys.readouterr()
        job = request_of(path, None).job_uuid
        assert f"ayllu logs -f {job}" in shown.err
        assert "round 1: better: mean score 0.4000" in shown.out
        assert "0.400 (0.17 to 0.69)" in shown.out
        report = decode((out / "report.json").read_bytes(), ImprovementReport)
        assert report.status is PostTrainingJobStatus.completed
        assert "<img" in (out / "report.html").read_text()
        # Again it is the same loop; and for programs there is nothing but the report.
        await command(url, "--config", str(path), "--out", str(out), "--json")
        again = decode(capsys.readouterr().out, ImprovementReport)
        assert again.rounds == report.rounds
        await command(url, "report", job, "--out", str(tmp_path / "later"))
        assert (tmp_path / "later" / "report.html").is_file()
        assert (await improving.told.status(job)).attempt == 1


@pytest.mark.asyncio
async def test_a_loop_that_fails_has_a_report_and_an_error(tmp_path: Path) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    script = Script(failures={"mine/round-1/training": JobFailure("broken", "no luck")})
    async with improving_behind_a_gateway(script) as (url, _):
        with pytest.raises(JobFailed, match="no luck"):
            await command(url, "--config", str(path), "--job", "mine", "--out", str(out))
        assert "no luck" in (out / "report.html").read_text()
        # Of a loop that has failed there is a report all the same.
        await command(url, "report", "mine", "--out", str(out))


@pytest.mark.asyncio
async def test_a_loop_may_be_left_and_the_same_command_follows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    gate = Gate()
    async with improving_behind_a_gateway(Script(gates={"a/b/baseline": gate})) as (url, improving):
        await command(url, "--config", str(path), "--job", "a/b", "--no-follow")
        assert capsys.readouterr().out == "a/b\n"
        with anyio.fail_after(20):
            await gate.reached.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(command, url, "--config", str(path), "--job", "a/b")
                await improving.until("evaluating the base", "a/b")
                tasks.cancel_scope.cancel()
            assert (await improving.told.status("a/b")).status is PostTrainingJobStatus.running
            gate.opened.set()
            await command(url, "--config", str(path), "--job", "a/b")
    # The id is one name in the folder.
    assert (tmp_path / "improvement-a%2Fb" / "report.html").is_file()


@pytest.mark.asyncio
async def test_ctrl_c_leaves_the_loop_and_says_how_to_follow_it(tmp_path: Path) -> None:
    path, gate = write(tmp_path), Gate()
    async with improving_behind_a_gateway(Script(gates={"mine/baseline": gate})) as (
        url,
        improving,
    ):
        arguments = ["improve", "--config", str(path), "--job", "mine", "--url", url]
        process = await anyio.open_process([AYLLU, *arguments], stdin=subprocess.DEVNULL)
        with anyio.fail_after(25):
            assert process.stderr is not None
            said = b""
            while b"\n" not in said:  # The loop was accepted.
                said += await process.stderr.receive()
            await gate.reached.wait()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            said += b"".join([chunk async for chunk in process.stderr])
        assert b"the loop goes on" in said
        assert said.count(b"ayllu logs -f mine") == 2
        assert (await improving.told.status("mine")).status is PostTrainingJobStatus.running
        await process.aclose()


class Terminal(io.StringIO):
    """A double of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.asyncio
async def test_a_terminal_shows_the_stage_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    path = write(tmp_path)
    async with improving_behind_a_gateway(Script()) as (url, _):
        await command(url, "--config", str(path), "--out", str(tmp_path))
    assert "round 1: better: mean score 0.4000" in terminal.getvalue()


def test_requests_are_typed(tmp_path: Path) -> None:
    options = build_parser().parse_args(["improve", "--config", str(write(tmp_path))])
    assert isinstance(prepare_improve(options), ImproveRequest)
    assert prepare_improve(build_parser().parse_args(["improve", "report", "x"])) is None
