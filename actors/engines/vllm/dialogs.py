"""Dialogs as the text of a model's own chat template; nothing here needs vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....schemas import EngineError, InvalidRequest, ToolDefinition
from ...prompts import parameters_schema
from ...tool_calls import call_id
from ..engine import ChatMessage, Prompt

BUILT_IN = {"llama3": Path(__file__).with_name("llama3.jinja")}
"""Templates for models that bring none."""


class Dialogs:
    """Renders dialogs.

    Args:
        tokenizer: Hugging Face's, with the model's template.
        template: ``llama3`` or the path of a Jinja file, in the place of the model's own.

    Raises:
        EngineError: there is no template.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = _template(template)
        self.exists = self._template is not None or bool(tokenizer.chat_template)
        """Whether dialogs can be rendered at all: a model without a template only continues raw texts."""

    def knows_tools(self) -> bool:
        """Tell whether the template says anything of tools."""
        messages = [{"role": "user", "content": "x"}]
        tool = ToolDefinition(tool_name="a_tool_of_a_test", parameters={"type": "object"})
        return "a_tool_of_a_test" in self._render(messages, [described(tool)])

    def text(self, prompt: Prompt) -> str:
        """Return the text that the model continues, control tokens included.

        What a dialog's texts hold that looks like a control token is one: templates cannot tell.

        Raises:
            InvalidRequest: the dialog is empty, ends in an answer that shall not be continued, or the template refuses it.
        """
        messages = list(prompt.messages)
        if messages and messages[-1].role == "assistant":
            if not prompt.continues:
                raise InvalidRequest("the dialog ends in an answer that shall not be continued")
            # Appended as it is: a template would trim it.
            begun = messages.pop().text
        else:
            begun = ""
        if not messages:
            raise InvalidRequest("the dialog is empty")
        return (
            self._render(conversation(messages), [described(tool) for tool in prompt.tools]) + begun
        )

    def _render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        if not self.exists:
            raise InvalidRequest("this model has no chat template: it continues texts only")
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tools=tools or None,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except Exception as error:  # whatever a model's template does
            raise InvalidRequest(
                f"the model's chat template refuses the dialog: {error}"
            ) from error
        return text


def _template(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return BUILT_IN.get(name, Path(name)).read_text()
    except (OSError, UnicodeError) as error:
        raise EngineError(f"chat_template: {name} cannot be read: {error}") from error


def conversation(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as Hugging Face's templates take them.

    Calls get ids by their place in the dialog; answers are given the ids of the last calls, in their order.
    """
    made: list[dict[str, Any]] = []
    asked: list[tuple[str, str]] = []  # ids and names of calls that nothing has answered yet
    for number, message in enumerate(messages):
        if message.tool_answers:
            if message.text:
                made.append({"role": "user", "content": message.text})
            for answer in message.tool_answers:
                found = next((call for call in asked if call[1] == answer.tool_name), None)
                if found is not None:
                    asked.remove(found)
                known = {"tool_call_id": found[0]} if found is not None else {}
                made.append(
                    {"role": "tool", "name": answer.tool_name, "content": answer.text, **known}
                )
            continue
        one: dict[str, Any] = {"role": str(message.role), "content": message.text}
        if message.tool_calls:
            asked = []
            one["tool_calls"] = []
            for place, call in enumerate(message.tool_calls):
                name = call_id(number, place)
                asked.append((name, call.tool_name))
                function = {"name": call.tool_name, "arguments": call.arguments}
                one["tool_calls"].append({"type": "function", "id": name, "function": function})
        made.append(one)
    return made


def described(tool: ToolDefinition) -> dict[str, Any]:
    """Return a tool as OpenAI's protocol describes it, and templates take it."""
    return {
        "type": "function",
        "function": {
            "name": tool.tool_name,
            "description": tool.description or "",
            "parameters": parameters_schema(tool),
        },
    }
