"""The main job on real input: SmolLM2 behind `ayllu up`, asked over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx2
import pytest
from support.processes import Up, run_ayllu, running_up

from ayllu.client import EventStream, connect
from ayllu.schemas import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    ContextLengthExceeded,
    Dialog,
    Message,
    Role,
    StopReason,
    ToolDefinition,
    decode,
)

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m-instruct"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One deployment with the embedded default for all tests of this file."""
    with running_up(tmp_path_factory.mktemp("real"), config=None) as running:
        yield running
        assert running.stop() == 0


def dialog(text: str) -> Dialog:
    return Dialog(message=Message(role=Role.user, content=text))


def capital(**options: object) -> ChatCompletionRequest:
    return decode(
        json.dumps(
            {
                "model": MODEL,
                "dialog": {
                    "message": {"role": "user", "content": "Which city is the capital of France?"}
                },
                "max_tokens": 32,
                **options,
            }
        ),
        ChatCompletionRequest,
    )


@pytest.mark.asyncio
@pytest.mark.requirement("main-job")
async def test_a_chat_streams_over_the_websocket(up: Up) -> None:
    async with connect(up.url) as stack:
        stream = stack.stream_chat_completion(capital(logprobs=True))
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.text_delta for chunk in chunks)
        assert "Paris" in text
        assert len(chunks) > 5
        assert chunks[-1].stop_reason == StopReason.finished_ok
        assert isinstance(stream, EventStream)
        assert stream.result is not None
        whole = decode(stream.result, ChatCompletionResponse)
        assert whole.content == text
        assert whole.usage is not None
        assert whole.usage.completion_tokens >= len(chunks) - 2
        assert whole.logprobs is not None
        asked = await stack.chat_completion(capital())
        assert asked.content == text  # Greedy: the whole form says the same.


@pytest.mark.asyncio
@pytest.mark.requirement("four-inference-operations")
async def test_completions_and_batches(up: Up) -> None:
    async with connect(up.url) as stack:
        request = CompletionRequest(
            model="smollm2", content="The capital of France is", max_tokens=3
        )
        completion = await stack.completion(request)
        assert "Paris" in str(completion.content)
        assert completion.stop_reason == StopReason.max_tokens
        questions = {
            "Which city is the capital of France?": "Paris",
            "What colour is the sky?": "sky",
            "Write one sentence about the sea.": "sea",
        }
        batch = BatchChatCompletionRequest(
            model=MODEL, batch_dialogs=[dialog(text) for text in questions], max_tokens=16
        )
        answers = [str(reply.content) async for reply in stack.batch_chat_completion(batch)]
        assert len(answers) == len(questions)
        for answer, word in zip(answers, questions.values(), strict=True):
            assert word in answer


@pytest.mark.asyncio
@pytest.mark.requirement("forced-tool-call")
async def test_a_forced_tool_call(up: Up) -> None:
    weather = ToolDefinition(
        tool_name="get_weather", parameters={"city": {"type": "string"}}, description="The weather."
    )
    request = ChatCompletionRequest(
        model=MODEL,
        dialog=dialog("What is the weather in Lima?"),
        available_tools=[weather],
        tool_choice="get_weather",
        max_tokens=64,
    )
    async with connect(up.url) as stack:
        reply = await stack.chat_completion(request)
    assert [call.tool_name for call in reply.tool_calls] == ["get_weather"]
    assert isinstance(reply.tool_calls[0].arguments["city"], str)


@pytest.mark.asyncio
@pytest.mark.requirement("context-refused")
async def test_a_prompt_over_the_context_is_refused(up: Up) -> None:
    async with connect(up.url) as stack:
        with pytest.raises(ContextLengthExceeded):
            await stack.completion(CompletionRequest(model=MODEL, content="word " * 9000))


@pytest.mark.asyncio
@pytest.mark.requirement("models-listed")
async def test_models(up: Up) -> None:
    async with connect(up.url) as stack:
        models = sorted([one async for one in stack.models()], key=lambda one: one.name)
    embedding, judge, model = models
    assert (model.name, model.engine, model.kind) == (MODEL, "llama_cpp", "language")
    assert "smollm2" in model.aliases
    assert (embedding.engine, embedding.kind) == ("onnx", "embedding")
    assert (judge.name, judge.engine, judge.kind) == ("judge", "judge", "reward")


