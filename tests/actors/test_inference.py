"""The inference actor over the scripted engine; one forced call on the real model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from support.engines import small_model

from ayllu.actors.engines.engine import Capability, Delta, ToolAnswer
from ayllu.actors.engines.scripted import ScriptedEngine, Step, script_from, script_of
from ayllu.actors.inference import InferenceActor
from ayllu.actors.tool_calls import render_calls
from ayllu.actors.untrusted import NOTE, untrusted
from ayllu.bus.bus import local_bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    BatchChatCompletionRequest,
    BatchCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponseStreamChunk,
    CompletionRequest,
    Dialog,
    EngineDead,
    EngineError,
    Inference,
    InvalidRequest,
    Message,
    Model,
    ModelNotFound,
    Overloaded,
    Role,
    StopReason,
    ToolCall,
    ToolDefinition,
    ToolResponse,
    Unsupported,
    assemble_chat,
)
from ayllu.schemas.proxy import EventStream

pytestmark = pytest.mark.asyncio

TOOL = ToolDefinition(
    tool_name="get_weather",
    description="The weather of a city.",
    parameters={"city": {"type": "string", "maxLength": 20}},
)
CALL = ToolCall(tool_name="get_weather", arguments={"city": "Cusco"})


@asynccontextmanager
async def running(
    answers: dict[str, Sequence[Step]] | str, **values: Any
) -> AsyncIterator[tuple[InferenceActor, ScriptedEngine]]:
    script = script_from(answers) if isinstance(answers, str) else script_of(answers)
    async with ScriptedEngine(script, **values) as engine:
        yield InferenceActor(engine, name="m", aliases=["other"]), engine
    assert engine.running == 0


def dialog(text: str) -> Dialog:
    return Dialog(message=Message(role=Role.user, content=text))


def chat(text: str = "hello", **values: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(**{"model": "m", "dialog": dialog(text), **values})


async def streamed(
    actor: InferenceActor, request: ChatCompletionRequest
) -> list[ChatCompletionResponseStreamChunk]:
    with anyio.fail_after(5):
        return [chunk async for chunk in actor.stream_chat_completion(request)]


@pytest.mark.requirement("inference-whole")
async def test_a_completion_streamed_and_whole() -> None:
    async with running("echo") as (actor, _):
        request = CompletionRequest(model="m", content="one two three", logprobs=True)
        chunks = [chunk async for chunk in actor.stream_completion(request)]
        assert [chunk.text_delta for chunk in chunks] == ["one", " two", " three", ""]
        assert [chunk.stop_reason for chunk in chunks[:-1]] == [None] * 3
        whole = await actor.completion(request)
    assert whole.content == "one two three"
    assert whole.stop_reason is StopReason.finished_ok
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 3)
    assert whole.logprobs is not None
    assert [token["token"] for token in whole.logprobs["content"]] == ["one", " two", " three"]


@pytest.mark.requirement("inference-whole")
async def test_a_chat_streamed_and_whole_are_the_same() -> None:
    async with running("count:3") as (actor, _):
        for request in (chat(), chat(logprobs=True), chat(max_tokens=2)):
            whole = await actor.chat_completion(request)
            assert assemble_chat(await streamed(actor, request)) == whole
    assert whole.content == "1 2"
    assert whole.stop_reason is StopReason.max_tokens


@pytest.mark.requirement("assistant-prefix")
async def test_an_answer_goes_on_after_its_prefix() -> None:
    async with running("count:5") as (actor, _):
        assert (await actor.chat_completion(chat(assistant_prefix="1 2 3"))).content == " 4 5"


@pytest.mark.requirement("inference-models")
async def test_it_says_what_it_serves() -> None:
    async with running("echo", context=77) as (actor, _):
        assert actor.models == {"m", "other"}
        (model,) = msgspec.json.decode(actor.service_metadata["models"], type=list[Model])
        assert (model.name, model.aliases, model.context) == ("m", ["other"], 77)
        assert (await actor.chat_completion(chat(model="other"))).content == "hello"
        with pytest.raises(ModelNotFound) as caught:
            await actor.chat_completion(chat(model="third"))
    assert caught.value.details["served"] == ["m", "other"]


@pytest.mark.requirement("tool-calls-parsed")
async def test_tool_calls_are_chunks_of_their_own() -> None:
    written = render_calls([CALL, CALL])
    async with running({"": ["Let me see. ", written[:15], written[15:40], written[40:]]}) as (
        actor,
        _,
    ):
        chunks = await streamed(actor, chat(available_tools=[TOOL], logprobs=True))
    assert [(chunk.text_delta, chunk.tool_call) for chunk in chunks] == [
        ("Let me see. ", None),
        ("", CALL),
        ("", CALL),
        ("", None),
    ]
    whole = assemble_chat(chunks)
    assert whole.tool_calls == [CALL, CALL]
    assert whole.logprobs is not None
    assert (
        "".join(token["token"] for token in whole.logprobs["content"]) == "Let me see. " + written
    )


@pytest.mark.requirement("tool-calls-parsed")
async def test_without_tools_calls_are_text() -> None:
    async with running({"": [render_calls([CALL])]}) as (actor, _):
        for request in (chat(), chat(available_tools=[TOOL], tool_choice="none")):
            whole = await actor.chat_completion(request)
            assert (whole.content, whole.tool_calls) == (render_calls([CALL]), [])


@pytest.mark.requirement("tool-calls-forced")
async def test_a_forced_call_is_constrained_and_read() -> None:
    written = '{"name": "get_weather", "arguments": {"city": "Cusco"}}'
    async with running({"": [written[:9], written[9:]]}) as (actor, engine):
        whole = await actor.chat_completion(chat(available_tools=[TOOL], tool_choice="required"))
        assert (whole.content, whole.tool_calls) == ("", [CALL])
        schema = engine.prompts[0][1].json_schema
    assert schema is not None
    assert schema["properties"]["name"] == {"const": "get_weather"}


@pytest.mark.parametrize(
    ("capability", "values"),
    [
        ("json_schema", {"available_tools": [TOOL], "tool_choice": "required"}),
        ("continuation", {"assistant_prefix": "x"}),
        ("logprobs", {"logprobs": True}),
    ],
)
async def test_what_the_engine_cannot_do_is_unsupported(
    capability: Capability, values: dict[str, Any]
) -> None:
    every: frozenset[Capability] = frozenset(("json_schema", "continuation", "logprobs"))
    async with running("echo", capabilities=every - {capability}) as (actor, _):
        with pytest.raises(Unsupported, match=r"capability|log prob"):
            await actor.chat_completion(chat(**values))


@pytest.mark.requirement("inference-json-schema")
async def test_a_schema_reaches_the_engine_and_excludes_calls() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    async with running({"": ['{"city": "Cusco"}']}) as (actor, engine):
        whole = await actor.chat_completion(
            chat(json_schema=schema, available_tools=[TOOL], tool_choice="none")
        )
        assert (whole.content, whole.tool_calls) == ('{"city": "Cusco"}', [])
        assert engine.prompts[-1][1].json_schema == schema
        with pytest.raises(InvalidRequest, match="json_schema"):
            await actor.chat_completion(chat(json_schema=schema, available_tools=[TOOL]))
        with pytest.raises(InvalidRequest, match="json_schema"):
            await actor.chat_completion(chat(json_schema={"minItems": 10**6}))
    async with running("echo", capabilities=frozenset()) as (actor, _):
        with pytest.raises(Unsupported, match="json_schema"):
            await actor.chat_completion(chat(json_schema={}))


@pytest.mark.requirement("tools-native")
async def test_an_engine_that_knows_tools_gets_them_as_they_are() -> None:
    capabilities: frozenset[Capability] = frozenset(("tools", "json_schema"))
    steps: list[Step] = ["I look. ", Delta(tool_call=CALL), Delta(tool_call=CALL), "<tool_call>"]
    async with running({"": steps}, capabilities=capabilities) as (actor, engine):
        history = [
            Message(role=Role.user, content="Weather?"),
            Message(role=Role.assistant, content="So.", tool_calls=[CALL]),
        ]
        answered = ToolResponse(tool_name="get_weather", content="sunny")
        last = Message(role=Role.tool, content="", tool_responses=[answered])
        request = ChatCompletionRequest(
            model="m",
            dialog=Dialog(message=last, message_history=history),
            available_tools=[TOOL],
        )
        whole = await actor.chat_completion(request)
        assert whole.content == "I look. <tool_call>"
        assert whole.tool_calls == [CALL, CALL]
        prompt, _ = engine.prompts[-1]
        assert [message.text for message in prompt.messages] == [NOTE, "Weather?", "So.", ""]
        assert prompt.messages[2].tool_calls == [CALL]
        assert prompt.messages[3].tool_answers == [ToolAnswer("get_weather", untrusted("sunny"))]
        assert (prompt.tools, prompt.tool_choice) == ([TOOL], None)

        forced = msgspec.structs.replace(request, tool_choice="required")
        await actor.chat_completion(forced)
        prompt, generation = engine.prompts[-1]
        assert prompt.tool_choice == "required"
        assert generation.json_schema is not None

        await actor.chat_completion(msgspec.structs.replace(request, tool_choice="none"))
        assert not engine.prompts[-1][0].tools


@pytest.mark.requirement("batch-in-order")
async def test_batches_answer_in_order_and_use_the_slots() -> None:
    gates = {name: anyio.Event() for name in "abcde"}
    answers: dict[str, Sequence[Step]] = {
        name: [gate, name.upper()] for name, gate in gates.items()
    }
    found: list[Any] = []
    async with running(answers, slots=2) as (actor, engine):

        async def read() -> None:
            request = BatchChatCompletionRequest(
                model="m", batch_dialogs=[dialog(n) for n in gates]
            )
            async for response in actor.batch_chat_completion(request):
                found.append(response.content)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await engine.wait_for(lambda engine: engine.running == 2)
                gates["b"].set()
                await engine.wait_for(lambda engine: engine.started == 3)
                assert found == []
                gates["a"].set()
                await engine.wait_for(lambda engine: engine.started == 4)
                await anyio.wait_all_tasks_blocked()
                assert found == ["A", "B"]
                for name in "cde":
                    gates[name].set()
    assert found == list("ABCDE")


@pytest.mark.requirement("batch-in-order")
async def test_a_batch_of_texts() -> None:
    async with running("echo") as (actor, _):
        request = BatchCompletionRequest(model="m", content_batch=["a b", "c", "d"])
        assert [r.content async for r in actor.batch_completion(request)] == ["a b", "c", "d"]


@pytest.mark.requirement("batch-in-order")
async def test_a_wrong_item_refuses_the_batch_before_any_work() -> None:
    async with running("echo") as (actor, engine):
        with pytest.raises(InvalidRequest, match=r"content_batch\[1\]"):
            await anext(
                actor.batch_completion(BatchCompletionRequest(model="m", content_batch=["a", ""]))
            )
        assert engine.started == 0


@pytest.mark.requirement("inference-cancel")
async def test_closing_a_batch_reaches_the_engine() -> None:
    async with running("stall:2", slots=2) as (actor, engine):
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                batch = actor.batch_completion(
                    BatchCompletionRequest(model="m", content_batch=["a", "b", "c"])
                )

                async def read() -> None:
                    async for _ in batch:
                        pass

                tasks.start_soon(read)
                await engine.wait_for(lambda engine: engine.running == 2)
                tasks.cancel_scope.cancel()
        assert (engine.running, engine.cancelled) == (0, 2)


@pytest.mark.requirement("inference-cancel")
async def test_closing_or_cancelling_a_stream_reaches_the_engine() -> None:
    async with running("stall:2") as (actor, engine):
        chunks = actor.stream_chat_completion(chat())
        with anyio.fail_after(5):
            await anext(chunks)
            await chunks.aclose()
        assert (engine.running, engine.cancelled) == (0, 1)
        with anyio.move_on_after(0.01):
            await actor.chat_completion(chat())
        assert (engine.running, engine.cancelled) == (0, 2)


@pytest.mark.parametrize("error", [EngineError("no"), EngineDead("gone")])
async def test_errors_of_the_engine_pass(error: EngineError) -> None:
    async with running({"": ["some", error]}) as (actor, _):
        chunks = actor.stream_chat_completion(chat())
        assert (await anext(chunks)).text_delta == "some"
        with pytest.raises(type(error)):
            await anext(chunks)
        if isinstance(error, EngineDead):
            with pytest.raises(EngineDead):
                await actor.chat_completion(chat())


@pytest.mark.requirement("tool-calls-forced")
async def test_the_real_model_makes_a_forced_call() -> None:
    async with small_model(slots=1) as engine:
        actor = InferenceActor(engine, name="m")
        request = chat(
            "How is the weather in Cusco?",
            available_tools=[TOOL],
            tool_choice="get_weather",
            max_tokens=60,
        )
        with anyio.fail_after(60):
            whole = await actor.chat_completion(request)
    (call,) = whole.tool_calls
    assert call.tool_name == "get_weather"
    assert isinstance(call.arguments["city"], str)


@asynccontextmanager
async def serving(
    engine: ScriptedEngine, **values: Any
) -> AsyncIterator[tuple[Inference, InferenceActor]]:
    async with engine, local_bus() as bus, anyio.create_task_group() as tasks:
        actor = InferenceActor(engine, name="m", **values)
        await tasks.start(serve, bus, actor)
        with anyio.fail_after(20):
            yield client(Inference, bus), actor
        tasks.cancel_scope.cancel()


@pytest.mark.requirement("share-batches")
async def test_a_batch_takes_the_slots_that_no_request_wants() -> None:
    gates = [anyio.Event() for _ in range(5)]
    said: list[str] = []
    scripts: dict[str, Sequence[Step]] = {f"item {n}": [gates[n], str(n)] for n in range(5)}
    engine = ScriptedEngine(script_of({**scripts, "chat": ["hello"]}), slots=3)
    async with serving(engine) as (inference, actor), anyio.create_task_group() as tasks:

        async def run_batch() -> None:
            batch = BatchCompletionRequest(model="m", content_batch=[f"item {n}" for n in range(5)])
            async for response in inference.batch_completion(batch):
                said.append(str(response.content))

        async def ask() -> None:
            await inference.completion(CompletionRequest(model="m", content="chat"))
            said.append("chat")

        tasks.start_soon(run_batch)
        await engine.wait_for(lambda engine: engine.running == 3)
        tasks.start_soon(ask)
        while actor.slots.waiting != 1:
            await anyio.sleep(0.001)
        assert actor.service_stats()["waiting"] == 1
        gates[2].set()
        while "chat" not in said:
            await anyio.sleep(0.001)
        # It came before the items that waited longer; now these have the slot.
        await engine.wait_for(lambda engine: engine.started == 5)
        for gate in gates:
            gate.set()
    assert said == ["chat", "0", "1", "2", "3", "4"]
    assert actor.slots.sharing.used == 0


@pytest.mark.requirement("share-batches")
async def test_more_batches_than_slots_come_to_their_end() -> None:
    async with serving(ScriptedEngine(script_from("slow:1"), slots=2)) as (inference, actor):
        ended = 0

        async def run_batch() -> None:
            nonlocal ended
            batch = BatchCompletionRequest(model="m", content_batch=["x"] * 5)
            assert len([one async for one in inference.batch_completion(batch)]) == 5
            ended += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(run_batch)
            leaving = inference.batch_completion(
                BatchCompletionRequest(model="m", content_batch=["x"] * 50)
            )
            await anext(aiter(leaving))
            assert isinstance(leaving, EventStream)
            await leaving.aclose()
        assert ended == 6
        while actor.slots.sharing.used:
            await anyio.sleep(0.001)


@pytest.mark.requirement("overloaded-with-a-hint")
async def test_a_full_actor_says_so() -> None:
    engine = ScriptedEngine(script_from("stall:1"), slots=1)
    async with serving(engine, waiting=1) as (inference, actor):
        async with anyio.create_task_group() as tasks:
            request = CompletionRequest(model="m", content="x")
            for _ in range(2):
                tasks.start_soon(inference.completion, request)
            while actor.slots.waiting != 1:
                await anyio.sleep(0.001)
            with pytest.raises(Overloaded) as full:
                await inference.completion(request)
            assert full.value.details["retry_after"] >= 0.5
            tasks.cancel_scope.cancel()
