"""Answers that a request constrains to choices."""

from __future__ import annotations

from ..schemas import AnswerChoice, ChatCompletionRequest, InvalidRequest
from .engines.grammar import check_choices
from .prompts import NONE


def choices_of(request: ChatCompletionRequest) -> list[AnswerChoice] | None:
    """Return the texts of which the answer to a request must be one.

    Raises:
        InvalidRequest: they are too many or no texts, or the request constrains its answer otherwise too.
    """
    choices = request.answer_choices
    if choices is not None:
        if request.json_schema is not None:
            raise InvalidRequest("answer_choices: the answer cannot fit a json_schema too")
        if request.available_tools and request.tool_choice != NONE:
            raise InvalidRequest(
                "answer_choices: the answer cannot be a call too; leave out available_tools, or let tool_choice be none"
            )
        check_choices(choices)
    return choices
