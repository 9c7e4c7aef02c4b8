"""OpenAI's client and SmolLM2: what docs/openai.md shows, and the same text whatever the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field
from support.engines import GREEDY, answer, user
from support.openai_gateway import chunks_of, said
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, running_up

from ayllu.actors.engines.engine import Generation
from ayllu.actors.registry import build_engine, default_models
from ayllu.runtime.openai.types import (
    NEUTRAL,
    WITHOUT_EFFECT,
    ChatAsked,
    CompletionAsked,
    EmbeddingsAsked,
)

MODEL = "smollm2-135m-instruct"
QUESTION = "Which city is the capital of France?"
PAGE = page("openai.md")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("openai"), config=None) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client(up: Up) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.requirement("openai-same-text")
async def test_the_same_text_whatever_the_way(up: Up) -> None:
    [spec] = default_models()
    async with build_engine(spec) as engine:
        direct = await answer(engine, user(QUESTION), Generation(GREEDY, max_tokens=24))
    shared = {"model": MODEL, "max_tokens": 24}
    messages = [{"role": "user", "content": QUESTION}]
    async with httpx2.AsyncClient(base_url=up.url, timeout=60) as http:
        ours = {**shared, "dialog": {"message": messages[0]}}
        native = (await http.post("/chat_completion", json=ours)).json()["content"]
        theirs = {**shared, "messages": messages, "temperature": 0}
        whole = (await http.post("/v1/chat/completions", json=theirs)).json()
        body = {**theirs, "stream": True}
        streamed = said(chunks_of((await http.post("/v1/chat/completions", json=body)).text))
    assert "Paris" in direct.text
    assert [native, whole["choices"][0]["message"]["content"], streamed] == [direct.text] * 3


class Place(BaseModel):
    city: str = Field(max_length=20)


@pytest.mark.slow
@pytest.mark.requirement("openai-structured-output", "openai-logprobs", "openai-tools")
def test_what_a_real_model_answers(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_format=Place,
        temperature=0,
        max_tokens=32,
    )
    assert isinstance(parsed.choices[0].message.parsed, Place)
    completion = client.completions.create(
        model="smollm2", prompt="The capital of France is", max_tokens=3, temperature=0, logprobs=2
    )
    [choice] = completion.choices
    assert "Paris" in choice.text
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.top_logprobs is not None
    assert {len(one) for one in choice.logprobs.top_logprobs} == {2}
    called = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Lima?"}],
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "parameters": {
                        "type": "object",
                        "properties": {"city": {"type": "string", "maxLength": 20}},
                        "required": ["city"],
                    },
                },
            }
        ],
        tool_choice="required",
        temperature=0,
        max_tokens=64,
    )
    [call] = called.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments).keys() == {"city"}


@pytest.mark.slow
@pytest.mark.requirement("openai-embeddings", "openai-models")
def test_vectors_of_a_real_model(client: OpenAI) -> None:
    models = client.models.list().data
    [embedder] = [one for one in models if (one.model_extra or {})["ayllu"]["engine"] == "onnx"]
    assert MODEL in {one.id for one in models}
    texts = ["The sun shines.", "It is a bright day.", "He repairs engines."]
    reply = client.embeddings.create(model=embedder.id, input=texts)
    first, near, far = [one.embedding for one in reply.data]

    def cosine(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert cosine(first, first) == pytest.approx(1, abs=1e-3)
    assert cosine(first, near) > cosine(first, far)


@pytest.mark.slow
@pytest.mark.requirement("examples-run")
def test_the_examples_of_the_page(up: Up, tmp_path: Path) -> None:
    shown = blocks(PAGE)
    assert [kind for kind, _ in shown] == ["python", "sh"]
    for kind, text in shown:
        if kind == "sh" and shutil.which("curl") is None:
            continue
        assert "Paris" in run_block(kind, text.replace(GATEWAY, up.url), tmp_path)


@pytest.mark.requirement("openai-nothing-ignored")
def test_the_page_tells_of_every_field() -> None:
    for asked in (ChatAsked, CompletionAsked, EmbeddingsAsked):
        for name in asked.__struct_fields__:
            assert f"`{name}`" in PAGE, name
    for name in (*NEUTRAL, *WITHOUT_EFFECT):
        assert f"`{name}`" in PAGE, name
