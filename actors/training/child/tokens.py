"""Examples as tokens, and which of them are trained on: all that an assistant says, and nothing else.

Any chat template will do. A dialog is rendered once as a whole and, for each message of the assistant, up to before and
after it; what is between the two is trained on, up to the token that ends the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ....schemas import InvalidRequest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not trained on."""

Span = tuple[int, int]


class Tokens(NamedTuple):
    """An example for supervised fine-tuning."""

    input_ids: list[int]
    labels: list[int]


class Pair(NamedTuple):
    """An example for preference optimisation."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


class Comparison(NamedTuple):
    """An example for a reward model: two dialogs as it reads them, the better one first."""

    chosen_ids: list[int]
    rejected_ids: list[int]


class Encoder:
    """Makes tokens of examples.

    Raises:
        InvalidRequest: by its methods: the example cannot be made into tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        )

    def tokens(self, example: dict[str, Any]) -> Tokens:
        """Return the tokens of a dialog, of a prompt with its completion, or of a text."""
        if "messages" in example:
            return self._dialog(example["messages"], after=0)
        if "prompt" in example:
            prompt, completion = example["prompt"], example["completion"]
            if isinstance(prompt, str):
                return self._text(prompt + completion, len(prompt))
            return self._dialog([*prompt, *_messages(completion)], after=len(prompt))
        return self._text(example["text"], 0)

    def pair(self, example: dict[str, Any]) -> Pair:
        """Return the tokens of a prompt and its two answers."""
        prompt, chosen, rejected = (example[key] for key in ("prompt", "chosen", "rejected"))
        whole = [
            self.tokens({"prompt": prompt, "completion": answer}) for answer in (chosen, rejected)
        ]
        # Where a token reaches from the prompt into an answer, the prompt of both ends before it.
        begin = min(_first_label(tokens.labels) for tokens in whole)
        first, second = (tokens.input_ids for tokens in whole)
        if first[:begin] != second[:begin]:
            raise InvalidRequest("the chat template renders the prompt differently for its answers")
        return Pair(first[:begin], first[begin:], second[begin:])

    def comparison(self, example: dict[str, Any]) -> Comparison:
        """Return the tokens of two dialogs that differ in their answers, as `whole` makes them.

        What is text is a user's message, or an assistant's: a reward model is only ever asked about dialogs.
        """
        asked = _messages(example["prompt"], role="user")
        chosen, rejected = (
            self.whole([*asked, *_messages(example[key])]) for key in ("chosen", "rejected")
        )
        if chosen == rejected:
            raise InvalidRequest("the chat template renders chosen and rejected alike")
        return Comparison(chosen, rejected)

    def whole(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Return the tokens of a dialog that ends in an answer, as a reward model reads it: all that the template makes."""
        self._require_template()
        encoded = self._tokenizer(self._render(messages), add_special_tokens=False)
        return list(encoded["input_ids"])

    def _require_template(self) -> None:
        if not self._tokenizer.chat_template:
            raise InvalidRequest("the model has no chat template, which dialogs need")

    def _text(self, text: str, begin: int) -> Tokens:
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        end = self._tokenizer.eos_token_id
        labels = [
            number if stop > max(start, begin) else IGNORED
            for number, (start, stop) in zip(ids, offsets, strict=True)
        ]
        # A tokenizer that adds special tokens gives them no place in the text.
        if ids and ids[-1] == end:
            labels[-1] = end
        else:
            ids.append(end)
            labels.append(end)
        return Tokens(ids, labels)

    def _dialog(self, messages: Sequence[dict[str, Any]], *, after: int) -> Tokens:
        self._require_template()
        whole = self._render(messages)
        spans = [
            self._span(whole, messages, index)
            for index, message in enumerate(messages)
            if index >= after and message["role"] == "assistant"
        ]
        if not spans:
            raise InvalidRequest("the assistant says nothing: there is nothing to train on")
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"])
        labels = [IGNORED] * len(ids)
        for span in spans:
            for place in self._places(ids, encoded["offset_mapping"], span, whole):
                labels[place] = ids[place]
        return Tokens(ids, labels)

    def _span(self, whole: str, messages: Sequence[dict[str, Any]], index: int) -> Span:
        # What stands before the first message, such as a default system prompt, may need a message to be rendered.
        before = self._render(messages[:index], prompting=True) if index else ""
        upto = self._render(messages[: index + 1])
        for part in (before, upto):
            if not whole.startswith(part):
                raise InvalidRequest(
                    "the chat template renders the beginning of a dialog differently from the dialog: it cannot be told "
                    "which tokens are the assistant's"
                )
        return len(before), len(upto)

    def _places(self, ids: list[int], offsets: list[Span], span: Span, whole: str) -> list[int]:
        begin, end = span
        places = [
            place for place, (start, stop) in enumerate(offsets) if start < end and stop > begin
        ]
        # What follows the token that ends the turn, such as a line break, is the template's and never generated.
        special = [place for place in places if ids[place] in self._special]
        if special and not whole[offsets[special[-1]][1] : end].strip():
            return [place for place in places if place <= special[-1]]
        return places

    def _render(self, messages: Sequence[dict[str, Any]], *, prompting: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=prompting
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InvalidRequest(f"the chat template refuses the dialog: {error}") from error


def _messages(
    said: str | Sequence[dict[str, Any]], role: str = "assistant"
) -> Sequence[dict[str, Any]]:
    return [{"role": role, "content": said}] if isinstance(said, str) else said


def _first_label(labels: list[int]) -> int:
    return next(place for place, label in enumerate(labels) if label != IGNORED)
