"""The endpoints of OpenAI's protocol: calls of ours, read and answered in OpenAI's terms."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from ...bus.context import trace_id_of
from ...schemas import AylluError, InvalidRequest, encode
from ..endpoints import (
    SSE,
    Endpoint,
    Serving,
    read_body,
    read_timeout,
    send_body,
    send_start,
    send_whole,
    take_alive,
)
from ..forwarding import ForwardedCall
from . import chat, completions, embeddings, models
from .errors import PREFIX, openai_error_body
from .framing import Head, Stream, Translated

Translate = Callable[[Request, bytes], Translated[Any]]


class OpenAIEndpoint(Endpoint[Translated[Any]]):
    """Answers one path.

    Args:
        serving: what it shares with others.
        operation: the name of the one that it is translated to; it may be another form or a batch of it.
        translate: makes a call of ours of a request and its body.
    """

    def __init__(self, serving: Serving, operation: str, translate: Translate) -> None:
        super().__init__(serving, serving.operations[operation])
        self._translate = translate

    def headers(self, trace: str) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer has; clients know the request's id by another name."""
        return [*super().headers(trace), (b"x-request-id", trace_id_of(trace).encode())]

    async def open(self, request: Request, trace: str) -> tuple[Translated[Any], ForwardedCall]:
        """Read a request, and start its call; see `Endpoint.open`."""
        serving = self.serving
        try:
            body = await read_body(request, serving.config.max_message_bytes)
            if request.url.query:
                raise InvalidRequest("there are no query parameters here")
            translated = self._translate(request, body)
            operation = serving.operations[translated.operation]
            payload = encode(translated.request)
            value = operation.read(payload)
            timeout = read_timeout(request, operation, serving.config.max_timeout)
        except AylluError as error:
            serving.metrics.refused(self.operation.name, error.info.code)
            raise
        model = operation.model_of(value)
        call = await self.forward(operation, payload, model=model, timeout=timeout, trace=trace)
        return translated, call

    async def begin(
        self,
        request: Request,  # noqa: ARG002 - others look at it
        opened: Translated[Any],
        call: ForwardedCall,
    ) -> Callable[[Send], Awaitable[None]]:
        """Wait for the whole answer, or for the first events of a stream; see `Endpoint.begin`."""
        events = await call.take_as(opened.decoder)
        if not callable(opened.answer):
            stream = opened.answer
            first = stream.begin() + stream.feed(events)
            take = partial(call.take_as, opened.decoder)
            return partial(_send_events, stream=stream, first=first, take=take)
        replies = events
        while events:
            events = await call.take_as(opened.decoder)
            replies += events
        return partial(send_whole, body=opened.answer(replies))


async def _send_events(
    send: Send, stream: Stream[Any], first: bytes, take: Callable[[], Awaitable[list[Any]]]
) -> None:
    await send_start(send, SSE)
    try:
        await send_body(send, first, more=True)
        while events := await take_alive(send, take):
            await send_body(send, stream.feed(events), more=True)
        last = stream.end()
    except AylluError as error:
        last = b"data: %b\n\n" % openai_error_body(error)
    await send_body(send, last, more=False)


def openai_routes(serving: Serving) -> list[BaseRoute]:
    """Return the routes of OpenAI's protocol."""

    def of_body(translate: Callable[[bytes, Head], Translated[Any]]) -> Translate:
        return lambda _, body: translate(body, Head(secrets.token_hex(12), int(time.time())))

    def model(request: Request, _: bytes) -> Translated[Any]:
        return models.translate_model(request.path_params["model"])

    paths: list[tuple[str, str, str, Translate]] = [
        ("POST", "chat/completions", chat.OPERATION, of_body(chat.translate_chat)),
        ("POST", "completions", completions.OPERATION, of_body(completions.translate_completion)),
        ("POST", "embeddings", embeddings.OPERATION, of_body(embeddings.translate_embeddings)),
        ("GET", "models", models.OPERATION, lambda _, __: models.translate_models()),
        ("GET", "models/{model:path}", models.OPERATION, model),
    ]
    return [
        Route(PREFIX + path, OpenAIEndpoint(serving, operation, translate), methods=[verb])
        for verb, path, operation, translate in paths
    ]