@pytest.mark.requirement("http-streams")
def test_http_and_server_sent_events(up: Up) -> None:
    body = {"model": MODEL, "content": "The capital of France is", "max_tokens": 3, "stream": True}
    with httpx2.Client(base_url=up.url, timeout=30) as http:
        reply = http.post("/completion", json=body)
        events = [event for event in reply.text.split("\n\n") if event]
        assert events[-1].startswith("event: result\n")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
        assert "Paris" in "".join(chunk.get("text_delta", "") for chunk in chunks)
        lines = http.get("/models").text.splitlines()
        assert MODEL in {json.loads(line)["name"] for line in lines}


@pytest.mark.requirement("command-line")
def test_the_command_line(up: Up) -> None:
    said = run_ayllu(
        "chat", "--url", up.url, "--max-tokens", "32", "Which city is the capital of France?"
    )
    assert (said.returncode, "Paris" in said.stdout) == (0, True), said.stderr
    talk = run_ayllu("chat", "--url", up.url, "--max-tokens", "8", stdin="Hello\n\nBye\n")
    assert talk.returncode == 0
    assert talk.stdout.count("\n") >= 2
    listed = run_ayllu("call", "models", "--url", up.url)
    assert MODEL in {json.loads(line)["name"] for line in listed.stdout.splitlines()}
    payload = json.dumps({"model": MODEL, "content": "The capital of France is", "max_tokens": 3})
    reply = run_ayllu("call", "completion", "-", "--url", up.url, stdin=payload)
    assert "Paris" in json.loads(reply.stdout)["content"]


def example(name: str, *arguments: str) -> str:
    """Run an example to its end, and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.requirement("examples-run", "agent-with-memory-and-tool")
def test_the_examples_with_agents(up: Up) -> None:
    lines = example("agent_with_memory.py", up.url, up.bus_url).splitlines()
    assert "found: The museum of Cusco is open from nine to five." in lines
    [asked] = [line for line in lines if line.startswith("calls: ")]
    assert asked.startswith("calls: weather.today {'city': ")
    assert "answer: It is sunny in Cusco." in lines
    assert lines[-1] == "completed, 4 steps"
    told = example("follow_turn.py", up.url, "first")
    assert "Paris" in told
    assert int(told.split()[-2]) >= 3  # connections


@pytest.mark.requirement("examples-run")
def test_the_examples_against_a_deployment(up: Up) -> None:
    assert "Paris" in example("websocket_client.py", up.url)
    assert "Paris" in example("bus_program.py", up.bus_url)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "greeter.py"), up.bus_url],
        stdout=subprocess.PIPE,
        text=True,
    ) as greeter:
        try:
            assert greeter.stdout is not None
            assert "ready" in greeter.stdout.readline()
            assert "Allinllachu, Quispe!\nQ U I S P E" in example("call_greeter.py", up.bus_url)
        finally:
            greeter.terminate()


@pytest.mark.requirement("examples-run")
def test_the_readme_s_snippets(up: Up) -> None:
    readme = (ROOT / "README.md").read_text()
    python = readme.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-"],
        input=python.replace("http://127.0.0.1:8321", up.url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Paris" in done.stdout, done.stderr
    body = readme.partition("/chat_completion -d '")[2].partition("'")[0]
    with httpx2.Client(base_url=up.url, timeout=30) as http:
        assert "event: result" in http.post("/chat_completion", content=body).text


@pytest.mark.requirement("main-job")
def test_the_demo() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "text_delta" in done.stdout
    assert "tokens/s" in done.stdout


@pytest.mark.asyncio
@pytest.mark.requirement("no-leaks")
async def test_cancelled_chats_free_their_slots(up: Up) -> None:
    async def leave_after(count: int) -> None:
        seen = 0
        async for _ in stack.stream_chat_completion(capital(max_tokens=0)):
            seen += 1
            if seen >= count:
                return

    with anyio.fail_after(60):
        async with connect(up.url) as stack:
            async with anyio.create_task_group() as tasks:
                for count in range(12):
                    tasks.start_soon(leave_after, count % 4 + 1)
            assert "Paris" in str((await stack.chat_completion(capital())).content)
