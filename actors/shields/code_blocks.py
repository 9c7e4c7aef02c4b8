"""The blocks of code in a text in Markdown. Linear in time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PYTHON = frozenset({"python", "py", "python3", "py3", "ipython", "ipython3", "pycon", "sage"})
"""What a block of Python says that it is."""

_LINE = re.compile(r"\r\n|\r|\n")
_FENCE = re.compile(r"[ \t>]{0,40}(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]{1,8})?(`{3,}|~{3,})[ \t]*(.*)")
_END = re.compile(r"[ \t>]*(`{3,}|~{3,})[ \t]*$")
_LANGUAGE = re.compile(r"[{. \t]*([^\s{}.,:;=]*)")
_PROMPT = re.compile(r"(?:>>>|\.\.\.)(?: |$)(.*)")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code.

    Attributes:
        language: what it says that it is, in small letters; empty where it says nothing.
        code: its lines.
    """

    language: str
    code: str

    @property
    def is_python(self) -> bool:
        """Whether it says that it is Python."""
        return self.language in PYTHON


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a text; one that is not closed goes to the end."""
    lines: list[str] = []
    fence = language = ""
    for line in _LINE.split(text):
        if not fence:
            if found := _FENCE.match(line):
                fence = found[1]
                named = _LANGUAGE.match(found[2])
                language = named[1].casefold() if named else ""
        elif (end := _END.match(line)) and end[1].startswith(fence):
            yield _block(language, lines)
            fence, lines = "", []
        else:
            lines.append(line)
    if fence:
        yield _block(language, lines)


def _block(language: str, lines: list[str]) -> Block:
    if language == "pycon":
        lines = [said[1] for line in lines if (said := _PROMPT.match(line.lstrip()))]
    return Block(language, "\n".join(lines))
