"""The text of a document, by its MIME type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...schemas import InvalidRequest, TooLarge, Unsupported
from ..documents import HTML, decoded, is_text, markdown, media_type

Kind = Literal["text", "markdown"]
MAX_CHARACTERS = 20_000_000
"""What one document may have; more is more than one document."""

MARKDOWN = frozenset({"text/markdown", "text/x-markdown"})
SUPPORTED = "text/*, application/json, /xml, /yaml, /toml, /javascript and other source code"


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a document, and how it is structured."""

    text: str
    kind: Kind


def is_supported(mime_type: str) -> bool:
    """Return whether documents of a MIME type have text here."""
    return is_text(media_type(mime_type)[0])


def text_of(content: bytes, mime_type: str) -> Text:
    """Return the text of a document: HTML becomes Markdown without scripts, styles and pictures, all else stays as it is.

    The encoding is UTF-8 unless the type has a ``charset``.

    Raises:
        Unsupported: the type has no text here.
        InvalidRequest: the content is not in its encoding, or has no text.
        TooLarge: it is longer than `MAX_CHARACTERS`.
    """
    found, parameters = media_type(mime_type)
    if not is_text(found):
        raise Unsupported(
            f"documents of type {mime_type!r} have no text here: it takes {SUPPORTED}"
        )
    text = decoded(content, parameters.get("charset"))
    if len(text) > MAX_CHARACTERS:
        raise TooLarge(f"a document has at most {MAX_CHARACTERS} characters, not {len(text)}")
    kind: Kind = "markdown" if found in MARKDOWN else "text"
    if found in HTML:
        text, kind = markdown(text), "markdown"
    if not text.strip():
        raise InvalidRequest("there is no text in it")
    return Text(text, kind)
