"""Answers that are constrained to choices: what clients may send, and what comes of it."""

from __future__ import annotations

import re
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import answer, small_model, user

from ayllu.actors.engines.grammar import MAX_CHARACTERS, MAX_TEXTS, check_choices, grammar_of
from ayllu.actors.engines.scripted import ScriptedEngine, script_of
from ayllu.actors.inference import InferenceActor
from ayllu.schemas import (
    AnswerChoice,
    ChatCompletionRequest,
    InvalidRequest,
    ToolDefinition,
    Unsupported,
    encode,
)
from ayllu.schemas.wire import decode

pytestmark = pytest.mark.requirement("engine-answer-choices")

VERDICTS = [AnswerChoice("safe"), AnswerChoice("unsafe\n", ["S1", "S2", "S1"])]
TOOL = ToolDefinition(tool_name="t", parameters={})


def asked(**values: Any) -> ChatCompletionRequest:
    message = {"role": "user", "content": "Safe?"}
    written = {"model": "m", "dialog": {"message": message}, **values}
    return decode(encode(written), ChatCompletionRequest)


@pytest.mark.asyncio
async def test_choices_reach_the_engine_and_exclude_calls() -> None:
    async with ScriptedEngine(script_of({"": ["safe"]})) as engine:
        actor = InferenceActor(engine, "m")
        whole = await actor.chat_completion(
            asked(answer_choices=VERDICTS, available_tools=[TOOL], tool_choice="none")
        )
        assert whole.content == "safe"
        assert engine.prompts[-1][1].answer_choices == VERDICTS
        await actor.chat_completion(asked())
        assert engine.prompts[-1][1].answer_choices is None
        for other in ({"available_tools": [TOOL]}, {"json_schema": {}}):
            with pytest.raises(InvalidRequest, match="answer_choices"):
                await actor.chat_completion(asked(answer_choices=VERDICTS, **other))
    async with ScriptedEngine(script_of({}), capabilities=frozenset()) as engine:
        with pytest.raises(Unsupported, match="answer_choices"):
            await InferenceActor(engine, "m").chat_completion(asked(answer_choices=VERDICTS))


@pytest.mark.parametrize(
    "choices",
    [
        [],
        [{"text": ""}],
        [{"text": "a", "list_of": [""]}],
        [{"text": "a"}] * 33,
        [{"text": "a", "list_of": ["b"] * 65}],
        [{"text": "a" * 1001}],
        [{"text": "a", "grammar": "root ::= root"}],
        "root ::= root",
    ],
)
def test_choices_that_are_none_cannot_be_sent(choices: Any) -> None:
    with pytest.raises(InvalidRequest, match="answer_choices"):
        asked(answer_choices=choices)


@pytest.mark.parametrize(
    "choices",
    [
        [AnswerChoice("a", ["b"] * 63)] * 3,
        [AnswerChoice("a" * 1000)] * 9,
        [AnswerChoice("a", ["b,c"])],
        [AnswerChoice("a\0")],
        [AnswerChoice("a", ["\x1b[0m"])],
        [AnswerChoice("\ud800")],
    ],
    ids=["many", "long", "comma", "zero", "escape", "surrogate"],
)
def test_choices_that_would_harm_are_refused(choices: list[AnswerChoice]) -> None:
    with pytest.raises(InvalidRequest, match="answer_choices"):
        check_choices(choices)


def test_the_grammar_of_choices() -> None:
    assert grammar_of(VERDICTS) == (
        'root ::= "safe" | "unsafe\\n" item1 ("," item1){0,1}\nitem1 ::= "S1" | "S2"\n'
    )
    assert grammar_of([AnswerChoice("a", ["b"])]) == 'root ::= "a" item0\nitem0 ::= "b"\n'


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5))
def test_a_text_never_leaves_its_quotes(texts: list[str]) -> None:
    choices = [AnswerChoice(text) for text in texts]
    try:
        check_choices(choices)
    except InvalidRequest:
        return
    grammar = grammar_of(choices)
    quoted = r'"(?:[^"\\\n\r\t]|\\["\\nrt])+"'
    assert re.fullmatch(rf"root ::= {quoted}(?: \| {quoted})*\n", grammar)


@pytest.mark.asyncio
async def test_the_worst_choices_take_the_engine_little_time() -> None:
    """The most that clients may send, alike for as long as can be, so that nothing can be ruled out early."""
    alike = "a" * 50
    lists = [AnswerChoice("a" * (1 + n), [alike + str(m) for m in range(62 - n)]) for n in range(2)]
    texts = [AnswerChoice("a" * (MAX_CHARACTERS // MAX_TEXTS - n)) for n in range(30)]
    for choices in (lists, texts, [AnswerChoice("🦙" * 250)] * 32):
        check_choices(choices)
        async with small_model(slots=1) as engine:
            with anyio.fail_after(10):
                found = await answer(engine, user("Say a."), answer_choices=choices, max_tokens=8)
            assert found.text[0] in "a🦙"
