"""``ayllu chat``: talk to a model in the terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import anyio

from ..client import Stack, connect
from ..schemas import (
    AylluError,
    ChatCompletionRequest,
    Dialog,
    Message,
    NotFound,
    Role,
    SamplingParams,
    SamplingStrategy,
)


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How to talk: the gateway's address, the model (None: the first), instructions, sampling, and the token."""

    url: str
    model: str | None
    system: str | None
    max_tokens: int
    temperature: float
    token: str | None = field(default=None, repr=False)

    @property
    def sampling(self) -> SamplingParams:
        """Greedy at temperature 0, else nucleus sampling."""
        if self.temperature == 0:
            return SamplingParams()
        return SamplingParams(strategy=SamplingStrategy.top_p, temperature=self.temperature)


async def first_model(stack: Stack) -> str:
    """Return the name of the first language model that is served.

    Raises:
        NotFound: none is.
    """
    async for model in stack.models():
        if model.kind == "language":
            return model.name
    raise NotFound("no model is served at present")


async def chat(options: ChatOptions, message: str | None) -> None:
    """Answer one message, or hold a conversation until the input ends.

    Raises:
        AylluError: the gateway is not there; in a conversation, the errors of single turns are printed.
    """
    async with connect(options.url, token=options.token) as stack:
        model = options.model or await first_model(stack)
        history: list[Message] = []
        if options.system:
            history.append(Message(role=Role.system, content=options.system))
        if message is not None:
            await _answer(stack, model, options, history, message)
            return
        sys.stderr.write(f"Talking to {model}. End with Ctrl-D.\n")
        while (
            line := await anyio.to_thread.run_sync(read_line, abandon_on_cancel=True)
        ) is not None:
            if line.strip():
                try:
                    history = await _answer(stack, model, options, history, line)
                except AylluError as error:
                    sys.stderr.write(f"{error.code}: {error.message}\n")


def read_line() -> str | None:
    """Ask for a line; None at the end of the input."""
    try:
        return input("> ")
    except EOFError:
        return None


async def _answer(
    stack: Stack, model: str, options: ChatOptions, history: list[Message], text: str
) -> list[Message]:
    """Print the answer as it comes and what it cost, and return the longer history."""
    message = Message(role=Role.user, content=text)
    request = ChatCompletionRequest(
        model=model,
        dialog=Dialog(message=message, message_history=history or None),
        sampling_params=options.sampling,
        max_tokens=options.max_tokens,
        stream=True,
    )
    answer = ""
    usage = None
    began = first = time.monotonic()
    async for chunk in stack.stream_chat_completion(request):
        if not answer:
            first = time.monotonic()
        answer += chunk.text_delta
        usage = chunk.usage or usage
        sys.stdout.write(chunk.text_delta)
        sys.stdout.flush()
    sys.stdout.write("\n")
    if usage is not None and sys.stderr.isatty():
        seconds = max(time.monotonic() - first, 1e-3)
        sys.stderr.write(
            f"[{usage.completion_tokens} tokens, {usage.completion_tokens / seconds:.0f} tokens/s, "
            f"first after {1000 * (first - began):.0f} ms]\n"
        )
    return [*history, message, Message(role=Role.assistant, content=answer)]
