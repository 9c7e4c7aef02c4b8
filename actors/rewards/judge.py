"""A judge: a served language model reads an answer and says its verdict; the score is what it thinks of all verdicts."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import (
    AylluError,
    ChatCompletionRequest,
    ChatCompletionResponse,
    Dialog,
    EngineError,
    Inference,
    Message,
    Role,
    SamplingParams,
    Unsupported,
    encode,
)
from ..attachments import text_of
from ..tool_calls import render_calls
from .asking import Patience
from .engine import Answer, Score
from .items import OneByOne

RUBRIC = (
    "You judge the answers of an assistant. An answer is good if it is correct, does what was asked, and is clear. "
    "Say yes if the answer is good, and no if it is not."
)
VERDICTS: Mapping[str, float] = {"yes": 1.0, "no": 0.0}
PREFIX = "Verdict:"
ASK_SECONDS = 300.0
"""How long the model may take for a verdict."""
PATIENCE = 30.0
"""How long the model may be away, in seconds."""

_MARKUP = re.compile(r"<(?=[|/<_A-Za-z\uff5c])|\[(?=/?[A-Z_]+\])")


class JudgeEngine:
    """A `RewardEngine` that asks a served language model.

    The score is the expectation of the verdicts' values: each verdict counts with the probability that the model gives to
    it as the first token of its answer, among the verdicts that are among its likeliest tokens.

    Args:
        bus: where the model is served.
        model: its name.
        rubric: what is a good answer, and which verdicts there are, for the model.
        verdicts: the words it may say, each one token, and what they are worth.
        prefix: the beginning of the answer that is put into the model's mouth, so that a verdict follows; empty for
            models that cannot continue.
        at_once: how many answers it is asked about at once, whoever wants to know.
        description: what the scores mean, for people.
    """

    name = "judge"
    context = 0  # That of a model that may be another one tomorrow.

    def __init__(
        self,
        bus: Bus,
        model: str,
        *,
        rubric: str,
        verdicts: Mapping[str, float],
        prefix: str,
        at_once: int,
        description: str,
    ) -> None:
        self.description = description
        self.lowest: float | None = min(verdicts.values())
        self.highest: float | None = max(verdicts.values())
        self._inference: Inference = client(Inference, bus, timeout=ASK_SECONDS)
        self._model = model
        self._rubric = rubric
        self._verdicts = {word.casefold(): value for word, value in verdicts.items()}
        self._prefix = prefix
        self._one_by_one = OneByOne(self._judge, at_once=at_once)
        self._patience = Patience(PATIENCE)

    async def __aenter__(self) -> JudgeEngine:
        """Do nothing: the model may come later."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Do nothing."""

    def score(
        self, answers: Sequence[Answer]
    ) -> AsyncGenerator[tuple[int, Score | AylluError], None]:
        """Score answers; see `RewardEngine.score`."""
        return self._one_by_one(answers)

    async def _judge(self, answer: Answer) -> Score:
        request = ChatCompletionRequest(
            model=self._model,
            dialog=_question(self._rubric, answer, self._model),
            # A seed keeps engines from using what they computed for other prompts, which rounds differently.
            sampling_params=SamplingParams(seed=0),
            max_tokens=1,
            logprobs=True,
            assistant_prefix=self._prefix or None,
        )

        async def ask() -> ChatCompletionResponse:
            return await self._inference.chat_completion(request)

        response = await self._patience.bear(ask)
        return Score(self._expectation(_likeliest(response, self._model)))

    def _expectation(self, tokens: Iterable[Mapping[str, Any]]) -> float:
        found = 0.0
        total = 0.0
        for token in tokens:
            value = self._verdicts.get(str(token["token"]).strip().casefold())
            if value is not None:
                probability = math.exp(token["logprob"])
                found += probability
                total += probability * value
        if not found:
            raise EngineError(
                f"the model {self._model} gave no verdict: none of "
                f"{', '.join(self._verdicts)} is among its likeliest tokens"
            )
        return total / found


def _likeliest(response: ChatCompletionResponse, model: str) -> list[dict[str, Any]]:
    """Return the likeliest first tokens of an answer."""
    tokens: list[dict[str, Any]] = (response.logprobs or {}).get("content", [])
    if response.logprobs is None or (tokens and not tokens[0].get("top_logprobs")):
        raise Unsupported(f"the model {model} tells no log probabilities: it cannot be a judge")
    if not tokens:
        raise EngineError(f"the model {model} said nothing")
    found: list[dict[str, Any]] = tokens[0]["top_logprobs"]
    return found


def _question(rubric: str, answer: Answer, model: str) -> Dialog:
    """Return what the model is asked. What is judged stands between tags that it cannot contain."""
    history = [*(answer.dialog.message_history or ()), answer.dialog.message]
    dialog = "\n".join(
        f'<message role="{message.role}">\n{_quoted(message, model, f"the dialog, message {number}")}\n</message>'
        for number, message in enumerate(history)
    )
    parts = [f"<dialog>\n{dialog}\n</dialog>"]
    if answer.reference is not None:
        known = answer.reference
        text = known if isinstance(known, str) else encode(known).decode()
        parts.append(f"<reference>\n{_escaped(text)}\n</reference>")
    parts.append(f"<answer>\n{_quoted(answer.message, model, 'the answer')}\n</answer>")
    return Dialog(
        message=Message(role=Role.user, content="\n".join(parts)),
        message_history=[Message(role=Role.system, content=rubric)],
    )


def _quoted(message: Message, model: str, where: str) -> str:
    texts = [text_of(message.content, model=model, where=where)]
    if message.tool_calls:
        texts.append(render_calls(message.tool_calls))
    texts += [
        text_of(response.content, model=model, where=where) for response in message.tool_responses
    ]
    return _escaped("\n".join(text for text in texts if text))


def _escaped(text: str) -> str:
    """Return a text without anything that could be a tag of ours, or a control token of the model."""
    return _MARKUP.sub(lambda found: "&lt;" if found[0] == "<" else "&#91;", text)
