"""Texts as a filter should read them: what is invisible, look-alike, misspelt or turned around is made plain. Linear in time.

This cannot be complete, and does not try to: the confusable letters are the few that English can be written with.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import OSA

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_FLAG = re.compile("\U0001f3f4[\U000e0020-\U000e007e]{1,8}\U000e007f")
"""The only use of tag characters that anybody sees: flags of regions."""
_TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")
_SPLIT = re.compile("[A-Za-z][\u00ad\u200b-\u200d\u2060-\u2064\ufeff]+(?=[A-Za-z])")
"""Letters of a Latin word with something invisible between them, which no script needs there."""
_TURNED = re.compile("[\u202d\u202e]")
_CONFUSABLE = str.maketrans(
    # Cyrillic, then Greek and others; small letters, after case folding.
    "\u0430\u0432\u0435\u043a\u043c\u043d\u043e\u0440\u0441\u0442\u0443\u0445\u0455\u0456\u0458\u0501\u051b\u051d\u04bb"
    "\u03b1\u03b5\u03b9\u03ba\u03bd\u03bf\u03c1\u03c4\u03c5\u03c7\u0131\u0251\u0261",
    "abekmhopctyxsijdqwhaeikvoptuxiag",
)
_DIGITS = frozenset("0134578@$")
_LEET = str.maketrans("0134578@$", "oieastbas")
_WORD = re.compile(r"[^\W_]+")
_SPACED = re.compile(r"(?<!\S)(?:\w[ \t]){2,40}\w(?!\S)")
_JOINTS = re.compile(r"(?<=[a-z])[-_.*~|+\\/]{1,3}(?=[a-z])")
_LONGEST_WORD = 24
HIDDEN_TEXT = "hidden characters"


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a text.

    Attributes:
        words: in order, in small letters.
        plain: whether it says that to anybody who sees it.
    """

    words: Sequence[str]
    plain: bool


class Spelling:
    """Finds what was meant by a misspelt word.

    Args:
        words: those that matter.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = frozenset(words)
        self._alike: dict[tuple[str, int], list[str]] = {}
        for word in sorted(self._words):
            if len(word) >= 5:
                for length in range(len(word) - 2, len(word) + 3):
                    self._alike.setdefault((word[0], length), []).append(word)

    def meant(self, words: Sequence[str]) -> list[str]:
        """Return words with those that matter in place of what is nearly one of them."""
        known = {word: self._meant(word) for word in set(words)}
        return [known[word] for word in words]

    def _meant(self, word: str) -> str:
        if not 5 <= len(word) <= _LONGEST_WORD or word in self._words:
            return word
        most = 1 if len(word) < 7 else 2
        for known in self._alike.get((word[0], len(word)), ()):
            if word.startswith(known) or known.startswith(word):
                continue  # An inflection says something else.
            if OSA.distance(word, known, score_cutoff=most) <= most:
                return known
        return word


def shown(text: str) -> str:
    """Return a text as it is seen, in the usual characters where only the look is unusual (NFKC)."""
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))


def hidden(text: str) -> str:
    """Return what is written in tag characters, which nobody sees but models read."""
    found = _TAGS.findall(_FLAG.sub("", text))
    return "\n".join("".join(chr(ord(one) - 0xE0000) for one in part) for part in found)


def disguises(text: str) -> Iterator[str]:
    """Yield by what means a text looks other than it reads."""
    if hidden(text):
        yield HIDDEN_TEXT
    if len(_SPLIT.findall(text)) > 2:
        yield "split words"
    if _TURNED.search(text):
        yield "turned text"
    if sum(map(_mixes, _WORD.findall(shown(text)))) > 1:
        yield "mixed scripts"


def readings(text: str, spelling: Spelling) -> Iterator[Reading]:
    """Yield the ways to read a text, as it is `shown`, that differ; the plain one first."""
    plain = text.casefold()
    folded = _folded(plain)
    ways: Sequence[Callable[[], list[str]]] = (
        lambda: _WORD.findall(plain),
        lambda: _WORD.findall(folded),
        lambda: spelling.meant(_WORD.findall(_without_digits(folded))),
        lambda: spelling.meant(_WORD.findall(_JOINTS.sub("", folded))),
        lambda: _WORD.findall(_SPACED.sub(_joined, folded)),
        lambda: _WORD.findall(folded[::-1]),
        lambda: _WORD.findall(codecs.encode(folded, "rot13")),
    )
    seen = list[list[str]]()
    for way in ways:
        words = way()
        if words not in seen:
            yield Reading(words, plain=not seen)
            seen.append(words)


def _folded(text: str) -> str:
    """Return a text without the marks on its letters, and with Latin letters for those that look like them."""
    if text.isascii():
        return text
    letters = unicodedata.normalize("NFD", text)
    return "".join(one for one in letters if not unicodedata.combining(one)).translate(_CONFUSABLE)


def _without_digits(text: str) -> str:
    """Return a text with letters for the digits in words that have both."""

    def word(found: re.Match[str]) -> str:
        characters = set(found[0])
        mixed = characters & _DIGITS and any("a" <= one <= "z" for one in characters)
        return found[0].translate(_LEET) if mixed else found[0]

    return re.sub(r"\S+", word, text)


def _joined(found: re.Match[str]) -> str:
    return "".join(found[0].split())


def _mixes(word: str) -> bool:
    if word.isascii():
        return False
    scripts = {unicodedata.name(one, "").partition(" ")[0] for one in word[:_LONGEST_WORD]}
    return "LATIN" in scripts and bool(scripts & {"CYRILLIC", "GREEK"})
