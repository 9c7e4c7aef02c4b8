"""``image_gen``: pictures that a server makes which speaks the images part of OpenAI's protocol.

https://platform.openai.com/docs/api-reference/images/create
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import anyio
import msgspec

from ...schemas import Attachment, Content, DeadlineExceeded, TooLarge, ToolRequest, encode
from ..attachments.data_urls import url_of
from ..attachments.images import type_of
from ..fetching import Limits, fetching
from .settings import SPARE_SECONDS, ImageGenSettings
from .web_api import Question, WebApi, WebTool

MAX_PROMPT = 4000
MAX_IMAGE = 8 << 20
"""Bytes of a picture."""
MAX_ANSWER = MAX_IMAGE * 4 // 3 + (64 << 10)
"""Bytes of the server's answer: it is base64."""
_ALWAYS_BASE64 = "gpt-image"
"""OpenAI's models of this family answer with base64 in any case, and refuse to be asked for it."""


class _Image(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None


class _Images(msgspec.Struct):
    data: list[_Image]


class ImageGen(WebTool):
    """A `Tool` that has pictures made; it is entered before it is run.

    Args:
        settings: who makes them.
        key: what lets it in, if the server wants a key.
    """

    name = "image_gen"
    description = "Make a picture from a description in words."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "prompt": {
                "type": "string",
                "minLength": 1,
                "description": "What the picture shows, and in which style.",
            }
        },
        "required": ["prompt"],
        "additionalProperties": False,
    }
    # Each picture costs.
    idempotent = False
    max_output = 4096

    def __init__(self, settings: ImageGenSettings, key: str | None) -> None:
        self._settings = settings
        api = WebApi(
            "the image service",
            settings.url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            secrets=[key] if key else [],
            advice=f"the key comes from the variable {settings.key_variable}"
            if key
            else "it may want a key: name a `key_variable`",
            seconds=settings.seconds,
            max_bytes=MAX_ANSWER,
            at_once=settings.at_once,
        )
        super().__init__(api)
        self.seconds = settings.seconds + SPARE_SECONDS

    async def run(self, request: ToolRequest) -> Content:
        """Have a picture made; see `Tool.run`.

        Raises:
            TooLarge: the prompt is too long.
            AylluError: see `WebApi.ask` and `fetching`.
        """
        prompt = request.arguments["prompt"]
        if len(prompt) > MAX_PROMPT:
            raise TooLarge(f"a prompt has at most {MAX_PROMPT} characters, not {len(prompt)}")
        try:
            with anyio.fail_after(self._settings.seconds):
                body = await self._api.ask(self._question(prompt))
                data = await self._data(body)
        except TimeoutError as error:
            message = f"the image service did not answer within {self._settings.seconds:g} s"
            raise DeadlineExceeded(message, retryable=False) from error
        mime_type = type_of(data)
        if mime_type is None:
            raise self._api.garbage("what it calls an image is no PNG, JPEG, GIF or WebP")
        return [
            f"The picture was made: {mime_type}, {len(data)} bytes.",
            Attachment(url_of(mime_type, data), mime_type),
        ]

    def _question(self, prompt: str) -> Question:
        settings = self._settings
        fields: dict[str, Any] = {"model": settings.model, "prompt": prompt, "n": 1}
        if settings.size:
            fields["size"] = settings.size
        if not settings.model.rpartition("/")[2].startswith(_ALWAYS_BASE64):
            fields["response_format"] = "b64_json"
        return Question("POST", "/images/generations", encode(fields), repeatable=False)

    async def _data(self, body: bytes) -> bytes:
        """Return the picture that an answer has, or leads to."""
        try:
            images = msgspec.json.decode(body, type=_Images).data
        except (msgspec.DecodeError, RecursionError):
            raise self._api.garbage("it has no image") from None
        image = images[0] if images else _Image()
        if image.b64_json:
            try:
                data = base64.b64decode(image.b64_json, validate=True)
            except (binascii.Error, ValueError):
                raise self._api.garbage("its image is no base64") from None
            if len(data) > MAX_IMAGE:
                raise TooLarge(f"the image has {len(data)} bytes, more than {MAX_IMAGE}")
            return data
        if not image.url:
            raise self._api.garbage("it has no image")
        # The address is the server's word: it may lead anywhere.
        settings = self._settings
        limits = Limits(MAX_IMAGE, settings.seconds, settings.private_hosts)
        async with fetching(image.url, limits) as found:
            return b"".join([part async for part in found.body])
