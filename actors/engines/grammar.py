"""Choices of answers as a grammar in GBNF, which llama.cpp and xgrammar read.

Clients send choices, never grammars: a grammar can recurse without end, or repeat so often that its reader, which cannot be
interrupted, takes all memory. What is made of choices is finite, and nowhere ambiguous by more than the number of their texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...schemas import AnswerChoice, InvalidRequest

MAX_TEXTS, MAX_CHARACTERS = 128, 8000
"""Of all choices together."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def check_choices(choices: Sequence[AnswerChoice]) -> None:
    """Refuse choices that are no texts, or that would keep an engine busy.

    Raises:
        InvalidRequest: they are too many, too long, or not what `AnswerChoice` says.
    """
    texts = [text for choice in choices for text in (choice.text, *choice.list_of)]
    if len(texts) > MAX_TEXTS or sum(map(len, texts)) > MAX_CHARACTERS:
        raise InvalidRequest(
            f"answer_choices: at most {MAX_TEXTS} texts with {MAX_CHARACTERS} characters together"
        )
    if any(_CONTROL.search(text) for text in texts):
        raise InvalidRequest("answer_choices: a text has control characters")
    if any("," in item for choice in choices for item in choice.list_of):
        raise InvalidRequest("answer_choices: an item of a list has a comma")


def grammar_of(choices: Sequence[AnswerChoice]) -> str:
    """Return the grammar of choices that `check_choices` admits; each list has at most as many items as there are to choose from."""
    roots: list[str] = []
    rules: list[str] = []
    for number, choice in enumerate(choices):
        root = _quoted(choice.text)
        if choice.list_of:
            item, others = f"item{number}", len(set(choice.list_of)) - 1
            rules.append(f"{item} ::= {' | '.join(map(_quoted, dict.fromkeys(choice.list_of)))}")
            root += f" {item}"
            if others:
                root += f' ("," {item}){{0,{others}}}'
        roots.append(root)
    return "\n".join((f"root ::= {' | '.join(dict.fromkeys(roots))}", *rules, ""))


def _quoted(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(character, character) for character in text) + '"'
