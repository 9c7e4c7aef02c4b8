"""Dialogs as a model's own chat template writes them: Llama 3's format is golden. vLLM is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ayllu.actors.engines.engine import ChatMessage, Prompt, ToolAnswer
from ayllu.actors.engines.vllm.dialogs import Dialogs, conversation
from ayllu.schemas import EngineError, InvalidRequest, ToolCall, ToolDefinition

WEATHER = ToolDefinition(
    tool_name="get_weather", description="The weather of a city.", parameters={"city": "Its name."}
)
CUSCO = ToolCall(tool_name="get_weather", arguments={"city": "Cusco"})
LIMA = ToolCall(tool_name="get_weather", arguments={"city": "Lima"})
TIME = ToolCall(tool_name="get_time", arguments={})


def tokenizer(template: str | None = None) -> Any:
    made_of: Any = PreTrainedTokenizerFast
    made = made_of(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")),
        bos_token="<|begin_of_text|>",
    )
    made.chat_template = template
    return made


def llama3(*messages: ChatMessage, continues: bool = False, tools: bool = False) -> str:
    prompt = Prompt(messages=messages, continues=continues, tools=[WEATHER] if tools else [])
    return Dialogs(tokenizer(), "llama3").text(prompt)


def header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


@pytest.mark.requirement("vllm-dialogs")
def test_llama_3_system_user_assistant() -> None:
    text = llama3(
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Hi"),
        ChatMessage("assistant", "Hello."),
        ChatMessage("user", " Bye \n"),
    )
    assert text == (
        "<|begin_of_text|>"
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n Bye \n<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


@pytest.mark.requirement("vllm-dialogs")
def test_llama_3_tools_calls_and_answers() -> None:
    text = llama3(
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Weather in Cusco and Lima?"),
        ChatMessage("assistant", "", [CUSCO, LIMA]),
        ChatMessage(
            "tool", "", (), [ToolAnswer("get_weather", "sunny"), ToolAnswer("get_weather", "fog")]
        ),
        tools=True,
    )
    begin, end = text.split("Be brief.<|eot_id|>")
    assert begin.startswith("<|begin_of_text|>" + header("system") + "Environment: ipython\n")
    assert (
        '{"name": "get_weather", "description": "The weather of a city.", "parameters": '
        '{"type": "object", "properties": {"city": {"description": "Its name."}}, '
        '"required": ["city"], "additionalProperties": false}}'
    ) in begin
    assert end == (
        header("user")
        + "Weather in Cusco and Lima?<|eot_id|>"
        + header("assistant")
        + '{"name": "get_weather", "parameters": {"city": "Cusco"}}; '
        + '{"name": "get_weather", "parameters": {"city": "Lima"}}<|eot_id|>'
        + header("ipython")
        + "sunny<|eot_id|>"
        + header("ipython")
        + "fog<|eot_id|>"
        + header("assistant")
    )


@pytest.mark.requirement("vllm-dialogs")
def test_tools_without_a_system_message_have_one() -> None:
    text = llama3(ChatMessage("user", "Hi"), tools=True)
    assert text.count(header("system")) == 1
    assert "get_weather" in text


@pytest.mark.requirement("vllm-dialogs")
def test_an_answer_goes_on_where_it_was_to_the_letter() -> None:
    begun = "1\n2\n "
    text = llama3(ChatMessage("user", "Count"), ChatMessage("assistant", begun), continues=True)
    assert text.endswith(header("assistant") + begun)


@pytest.mark.requirement("vllm-dialogs")
def test_answers_are_told_whose_they_are() -> None:
    answers = [
        ToolAnswer("get_time", "noon"),
        ToolAnswer("get_weather", "sunny"),
        ToolAnswer("get_weather", "fog"),
        ToolAnswer("unasked", "?"),
    ]
    made = conversation(
        [
            ChatMessage("user", "?"),
            ChatMessage("assistant", "I ask.", [CUSCO, TIME, LIMA]),
            ChatMessage("tool", "And this.", (), answers),
        ]
    )
    ids = [call["id"] for call in made[1]["tool_calls"]]
    assert len(set(ids)) == 3
    assert all(len(one) == 9 and one.isalnum() for one in ids)
    assert made[1]["content"] == "I ask."
    assert made[2] == {"role": "user", "content": "And this."}
    assert [(one["content"], one.get("tool_call_id")) for one in made[3:]] == [
        ("noon", ids[1]),
        ("sunny", ids[0]),
        ("fog", ids[2]),
        ("?", None),
    ]


@pytest.mark.requirement("vllm-dialogs")
def test_the_models_own_template_is_used_and_another_can_be_configured(tmp_path: Path) -> None:
    own = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}>"
    prompt = Prompt(messages=[ChatMessage("user", "Hi")])
    assert Dialogs(tokenizer(own)).text(prompt) == "[user] Hi>"
    (tmp_path / "other.jinja").write_text("{{ messages[0].content }}!")
    assert Dialogs(tokenizer(own), str(tmp_path / "other.jinja")).text(prompt) == "Hi!"
    with pytest.raises(EngineError, match="nowhere"):
        Dialogs(tokenizer(own), "/nowhere/x.jinja")


@pytest.mark.requirement("vllm-dialogs")
def test_whether_a_template_knows_tools() -> None:
    assert not Dialogs(tokenizer("{{ messages[0].content }}")).knows_tools()
    assert Dialogs(tokenizer(), "llama3").knows_tools()


@pytest.mark.requirement("vllm-dialogs")
def test_what_cannot_be_rendered_is_refused() -> None:
    user, assistant = ChatMessage("user", "a"), ChatMessage("assistant", "b")
    with pytest.raises(InvalidRequest, match="not be continued"):
        llama3(user, assistant)
    with pytest.raises(InvalidRequest, match="empty"):
        llama3()
    with pytest.raises(InvalidRequest, match="no chat template"):
        Dialogs(tokenizer()).text(Prompt(messages=[user]))
    refusing = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        Dialogs(tokenizer(refusing)).text(Prompt(messages=[user]))
