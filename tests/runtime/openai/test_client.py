"""OpenAI's own client against a gateway, a real nats-server, and an engine that plays a script."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel
from support.embedders import HashEmbedder
from support.openai_gateway import Gateway, chunks_of, running_openai, said

from ayllu.actors.embedding.actor import EmbeddingActor
from ayllu.actors.engines.scripted import ScriptedEngine, Step, script_of
from ayllu.actors.inference import InferenceActor
from ayllu.bus import client as bus_client
from ayllu.runtime.auth import TokenSpec, hash_of
from ayllu.runtime.config import GatewayConfig
from ayllu.schemas import (
    ChatCompletionRequest,
    Dialog,
    EngineError,
    Inference,
    InternalError,
    Message,
    Overloaded,
    Role,
    Unavailable,
)

pytestmark = pytest.mark.asyncio

MODEL = "openai/scripted"
CALLS = (
    '<tool_call>[{"name": "weather", "arguments": {"city": "Lima"}}, {"name": "time"}]</tool_call>'
)
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "time", "strict": True}},
]
ANSWERS: dict[str, Sequence[Step]] = {
    "weather?": ["Let ", "me see. ", *CALLS.partition("Li")],
    "sunny": ["It is", " sunny."],
    "city as JSON": ['{"name": "Lima",', ' "people": 10}'],
    "nothing": [Overloaded("full", details={"retry_after": 7})],
    "away": [Unavailable("gone")],
    "broken": [EngineError("the engine failed")],
    "secret": [InternalError("x")],
    "half": ["one", EngineError("the engine failed")],
    "for ever": ["one", anyio.Event()],
    "Count": ["1", " 2", " 3"],
    "": ["He", "llo", '"\n'],
}


def user(text: str) -> Any:
    return {"role": "user", "content": text}


@asynccontextmanager
async def running(nats_url: str, **options: Any) -> AsyncIterator[tuple[Gateway, ScriptedEngine]]:
    # Gates belong to a loop, so they are made for each test.
    answers: dict[str, Sequence[Step]] = {
        key: [anyio.Event() if isinstance(step, anyio.Event) else step for step in steps]
        for key, steps in ANSWERS.items()
    }
    async with ScriptedEngine(script_of(answers), context=96) as engine:
        actor = InferenceActor(engine, name=MODEL, aliases=["openai-alias"])
        embedder = EmbeddingActor(HashEmbedder("openai-vectors", 4))
        async with running_openai(nats_url, actor, embedder, **options) as gateway:
            yield gateway, engine


def ask(client: AsyncOpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=[user(text)], **options)


@pytest.mark.requirement("openai-chat", "openai-usage")
async def test_a_chat(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        reply = await ask(gateway.client, "hi", seed=3, stop="x", user="me", temperature=0.5)
        assert reply.choices[0].message.content == 'Hello"\n'
        assert reply.choices[0].finish_reason == "stop"
        assert (reply.object, reply.model) == ("chat.completion", MODEL)
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (1, 3)
        assert reply.usage.total_tokens == 4
        assert reply._request_id
        _, generation = engine.prompts[-1]
        assert (generation.sampling.seed, generation.sampling.stop) == (3, ["x"])
        reply = await ask(gateway.client, "Count", max_completion_tokens=2)
        assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (
            "1 2",
            "length",
        )
        prefix = [user("Count"), {"role": "assistant", "content": "0"}]
        reply = await gateway.client.chat.completions.create(model="openai-alias", messages=prefix)
        assert engine.prompts[-1][0].continues
        assert reply.model == "openai-alias"


@pytest.mark.requirement("openai-chat", "openai-usage")
async def test_a_chat_streams(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        stream = await ask(
            gateway.client, "hi", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
        assert "".join(text) == 'Hello"\n'
        assert len(text) == 3
        assert chunks[-2].choices[0].finish_reason == "stop"
        assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 4)
        assert len({chunk.id for chunk in chunks}) == 1
        async with gateway.client.chat.completions.stream(
            model=MODEL, messages=[user("hi")]
        ) as helper:
            kinds = [event.type async for event in helper]
            whole = await helper.get_final_completion()
        assert kinds.count("content.delta") >= 3
        assert whole.choices[0].message.content == 'Hello"\n'


@pytest.mark.requirement("openai-chat")
async def test_the_client_that_blocks(nats_url: str) -> None:
    def talk(base_url: str) -> tuple[str, str]:
        with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model=MODEL, messages=[user("hi")])
            with client.chat.completions.create(
                model=MODEL, messages=[user("hi")], stream=True
            ) as stream:
                text = "".join(
                    choice.delta.content or "" for chunk in stream for choice in chunk.choices
                )
            return str(whole.choices[0].message.content), text

    async with running(nats_url) as (gateway, _):
        whole, streamed = await anyio.to_thread.run_sync(talk, gateway.base_url)
        assert whole == streamed == 'Hello"\n'


@pytest.mark.requirement("openai-tools")
async def test_tools(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        whole = await ask(gateway.client, "weather?", tools=TOOLS)
        message = whole.choices[0].message
        assert whole.choices[0].finish_reason == "tool_calls"
        assert message.content == "Let me see. "
        assert [call.function.name for call in message.tool_calls] == ["weather", "time"]
        assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Lima"}
        async with gateway.client.chat.completions.stream(
            model=MODEL, messages=[user("weather?")], tools=TOOLS
        ) as helper:
            events = [event async for event in helper]
            final = (await helper.get_final_completion()).choices[0].message
        assert "tool_calls.function.arguments.done" in {event.type for event in events}
        assert [call.function.name for call in final.tool_calls or []] == ["weather", "time"]
        answers: Any = [
            {"role": "tool", "tool_call_id": call.id, "content": text}
            for call, text in zip(message.tool_calls, ["sunny", "noon"], strict=True)
        ]
        reply = await gateway.client.chat.completions.create(
            model=MODEL,
            messages=[user("weather?"), message, *answers],  # The client's own object goes back.
            tools=TOOLS,
        )
        assert reply.choices[0].message.content == "It is sunny."
        assert '"weather"' in engine.prompts[-1][0].messages[-1].text


@pytest.mark.requirement("openai-tools")
async def test_a_forced_call(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        choice = {"type": "function", "function": {"name": "weather"}}
        for wanted in (choice, "required"):
            await ask(gateway.client, "hi", tools=TOOLS, tool_choice=wanted)
            assert engine.prompts[-1][1].json_schema is not None
        await ask(gateway.client, "hi", tools=TOOLS, tool_choice="none")
        assert len(engine.prompts[-1][0].messages) == 1


class City(BaseModel):
    name: str
    people: int


@pytest.mark.requirement("openai-structured-output")
async def test_structured_output(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        parsed = await gateway.client.chat.completions.parse(
            model=MODEL, messages=[user("a city as JSON")], response_format=City
        )
        assert parsed.choices[0].message.parsed == City(name="Lima", people=10)
        schema = engine.prompts[-1][1].json_schema
        assert schema is not None
        assert schema["properties"].keys() == {"name", "people"}
        said_before: Any = parsed.choices[0].message.model_dump(exclude={"parsed"})
        assert said_before["audio"] is None  # Clients send such fields back.
        await gateway.client.chat.completions.create(
            model=MODEL,
            messages=[said_before, user("a city as JSON")],
            response_format={"type": "json_object"},
        )
        assert engine.prompts[-1][1].json_schema == {"type": "object"}


@pytest.mark.requirement("openai-logprobs")
async def test_log_probabilities(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        whole = await ask(gateway.client, "Count", logprobs=True, top_logprobs=1)
        tokens = whole.choices[0].logprobs.content
        assert [one.token for one in tokens] == ["1", " 2", " 3"]
        assert tokens[0].top_logprobs[0].bytes == [49]
        stream = await ask(gateway.client, "Count", logprobs=True, stream=True)
        told = [
            one.token
            async for chunk in stream
            for choice in chunk.choices
            if choice.logprobs
            for one in choice.logprobs.content
        ]
        assert told == ["1", " 2", " 3"]


@pytest.mark.requirement("openai-completions", "openai-logprobs")
async def test_completions(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        complete = gateway.client.completions.create
        whole = await complete(model=MODEL, prompt="Count", logprobs=1)
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("1 2 3", "stop")
        assert engine.prompts[-1][1].max_tokens == 16
        assert whole.choices[0].logprobs is not None
        assert whole.choices[0].logprobs.text_offset == [0, 1, 3]
        several = await complete(model=MODEL, prompt=["Count", "x", "Count"])
        assert [one.text for one in several.choices] == ["1 2 3", 'Hello"\n', "1 2 3"]
        assert several.usage is not None
        assert several.usage.completion_tokens == 9
        text = ""
        async for chunk in await complete(model=MODEL, prompt="Count", stream=True):
            text += chunk.choices[0].text
        assert text == "1 2 3"
        parts = {}
        async for chunk in await complete(model=MODEL, prompt=["Count", "x"], stream=True):
            parts[chunk.choices[0].index] = chunk.choices[0].text
        assert parts == {0: "1 2 3", 1: 'Hello"\n'}


@pytest.mark.requirement("openai-embeddings")
async def test_embeddings(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        create, model = gateway.client.embeddings.create, "openai-vectors"
        packed = await create(model=model, input=["sun", "rain and wind"])  # base64 on the wire
        plain = await create(model=model, input=["sun", "rain and wind"], encoding_format="float")
        assert [len(one.embedding) for one in packed.data] == [4, 4]
        for one, other in zip(packed.data, plain.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert packed.usage.prompt_tokens == packed.usage.total_tokens == 4
        with pytest.raises(openai.BadRequestError) as caught:
            await create(model=model, input="sun", dimensions=3)
        assert caught.value.param == "dimensions"


@pytest.mark.requirement("openai-models")
async def test_models(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        listed = {model.id: model async for model in gateway.client.models.list()}
        assert {MODEL, "openai-vectors"} <= listed.keys()
        one = await gateway.client.models.retrieve(MODEL)
        assert (one.created, one.owned_by) == (0, "ayllu")
        assert (await gateway.client.models.retrieve("openai-alias")).id == MODEL
        assert one.model_extra is not None
        assert one.model_extra["ayllu"]["context"] == 96


@pytest.mark.requirement("openai-errors", "retry-after")
async def test_each_error_raises_its_class(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        client = gateway.client

        async def caught(text: str, kind: type[openai.APIStatusError], **options: Any) -> Any:
            with pytest.raises(openai.APIStatusError) as found:
                await ask(client, text, **options)
            assert type(found.value) is kind
            assert found.value.request_id
            return found.value

        error = await caught("hi", openai.BadRequestError, n=2)
        assert (error.param, error.type) == ("n", "invalid_request_error")
        error = await caught("word " * 120, openai.BadRequestError)
        assert error.code == "context_length_exceeded"
        image = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
        shown: Any = [{"role": "user", "content": [image]}]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=shown)
        assert refused.value.code == "unsupported"
        for stream in (False, True):
            error = await caught("nothing", openai.RateLimitError, stream=stream)
            assert (error.code, error.response.headers["retry-after"]) == (
                "rate_limit_exceeded",
                "7",
            )
        error = await caught("away", openai.InternalServerError)
        assert (error.status_code, error.type) == (503, "server_error")
        error = await caught("broken", openai.InternalServerError)
        assert (error.status_code, error.code) == (500, "engine_error")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="no-such", messages=[user("x")])
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("no-such")
        with pytest.raises(openai.NotFoundError):
            await client.files.list()


@pytest.mark.requirement("openai-errors")
async def test_what_can_only_fail_again_is_not_tried_again(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        patient = gateway.client.with_options(max_retries=2)
        with pytest.raises(openai.InternalServerError):
            await ask(patient, "broken")
        assert engine.started == 1


@pytest.mark.requirement("openai-errors")
async def test_an_error_within_a_stream(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        stream = await ask(gateway.client, "half", stream=True)
        text = ""
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
        assert text == "one"
        assert (caught.value.code, caught.value.message) == ("engine_error", "the engine failed")
        body = {"model": MODEL, "messages": [user("half")], "stream": True}
        reply = await gateway.http.post("/v1/chat/completions", json=body)
        assert reply.text.split("\n\n")[-2].startswith('data: {"error":{"message":')
        assert "[DONE]" not in reply.text


@pytest.mark.requirement("openai-errors", "openai-nothing-ignored")
async def test_errors_that_need_no_call(nats_url: str) -> None:
    config = GatewayConfig(max_message_bytes=500)
    async with running(nats_url, config=config) as (gateway, _):
        http = gateway.http
        for reply, status, code in [
            (await http.get("/v1/nothing"), 404, "not_found"),
            (await http.get("/v1/chat/completions"), 405, "method_not_allowed"),
            (await http.post("/v1/completions", content=b"x" * 600), 413, "too_large"),
            (await http.post("/v1/completions", content=b"{"), 400, "invalid_request"),
            (await http.get("/v1/models?after=x"), 400, "invalid_request"),
            (
                await http.get("/v1/models", headers={"Host": "evil.example"}),
                403,
                "permission_denied",
            ),
            (
                await http.get("/v1/models", headers={"Ayllu-Timeout": "soon"}),
                400,
                "invalid_request",
            ),
        ]:
            error = reply.json()["error"]
            assert (reply.status_code, error["code"]) == (status, code)
            assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.requirement("openai-gate")
async def test_tokens_and_scopes(nats_url: str) -> None:
    tokens = [
        TokenSpec("all", hash_of("good"), ["*"]),
        TokenSpec("vectors", hash_of("few"), ["Embeddings"]),
    ]
    config = GatewayConfig(tokens=tokens)
    async with running(nats_url, config=config, token="good") as (gateway, _):
        assert (await ask(gateway.client, "hi")).choices
        few = gateway.client.with_options(api_key="few")
        await few.embeddings.create(model="openai-vectors", input="x")
        with pytest.raises(openai.PermissionDeniedError):
            await ask(few, "hi")
        with pytest.raises(openai.PermissionDeniedError):
            await few.models.list()
        with pytest.raises(openai.AuthenticationError) as caught:
            await ask(gateway.client.with_options(api_key="bad"), "hi")
        assert caught.value.code == "invalid_api_key"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"


@pytest.mark.requirement("openai-gate", "retry-after")
async def test_limits(nats_url: str) -> None:
    config = GatewayConfig(max_calls_per_caller=1)
    async with running(nats_url, config=config) as (gateway, engine):
        async with await ask(gateway.client, "for ever", stream=True):
            await engine.wait_for(lambda one: one.running == 1)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask(gateway.client, "hi")
            assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.requirement("openai-gate")
async def test_deadlines(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        with pytest.raises(openai.InternalServerError) as caught:
            await ask(gateway.client, "for ever", extra_headers={"Ayllu-Timeout": "0.2"})
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        with pytest.raises(openai.APITimeoutError):
            await ask(gateway.client, "for ever", timeout=0.3)
        await engine.wait_for(lambda one: one.running == 0)
        assert engine.cancelled == 2


@pytest.mark.requirement("openai-gate")
async def test_closing_the_stream_reaches_the_engine(nats_url: str) -> None:
    async with running(nats_url) as (gateway, engine):
        stream = await ask(gateway.client, "for ever", stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content == "one":
                break
        assert engine.running == 1
        await stream.close()
        await engine.wait_for(lambda one: one.cancelled == 1)


@pytest.mark.requirement("openai-gate")
async def test_calls_are_counted_as_ours(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        await ask(gateway.client, "hi")
        async for _chunk in await ask(gateway.client, "hi", stream=True):
            pass
        with pytest.raises(openai.BadRequestError):
            await ask(gateway.client, "hi", n=3)
        await gateway.client.completions.create(model=MODEL, prompt=["a", "b"])
        page = (await gateway.http.get("/metrics")).text
        for operation, outcome in [
            ("chat_completion", "ok"),
            ("chat_completion.stream", "ok"),
            ("chat_completion", "invalid_request"),
            ("batch_completion", "ok"),
        ]:
            labels = f'{{operation="{operation}",outcome="{outcome}"}}'
            assert f"ayllu_calls_total{labels} 1.0" in page


@pytest.mark.requirement("openai-same-text")
async def test_the_same_text_on_both_ways(nats_url: str) -> None:
    async with running(nats_url) as (gateway, _):
        body = {"model": MODEL, "messages": [user("Count")], "stream": True}
        reply = await gateway.http.post("/v1/chat/completions", json=body)
        native = await bus_client(Inference, gateway.bus).chat_completion(
            ChatCompletionRequest(MODEL, Dialog(Message(Role.user, "Count")))
        )
        assert said(chunks_of(reply.text)) == native.content


class Liar(Inference):
    """An actor that is not ours, and answers nonsense."""

    service_name = "liar"
    models = frozenset(("openai-liar",))

    def __init__(self) -> None:
        self.heard = anyio.Event()

    async def completion(self, request: Any) -> Any:
        return {"content": 5}

    async def stream_completion(self, request: Any) -> AsyncIterator[Any]:
        yield {"text_delta": "fine"}
        await self.heard.wait()
        yield {"text_delta": 5}

    async def chat_completion(self, request: Any) -> Any:
        return ["no"]

    async def stream_chat_completion(self, request: Any) -> AsyncIterator[Any]:
        yield {"text_delta": "fine", "logprobs": {"content": 3}}

    async def batch_completion(self, request: Any) -> AsyncIterator[Any]:
        yield {"content": "only one"}

    async def batch_chat_completion(self, request: Any) -> AsyncIterator[Any]:
        yield {}


@pytest.mark.requirement("openai-actors-not-trusted")
async def test_actors_that_are_not_ours(nats_url: str) -> None:
    liar = Liar()
    requests: list[tuple[str, dict[str, Any]]] = [
        ("completions", {"prompt": "x"}),
        ("completions", {"prompt": ["x", "y"]}),
        ("chat/completions", {"messages": [user("x")]}),
        ("chat/completions", {"messages": [user("x")], "stream": True}),
    ]
    async with running_openai(nats_url, liar) as gateway:
        for path, fields in requests:
            body = {"model": "openai-liar", **fields}
            reply = await gateway.http.post(f"/v1/{path}", json=body)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "bus_error")
        body = {"model": "openai-liar", "prompt": "x", "stream": True}
        async with gateway.http.stream("POST", "/v1/completions", json=body) as streamed:
            assert streamed.status_code == 200
            lines = aiter(streamed.aiter_lines())
            assert '"fine"' in await anext(lines)
            liar.heard.set()
            assert '"bus_error"' in [line async for line in lines if line][-1]
