"""Texts that end an answer, found while it comes in pieces; for engines that do not find them themselves. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Cuts an answer before the first of some texts; however it is cut into pieces, what comes out is the same.

    What may be the beginning of such a text is withheld until more is known.

    Attributes:
        ended: whether one of them has come; what follows is no part of the answer.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.ended = False
        self._texts = texts
        self._withheld = ""

    def feed(self, text: str) -> str:
        """Take a piece of text, and return what is known to be part of the answer."""
        if not self._texts:
            return text
        text = self._withheld + text
        found = [place for stop in self._texts if (place := text.find(stop)) >= 0]
        if found:
            self.ended = True
            self._withheld = ""
            return text[: min(found)]
        kept = max(overlap(text, stop) for stop in self._texts)
        self._withheld = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return what was withheld, at the end of the text."""
        withheld, self._withheld = self._withheld, ""
        return withheld


def overlap(text: str, marker: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a marker."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
