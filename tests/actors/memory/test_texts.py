"""Texts of documents, and their chunks."""

from __future__ import annotations

import contextlib
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.embedders import HashEmbedder
from tokenizers import Tokenizer

from ayllu.actors.memory.splitting import SECTION, sections, split
from ayllu.actors.memory.texts import Text, is_supported, text_of
from ayllu.schemas import InvalidRequest, Unsupported


@pytest.mark.requirement("memory-mime-types")
@pytest.mark.parametrize(
    ("content", "mime_type", "expected"),
    [
        (b"plain", "text/plain", "plain"),
        ("grün".encode(), "text/plain; charset=utf-8", "grün"),
        ("grün".encode("latin-1"), 'TEXT/PLAIN; charset="ISO-8859-1"', "grün"),
        ("grün".encode("utf-16"), "text/plain;charset=utf-16", "grün"),
        (b"\xef\xbb\xbfmark", "text/plain", "mark"),
        (b"def f():\n    return 1\n", "text/x-python", "def f():\n    return 1\n"),
        (b'{"a": 1}', "application/json", '{"a": 1}'),
        (b"a,b\n1,2\n", "text/csv", "a,b\n1,2\n"),
    ],
)
def test_text_is_read_in_its_encoding(content: bytes, mime_type: str, expected: str) -> None:
    assert text_of(content, mime_type) == Text(expected, "text")


@pytest.mark.requirement("memory-mime-types")
def test_html_becomes_markdown_without_what_nobody_reads() -> None:
    page = b"""<html><head><title>T</title><style>p {color: red}</style><script>alert(1)</script></head>
    <body><h1>Head &amp; line</h1><p>Some <b>bold</b> text.</p><ul><li>one</li><li>two</li></ul>
    <img src="data:image/png;base64,AAAA"><pre>x = 1</pre></body></html>"""
    text = text_of(page, "text/html; charset=utf-8")
    assert text.kind == "markdown"
    assert "# Head & line" in text.text
    assert "- one" in text.text
    assert "x = 1" in text.text
    for absent in ("alert", "color", "base64", "<"):
        assert absent not in text.text


@pytest.mark.requirement("memory-mime-types")
@pytest.mark.parametrize(
    ("content", "mime_type", "error"),
    [
        (b"", "text/plain", InvalidRequest),
        (b" \n\t", "text/plain", InvalidRequest),
        (b"<script>x</script>", "text/html", InvalidRequest),
        (b"\xff\xff", "text/plain", InvalidRequest),
        (b"x", "text/plain; charset=klingon", InvalidRequest),
        (b"x", "text/plain; charset=punycode-\x00", InvalidRequest),
        (b"\x89PNG", "image/png", Unsupported),
        (b"%PDF", "application/pdf", Unsupported),
        (b"x", "", Unsupported),
        (b"x", "nonsense", Unsupported),
    ],
)
def test_what_has_no_text_is_refused(
    content: bytes, mime_type: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        text_of(content, mime_type)


@pytest.mark.requirement("memory-mime-types")
def test_types_are_told_apart_by_name() -> None:
    assert is_supported("text/markdown")
    assert is_supported("Application/JSON; charset=utf-8")
    assert not is_supported("audio/ogg")


@pytest.mark.requirement("memory-mime-types")
@settings(max_examples=200, deadline=None)
@given(
    content=st.binary(max_size=200),
    mime_type=st.sampled_from(["text/html", "text/plain", "text/markdown"]),
)
def test_any_bytes_are_a_text_or_an_error(content: bytes, mime_type: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert text_of(content, mime_type).text.strip()


@cache
def tokenizer() -> Tokenizer:
    return HashEmbedder().tokenizer


WORDS = st.lists(
    st.sampled_from(["alpha", "b", "# Head", "\n", "\n\n", "- item", ".", "ä" * 30]),
    min_size=1,
    max_size=200,
)


@pytest.mark.requirement("memory-chunks")
@settings(max_examples=60, deadline=None)
@given(words=WORDS, size=st.integers(1, 20), part=st.floats(0, 0.9), markdown=st.booleans())
def test_every_word_stands_in_a_chunk_of_the_size(
    words: list[str], size: int, part: float, markdown: bool
) -> None:
    text = " ".join(words)
    if not text.strip():
        return
    overlap = min(size - 1, int(size * part))
    chunks = split(
        Text(text, "markdown" if markdown else "text"),
        size=size,
        overlap=overlap,
        tokenizer=tokenizer(),
    )
    covered = [False] * len(text)
    for chunk in chunks:
        assert text[chunk.start : chunk.start + len(chunk.text)] == chunk.text
        assert len(tokenizer().encode(chunk.text, add_special_tokens=False)) <= size
        covered[chunk.start : chunk.start + len(chunk.text)] = [True] * len(chunk.text)
    assert all(seen or text[place].isspace() for place, seen in enumerate(covered))


@pytest.mark.requirement("memory-chunks")
@given(text=st.text(st.sampled_from("ab \n"), min_size=1).map(lambda text: text * 3000))
@settings(max_examples=10, deadline=None)
def test_sections_are_the_whole_text(text: str) -> None:
    found = list(sections(text))
    assert "".join(part for _, part in found) == text
    assert all(len(part) <= SECTION for _, part in found)
    assert all(text[start : start + len(part)] == part for start, part in found)


@pytest.mark.requirement("memory-chunks")
def test_markdown_is_split_at_its_sections() -> None:
    text = "\n\n".join(f"# Head {n}\n\n" + f"word{n} " * 12 for n in range(5))
    chunks = split(Text(text, "markdown"), size=16, overlap=0, tokenizer=tokenizer())
    assert [re.findall(r"# Head \d", chunk.text) for chunk in chunks] == [
        [f"# Head {n}"] for n in range(5)
    ]
