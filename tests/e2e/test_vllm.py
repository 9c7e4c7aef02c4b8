"""SmolLM2 on vLLM in a worker process, behind a gateway: asked, killed, and found again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from support.processes import alive, descendants, running_worker, wait_for
from support.vllm_models import SETTINGS, model_folder

from ayllu.bus import client, connect
from ayllu.schemas import (
    AylluError,
    BatchCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    Dialog,
    Inference,
    Message,
    Role,
    StopReason,
    ToolDefinition,
    encode,
)

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio, pytest.mark.timeout(400)]

START_SECONDS = 180.0
TEMPLATE = """
{%- if tools %}<|im_start|>system
Tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""SmolLM2's own format, with tools, of which its template says nothing."""
MODEL = "smollm2-on-vllm"
SLOTS = 4


@pytest.fixture(scope="module")
def worker(
    nats_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    folder = tmp_path_factory.mktemp("vllm")
    settings = "\n".join(f"{name} = {encode(value).decode()}" for name, value in SETTINGS.items())
    template = folder / "tools.jinja"
    template.write_text(TEMPLATE)
    settings += f'\ntool_parser = "hermes"\nchat_template = "{template}"'
    (folder / "ayllu.toml").write_text(
        f'[[models]]\nname = "{MODEL}"\nengine = "vllm"\nsource = "{model_folder()}"\n'
        f"context = 512\nslots = {SLOTS}\n[models.vllm]\n{settings}\n"
    )
    arguments = ["inference", "--config", str(folder / "ayllu.toml"), "--data-dir", str(folder)]
    with running_worker(arguments, nats_url, seconds=START_SECONDS) as process:
        yield process


def chat(text: str, **values: object) -> ChatCompletionRequest:
    dialog = Dialog(message=Message(role=Role.user, content=text))
    return ChatCompletionRequest(model=MODEL, dialog=dialog, **values)  # type: ignore[arg-type]


def core_of(worker: subprocess.Popen[str]) -> int:
    """Return the process id of vLLM's engine core."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(worker.pid)}
    [core] = [pid for pid, name in names.items() if name.startswith("VLLM::EngineCor")]
    return core


@pytest.mark.requirement("vllm-end-to-end")
async def test_all_operations(worker: subprocess.Popen[str], nats_url: str) -> None:
    assert worker.poll() is None
    async with connect(nats_url) as bus:
        inference = client(Inference, bus)
        asked = chat("Which city is the capital of France?", max_tokens=40, logprobs=True)
        chunks = [chunk async for chunk in inference.stream_chat_completion(asked)]
        text = "".join(chunk.text_delta for chunk in chunks)
        assert "Paris" in text
        assert len(chunks) > 3
        assert chunks[-1].stop_reason is StopReason.finished_ok
        whole = await inference.chat_completion(asked)
        assert whole.content == text
        assert whole.logprobs is not None
        assert "".join(token["token"] for token in whole.logprobs["content"]) == text

        completed = await inference.completion(
            CompletionRequest(model=MODEL, content="1, 2, 3, 4, 5,", max_tokens=8)
        )
        assert str(completed.content).strip().startswith("6,")
        batch = BatchCompletionRequest(
            model=MODEL, content_batch=["1, 2, 3,", "7, 8, 9,"], max_tokens=4
        )
        answers = [str(one.content).strip() async for one in inference.batch_completion(batch)]
        assert [answer.partition(",")[0] for answer in answers] == ["4", "10"]

        tool = ToolDefinition(
            tool_name="get_weather", parameters={"city": {"type": "string", "maxLength": 20}}
        )
        called = await inference.chat_completion(
            chat(
                "The weather in Cusco?",
                available_tools=[tool],
                tool_choice="required",
                max_tokens=60,
            )
        )
        spoken = await inference.chat_completion(
            chat("Which city is the capital of France?", available_tools=[tool], max_tokens=12)
        )
        assert spoken.content or spoken.tool_calls
        assert [call.tool_name for call in called.tool_calls] == ["get_weather"]
        assert called.tool_calls[0].arguments.keys() == {"city"}


@pytest.mark.requirement("engine-cancel")
async def test_a_cancel_reaches_the_engine_core(
    worker: subprocess.Popen[str], nats_url: str
) -> None:
    assert worker.poll() is None
    long = CompletionRequest(model=MODEL, content="1, 2, 3,", max_tokens=480)
    async with connect(nats_url) as bus:
        inference = client(Inference, bus)
        begun = anyio.current_time()
        async for _ in inference.stream_completion(long):
            pass
        alone = anyio.current_time() - begun
        streams = [inference.stream_completion(long) for _ in range(SLOTS)]
        for stream in streams:
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
        # Where the core went on with one of them, all of its places would be taken for as long.
        with anyio.fail_after(alone / 2):
            await inference.completion(
                CompletionRequest(model=MODEL, content="4, 5,", max_tokens=4)
            )


@pytest.mark.requirement("vllm-core-killed")
async def test_the_engine_core_is_killed_in_mid_stream(
    worker: subprocess.Popen[str], nats_url: str
) -> None:
    core = core_of(worker)
    async with connect(nats_url) as bus:
        inference = client(Inference, bus)
        stream = inference.stream_completion(
            CompletionRequest(model=MODEL, content="1, 2, 3,", max_tokens=400)
        )
        await anext(stream)
        os.kill(core, signal.SIGKILL)
        with pytest.raises(AylluError) as lost, anyio.fail_after(20):
            async for _ in stream:
                pass
        assert lost.value.code == "engine_dead"
        assert lost.value.retryable
        with anyio.fail_after(START_SECONDS):
            while True:
                try:
                    whole = await inference.chat_completion(chat("Say hello.", max_tokens=4))
                    break
                except AylluError as error:
                    assert error.retryable, error.info
                    await anyio.sleep(0.5)
        assert whole.content
    assert worker.poll() is None
    assert core_of(worker) != core


@pytest.mark.requirement("vllm-no-orphans")
async def test_nothing_is_left_of_a_worker_that_is_killed(worker: subprocess.Popen[str]) -> None:
    below = descendants(worker.pid)
    assert core_of(worker) in below
    worker.kill()
    wait_for("the end of vLLM's processes", lambda: not any(map(alive, below)), 30)
