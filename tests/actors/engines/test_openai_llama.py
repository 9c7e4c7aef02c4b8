"""The engine `openai` in front of a real llama.cpp server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from msgspec.structs import replace
from support.engines import COUNT, answer, sampled, small_model, user
from support.openai_servers import SETTINGS, llama_server, openai_engine

from ayllu.actors.engines.engine import ChatMessage, InferenceEngine, Prompt
from ayllu.actors.engines.openai.engine import OpenAIEngine
from ayllu.actors.inference import InferenceActor
from ayllu.schemas import (
    ChatCompletionRequest,
    Dialog,
    EngineError,
    InvalidRequest,
    Message,
    Role,
    ToolDefinition,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACT = user("What is a llama? Answer in one short sentence.")
WEATHER = ToolDefinition("weather", {"city": {"type": "string", "maxLength": 20}})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with llama_server(context=512, slots=1) as address:
        yield address


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(url: str) -> AsyncIterator[InferenceEngine]:
    async with openai_engine(url, context=512, slots=1) as started:
        yield started


@pytest.mark.requirement("upstream-same-text")
async def test_a_greedy_text_is_that_of_the_model_in_process(engine: InferenceEngine) -> None:
    # Texts of two tokens that are all but equally likely may differ; these have none.
    prompts = [
        COUNT,
        FACT,
        Prompt(messages=[ChatMessage("system", "You count."), ChatMessage("user", "Go!")]),
        user("Count from 1 to 20, separated by commas.", "1, 2, 3,"),
    ]
    async with small_model(slots=1) as local:
        for prompt in prompts:
            expected = await answer(local, prompt, max_tokens=24)
            found = await answer(engine, prompt, max_tokens=24)
            assert found.text == expected.text
            assert found.last == expected.last


@pytest.mark.requirement("engine-sampling")
@pytest.mark.parametrize("strategy", ["top_p", "top_k"])
async def test_a_seed_makes_sampling_repeatable(engine: InferenceEngine, strategy: str) -> None:
    # The first one fills the cache of prompts: after it, all are computed alike.
    seeds = (9, 1, 1, 2)
    sampling = [sampled(strategy, temperature=1.5, top_k=50, seed=seed) for seed in seeds]
    texts = [(await answer(engine, FACT, sampling=one, max_tokens=12)).text for one in sampling]
    assert texts[1] == texts[2] != texts[3]


@pytest.mark.requirement("engine-json-schema")
async def test_a_schema_that_cannot_be_read_is_refused(engine: InferenceEngine) -> None:
    with pytest.raises(InvalidRequest):
        await answer(engine, FACT, json_schema={"type": "nonsense"})


@pytest.mark.requirement("upstream-tools")
async def test_tools_of_a_server_that_has_none_are_called_by_our_format(
    engine: InferenceEngine,
) -> None:
    dialog = Dialog(message=Message(role=Role.user, content="What is the weather in Lima?"))
    request = ChatCompletionRequest(
        model="m", dialog=dialog, available_tools=[WEATHER], tool_choice="weather", max_tokens=60
    )
    response = await InferenceActor(engine, "m").chat_completion(request)
    (call,) = response.tool_calls
    assert call.tool_name == "weather"
    assert call.arguments.keys() == {"city"}


@pytest.mark.requirement("upstream-tools")
async def test_a_server_that_ignores_a_forced_call_is_found_out(url: str) -> None:
    prompt = Prompt(messages=FACT.messages, tools=[WEATHER], tool_choice="required")
    native = replace(SETTINGS, tools=True)
    async with openai_engine(url, context=512, slots=1, settings=native) as engine:
        with pytest.raises(EngineError, match="makes no call"):
            await answer(engine, prompt, max_tokens=60)


@pytest.mark.requirement("upstream-key")
async def test_a_wrong_key_is_refused_by_a_real_server(url: str) -> None:
    with pytest.raises(EngineError, match="refuses our key"):
        async with OpenAIEngine(url, "smollm2", key="wrong"):
            pass
