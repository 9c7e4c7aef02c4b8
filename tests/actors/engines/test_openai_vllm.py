"""The engine `openai` in front of vLLM's own server: tools as OpenAI's protocol has them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from support.engines import CONTEXT
from support.vllm_models import vllm_server

from ayllu.actors.engines.openai.engine import OpenAIEngine
from ayllu.actors.engines.settings import OpenAISettings
from ayllu.actors.inference import InferenceActor
from ayllu.schemas import (
    ChatCompletionRequest,
    Dialog,
    Message,
    Role,
    StopReason,
    ToolDefinition,
    ToolResponse,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.vllm, pytest.mark.timeout(300)]

WEATHER = ToolDefinition("weather", {"city": {"type": "string", "maxLength": 12}}, "Tells it.")
ASKED = Message(role=Role.user, content="What is the weather in Lima?")


@pytest.mark.requirement("upstream-tools")
async def test_a_forced_call_and_its_answer_are_told_natively() -> None:
    request = ChatCompletionRequest(
        model="m",
        dialog=Dialog(message=ASKED),
        available_tools=[WEATHER],
        tool_choice="weather",
        max_tokens=60,
    )
    with vllm_server("--enable-auto-tool-choice", "--tool-call-parser", "hermes") as url:
        async with OpenAIEngine(url, "m", context=CONTEXT, settings=OpenAISettings()) as engine:
            actor = InferenceActor(engine, "m")
            response = await actor.chat_completion(request)
            (call,) = response.tool_calls
            assert call.tool_name == "weather"
            assert call.arguments.keys() == {"city"}
            assert response.stop_reason is StopReason.finished_ok
            assert response.usage is not None
            assert response.usage.completion_tokens > 0
            history = [
                ASKED,
                Message(role=Role.assistant, content="", tool_calls=response.tool_calls),
            ]
            answered = Message(
                role=Role.tool, content="", tool_responses=[ToolResponse("weather", "Sunny.")]
            )
            dialog = Dialog(message=answered, message_history=history)
            further = replace(
                request, dialog=dialog, available_tools=[], tool_choice=None, max_tokens=8
            )
            assert (await actor.chat_completion(further)).content
