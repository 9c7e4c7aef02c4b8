"""Ranking: from a question to words that are looked for, and from two rankings to one."""

from __future__ import annotations

import re
from collections.abc import Sequence

RANK_CONSTANT = 60
"""Of reciprocal rank fusion: Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual
Rank Learning Methods", SIGIR 2009."""
MAX_WORDS = 64
_WORD = re.compile(r"\w+")


def any_word(text: str) -> str:
    """Return the expression of FTS5 for chunks with any word of a text; empty where it has no word.

    Words beyond `MAX_WORDS` different ones are left out: the rarer a word is, the more it counts, and a text that long
    has enough of them.
    """
    words = dict.fromkeys(word.lower() for word in _WORD.findall(text))
    # Quoted, so that no word is an operator of FTS5.
    return " OR ".join(f'"{word}"' for word in list(words)[:MAX_WORDS])


def fused(rankings: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Return the labels of some rankings with the sum of their reciprocal ranks, best first."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, label in enumerate(ranking, 1):
            scores[label] = scores.get(label, 0.0) + 1.0 / (RANK_CONSTANT + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
