"""Splitting texts into chunks that an embedding model can read, at the largest boundaries that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer

from .texts import Kind, Text

SECTION = 16_384
SPLITTERS = 32
"""How many splitters are kept: one for each kind of text, size, overlap and tokenizer."""


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A part of a text; ``start`` counts characters."""

    start: int
    text: str


def split(text: Text, *, size: int, overlap: int, tokenizer: Tokenizer) -> list[TextChunk]:
    """Split a text into chunks: paragraphs, sections or lines where they fit, else sentences, words, characters.

    Everything that is not white space stands in some chunk, in order. It blocks: some milliseconds a page.

    Args:
        text: has something other than white space.
        size: the most tokens in a chunk.
        overlap: the most tokens that a chunk repeats of the one before; less than ``size``.
        tokenizer: of the model that reads the chunks.
    """
    splitter = _splitter(text.kind, size, overlap, tokenizer)
    return [
        TextChunk(start + offset, part)
        for start, section in sections(text.text)
        for offset, part in splitter.chunk_indices(section)
    ]


@lru_cache(SPLITTERS)
def _splitter(
    kind: Kind, size: int, overlap: int, tokenizer: Tokenizer
) -> MarkdownSplitter | TextSplitter:
    """Return a splitter; making one copies the whole tokenizer, which takes longer than to split a page."""
    of_kind = MarkdownSplitter if kind == "markdown" else TextSplitter
    return of_kind.from_huggingface_tokenizer(tokenizer, size, overlap=overlap)


def sections(text: str) -> Iterator[tuple[int, str]]:
    """Yield parts of a text of at most `SECTION` characters, cut at a blank line, a line's end or a space if there is one.

    The splitter's time grows with the square of what has no boundaries: a line of a megabyte would take half a minute.
    """
    start = 0
    while len(text) - start > SECTION:
        window = text[start : start + SECTION]
        cuts = (window.rfind(boundary, SECTION // 2) for boundary in ("\n\n", "\n", " "))
        cut = next((cut for cut in cuts if cut > 0), SECTION)
        yield start, window[:cut]
        start += cut
    yield start, text[start:]
