"""The text of a document, by its MIME type."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from typing import Literal

import html_to_markdown

from ...schemas import InvalidRequest, TooLarge, Unsupported

Kind = Literal["text", "markdown"]
MAX_CHARACTERS = 20_000_000
"""What one document may have; more is more than one document."""

MARKDOWN = frozenset({"text/markdown", "text/x-markdown"})
HTML = frozenset({"text/html", "application/xhtml+xml"})
STRUCTURED = frozenset(
    {
        "application/json",
        "application/javascript",
        "application/toml",
        "application/xml",
        "application/x-ndjson",
        "application/x-sh",
        "application/x-yaml",
        "application/yaml",
        "application/sql",
        "application/typescript",
        "application/x-python-code",
        "application/x-tex",
        "application/x-latex",
    }
)
"""What is text although its type does not begin with ``text/``: data and source code."""
SUPPORTED = "text/*, application/json, /xml, /yaml, /toml, /javascript and other source code"

_HTML_OPTIONS = html_to_markdown.ConversionOptions(
    extract_metadata=False, skip_images=True, max_depth=256
)


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a document, and how it is structured."""

    text: str
    kind: Kind


def media_type(mime_type: str) -> str:
    """Return the media type of a MIME type without its parameters, in lower case."""
    return mime_type.partition(";")[0].strip().lower()


def is_supported(mime_type: str) -> bool:
    """Return whether documents of a MIME type have text here."""
    found = media_type(mime_type)
    return found.startswith("text/") or found in STRUCTURED or found in HTML


def text_of(content: bytes, mime_type: str) -> Text:
    """Return the text of a document: HTML becomes Markdown without scripts, styles and pictures, all else stays as it is.

    The encoding is UTF-8 unless the type has a ``charset``.

    Raises:
        Unsupported: the type has no text here.
        InvalidRequest: the content is not in its encoding, or has no text.
        TooLarge: it is longer than `MAX_CHARACTERS`.
    """
    if not is_supported(mime_type):
        raise Unsupported(
            f"documents of type {mime_type!r} have no text here: it takes {SUPPORTED}"
        )
    text = _decoded(content, mime_type)
    if len(text) > MAX_CHARACTERS:
        raise TooLarge(f"a document has at most {MAX_CHARACTERS} characters, not {len(text)}")
    found = media_type(mime_type)
    kind: Kind = "markdown" if found in MARKDOWN else "text"
    if found in HTML:
        text, kind = _markdown(text), "markdown"
    if not text.strip():
        raise InvalidRequest("there is no text in it")
    return Text(text, kind)


def _decoded(content: bytes, mime_type: str) -> str:
    header = Message()
    header["Content-Type"] = mime_type.replace("\n", " ").replace("\r", " ")
    charset = header.get_content_charset("utf-8")
    try:
        # A byte order mark is no part of the text.
        text = content.decode("utf-8-sig" if charset in ("utf-8", "utf8") else charset)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"it is not {charset}: {error.reason} at byte {error.start}"
        ) from error
    except (LookupError, ValueError) as error:
        raise InvalidRequest(f"the encoding {charset[:40]!r} is not known") from error
    return text


def _markdown(text: str) -> str:
    try:
        return html_to_markdown.convert(text, _HTML_OPTIONS).content or ""
    except Exception as error:
        # The library has a tree of its own, and RuntimeErrors beside it.
        raise InvalidRequest(f"the HTML cannot be read: {str(error)[:200]}") from error
