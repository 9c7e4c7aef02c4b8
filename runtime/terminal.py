"""Texts of others in a terminal."""

from __future__ import annotations

_HARMLESS = dict.fromkeys([*range(32), *range(127, 160)], "\ufffd")
del _HARMLESS[ord("\n")], _HARMLESS[ord("\t")]
_ONE_LINE = {**_HARMLESS, ord("\n"): " ", ord("\t"): " "}


def harmless(text: str) -> str:
    """Return a text without control characters but line ends and tabs."""
    return text.translate(_HARMLESS)


def one_line(text: str) -> str:
    """Return a text that cannot be more than a field of a line."""
    return text.translate(_ONE_LINE)
