"""Answers that were given before, to the letter or nearly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from unicodedata import normalize

from rapidfuzz import process
from rapidfuzz.distance import Indel

# Scripts that are written without spaces: Thai and Lao, Burmese, Khmer, Japanese and Chinese.
_SPACELESS = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf" ?(?:[^\W{_SPACELESS}]+|[^ ])")


def normalised(text: str) -> str:
    """Return what equal texts have in common: no case, no variants of a character, one space for all white space."""
    folded = normalize("NFKC", normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def words_of(text: str) -> list[str]:
    """Return the words of a normalised text, each with the space before it; together they are the text.

    A sign stands alone, and so does a character of a script without spaces.
    """
    return _WORD.findall(text)


def similarity(one: str, other: str) -> float:
    """Return how similar two texts are, from 0 to 1; it is 1 just where their normalised forms are equal.

    It is twice the length of the longest common subsequence of their words over the number of all their words: the F-measure
    of ROUGE-L, by which Self-Instruct (https://arxiv.org/abs/2212.10560) leaves out what is 0.7 similar.
    """
    return Indel.normalized_similarity(words_of(normalised(one)), words_of(normalised(other)))


class Distinct:
    """The texts of one prompt that are not as similar to an earlier one of them as the bound says."""

    def __init__(self, max_similarity: float) -> None:
        self.max_similarity = max_similarity
        self._texts: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._numbered: list[list[int]] = []

    def add(self, text: str) -> bool:
        """Take in a text unless it is a duplicate; tell whether it was taken.

        It is compared with those that were taken, not with their duplicates: else a chain of small steps would leave out texts
        that are like nothing that is there. The time grows with the number of those; texts that are equal are found at once.
        """
        text = normalised(text)
        if text in self._texts:
            return False
        if self.max_similarity < 1:
            # Numbers are compared twice as fast as words.
            words = [self._numbers.setdefault(word, len(self._numbers)) for word in words_of(text)]
            if self._is_near(words):
                return False
            self._numbered.append(words)
        self._texts.add(text)
        return True

    def _is_near(self, words: list[int]) -> bool:
        nearest = process.extractOne(
            words,
            self._numbered,
            scorer=Indel.normalized_similarity,
            score_cutoff=self.max_similarity,
        )
        # The library rounds the least of bounds to 0.
        return nearest is not None and nearest[1] >= self.max_similarity


def duplicates_of(texts: Iterable[str], max_similarity: float) -> set[int]:
    """Return which texts are at least as similar as that to an earlier one that is none of them."""
    distinct = Distinct(max_similarity)
    return {place for place, text in enumerate(texts) if not distinct.add(text)}
