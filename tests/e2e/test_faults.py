"""What dies comes back, and nobody waits in vain: real processes, killed with -9.

The scripted engine stands in for a model here: these tests are about processes, and need streams that last.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import anyio
import pytest
from support.processes import (
    SCRIPTED,
    Up,
    alive,
    descendants,
    running_up,
    running_worker,
    wait_for,
)

from ayllu.bus import connect as connect_bus
from ayllu.bus.durable import StreamSpec
from ayllu.client import Stack, connect
from ayllu.runtime.supervisor import WORKERS
from ayllu.schemas import (
    AylluError,
    ChatCompletionRequest,
    Dialog,
    Message,
    ModelNotFound,
    Role,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


def chat_request(model: str, text: str = "one two three") -> ChatCompletionRequest:
    return ChatCompletionRequest(
        model=model, dialog=Dialog(message=Message(role=Role.user, content=text))
    )


async def answer(stack: Stack, model: str = "echo") -> str:
    chunks = [chunk async for chunk in stack.stream_chat_completion(chat_request(model))]
    return "".join(chunk.text_delta for chunk in chunks).strip()


async def answer_after_retries(stack: Stack, seconds: float = 20) -> str:
    """Return the answer of the first call that works; whatever fails before must say that a retry may help."""
    with anyio.fail_after(seconds):
        while True:
            try:
                return await answer(stack)
            except AylluError as error:
                assert error.retryable, error.info
                await anyio.sleep(0.05)


@pytest.mark.requirement("kill-inference-worker")
async def test_the_inference_worker_is_killed_in_mid_stream(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        async with connect(up.url) as stack:
            stream = stack.stream_chat_completion(chat_request("stall"))
            for _ in range(5):
                await anext(stream)
            killed = up.kill_child("worker inference")
            with pytest.raises(AylluError) as lost, anyio.fail_after(5):
                await anext(stream)
            assert lost.value.retryable
            assert await answer_after_retries(stack) == "one two three"
            assert up.child("worker inference") != killed
        assert up.stop() == 0


@pytest.mark.requirement("kill-nats-server")
async def test_the_nats_server_is_killed(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        before = {kind: up.child(kind) for kind in ("worker inference", "worker gateway")}
        async with connect(up.url) as stack:
            assert await answer(stack) == "one two three"
            killed = up.kill_child("nats-server")
            assert await answer_after_retries(stack) == "one two three"
            assert up.child("nats-server") != killed
        assert {kind: up.child(kind) for kind in before} == before
        assert up.stop() == 0


@pytest.mark.requirement("client-reconnects")
async def test_the_gateway_is_killed_and_the_client_reconnects(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        async with connect(up.url) as stack:
            stream = stack.stream_chat_completion(chat_request("stall"))
            await anext(stream)
            up.kill_child("worker gateway")
            with pytest.raises(AylluError) as lost, anyio.fail_after(5):
                async for _ in stream:
                    pass
            assert lost.value.retryable
            assert await answer_after_retries(stack) == "one two three"


@pytest.mark.requirement("ends-cleanly")
async def test_sigterm_ends_everything(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        assert len(descendants(up.process.pid)) == 1 + len(WORKERS)
        async with connect(up.url) as stack:
            stream = stack.stream_chat_completion(chat_request("stall"))
            await anext(stream)
            with anyio.fail_after(20):
                assert await anyio.to_thread.run_sync(up.stop) == 0
                with pytest.raises(AylluError) as ended:
                    async for _ in stream:
                        pass
            assert ended.value.retryable


@pytest.mark.requirement("ends-cleanly")
async def test_killed_with_9_its_children_end_too(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        below = descendants(up.process.pid)
        assert len(below) == 1 + len(WORKERS)
        up.process.send_signal(signal.SIGKILL)
        up.process.wait(5)
        wait_for("the end of all children", lambda: not any(map(alive, below)), 5)


@pytest.mark.requirement("durable-across-restarts")
async def test_everything_durable_is_there_after_a_kill(tmp_path: Path) -> None:
    data = tmp_path / "data"
    spec = StreamSpec("KEPT", ("kept.>",))
    with running_up(data) as up:
        async with connect_bus(up.bus_url) as bus:
            await bus.storage.streams.ensure(spec)
            await bus.storage.streams.append("kept.a", b"entry", msg_id="1")
            await (await bus.storage.key_value("kept")).put("key", b"value")
            await (await bus.storage.objects("kept")).put("object", b"x" * 2_000_000)
        up.process.send_signal(signal.SIGKILL)
        up.process.wait(5)
    with running_up(data) as up:
        async with connect_bus(up.bus_url) as bus:
            entry = await bus.storage.streams.last("KEPT", "kept.a")
            assert entry is not None
            assert entry.payload == b"entry"
            value = await (await bus.storage.key_value("kept")).get("key")
            assert value is not None
            assert value.value == b"value"
            assert len(await (await bus.storage.objects("kept")).get("object")) == 2_000_000
        async with connect(up.url) as stack:
            assert await answer(stack) == "one two three"


@pytest.mark.requirement("no-leaks")
async def test_a_hundred_streams_with_random_cancels_leave_no_slot_behind(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        async with connect(up.url) as stack:

            async def follow(leave_after: int) -> None:
                seen = 0
                async for _ in stack.stream_chat_completion(chat_request("count")):
                    seen += 1
                    if seen == leave_after:
                        return

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for index in range(100):
                        tasks.start_soon(follow, index * 37 % 160)
                # A slot that leaked would keep these waiting.
                async with anyio.create_task_group() as tasks:
                    for _ in range(8):
                        tasks.start_soon(answer, stack, "count")


@pytest.mark.requirement("model-not-found")
async def test_a_model_that_nobody_serves(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        async with connect(up.url) as stack:
            with pytest.raises(ModelNotFound) as unknown:
                await stack.chat_completion(chat_request("llama3_8b_chat"))
            assert set(unknown.value.details["served"]) >= {"echo", "stall", "count"}


@pytest.mark.requirement("workers-on-an-external-bus")
async def test_workers_on_an_external_bus(tmp_path: Path, nats_url: str) -> None:
    config = tmp_path / "ayllu.toml"
    config.write_text(SCRIPTED)
    port = free_port()
    with (
        running_worker(["inference", "--config", str(config)], nats_url),
        running_worker(["gateway", "--port", str(port)], nats_url),
    ):
        async with connect(f"http://127.0.0.1:{port}") as stack:
            assert await answer(stack) == "one two three"
            models = [model async for model in stack.models()]
            assert [model.name for model in models] == ["count", "echo", "stall"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.requirement("ends-cleanly")
async def test_two_deployments_do_not_share_a_data_directory(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        second = subprocess.run(
            [*command_of(up), "--port", "0"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode == 1
        assert "data directory" in second.stderr
        assert "Traceback" not in second.stderr


def command_of(up: Up) -> list[str]:
    line = Path(f"/proc/{up.process.pid}/cmdline").read_text().rstrip("\0").split("\0")
    return [word for word in line if word]


async def test_the_bus_address_is_private(tmp_path: Path) -> None:
    with running_up(tmp_path / "data") as up:
        assert os.stat(up.data_dir / "bus.url").st_mode & 0o777 == 0o600
        for command in descendants(up.process.pid).values():
            assert up.bus_url not in command
