"""Documents as text, by their media type: the one place that reads what is neither a message nor a program."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping

from ..schemas import InvalidRequest

HTML = frozenset({"text/html", "application/xhtml+xml"})
STRUCTURED = frozenset(
    f"application/{name}"
    for name in (
        *("json", "jsonl", "x-ndjson", "xml", "yaml", "x-yaml", "toml", "sql"),
        *("javascript", "typescript", "x-python-code", "x-sh", "x-tex", "x-latex"),
    )
)
"""What is text although its type does not begin with ``text/``: data and source code."""
SUFFIXES = ("+json", "+xml", "+yaml")
"""What else is text, by the end of its type (RFC 6839)."""

_NAME = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
"""What a media type is (RFC 6838); it stands in prompts and messages."""
_CHARSETS = frozenset(
    codecs.lookup(name).name
    for name in (
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "us-ascii"),
        *(f"iso8859-{part}" for part in range(1, 17) if part != 12),
        *(f"cp{page}" for page in range(1250, 1259)),
        *("koi8-r", "koi8-u", "gb18030", "gbk", "big5", "shift_jis", "euc_jp", "euc_kr"),
    )
)
"""What text is written in. Not every codec of Python: some, such as punycode, take time that grows with the square."""


def media_type(text: str) -> tuple[str, Mapping[str, str]]:
    """Split ``text/plain; charset=utf-8`` into the lower-case type and its parameters (RFC 2045)."""
    essence, *rest = text.split(";")
    pairs = (part.partition("=") for part in rest)
    parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
    return essence.strip().lower(), parameters


def is_text(essence: str) -> bool:
    """Tell whether documents of a type without parameters have text here."""
    found = (
        essence.startswith("text/")
        or essence in STRUCTURED
        or essence in HTML
        or essence.endswith(SUFFIXES)
    )
    return found and _NAME.fullmatch(essence) is not None


def decoded(data: bytes, charset: str | None) -> str:
    """Return text that is written in a charset, UTF-8 where none is told; a byte order mark is no part of it.

    Raises:
        InvalidRequest: it is not, or the charset is not known.
    """
    charset = (charset or "utf-8")[:40]
    try:
        codec = codecs.lookup(charset).name
    except (LookupError, ValueError):
        codec = ""
    if codec not in _CHARSETS:
        raise InvalidRequest(f"the charset {charset!r} is not known")
    try:
        return data.decode("utf-8-sig" if codec == "utf-8" else codec)
    except ValueError as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise InvalidRequest(f"it is not text in the charset {codec}{place}") from error


def markdown(html: str) -> str:
    """Return a page as Markdown, without scripts, styles and pictures. It may take seconds for a large one.

    Raises:
        InvalidRequest: it cannot be read.
    """
    # Only who reads pages needs it.
    import html_to_markdown

    options = html_to_markdown.ConversionOptions(
        extract_metadata=False, skip_images=True, max_depth=256
    )
    try:
        return html_to_markdown.convert(html, options).content or ""
    except Exception as error:
        # The library has a tree of its own, and RuntimeErrors beside it.
        raise InvalidRequest(f"the HTML cannot be read: {str(error)[:200]}") from error
