"""Which answers go through the model together: those of like length, while calls take turns."""

from __future__ import annotations

from bisect import bisect_right, insort
from dataclasses import dataclass

BATCH_TOKENS = 8192
"""Tokens of a batch with its padding, at most: what bounds the memory, and the time until a cancel is noticed."""


@dataclass(frozen=True, slots=True)
class Item:
    """An answer that waits.

    Attributes:
        call: whose it is.
        index: its place in the call.
        ids: the tokens of the dialog with the answer.
    """

    call: int
    index: int
    ids: list[int]


class Waiting:
    """The answers that wait, by call.

    Args:
        batch_size: answers of a batch, at most.
        tokens: tokens of a batch with its padding, at most; an answer that alone has more is a batch all the same.
    """

    def __init__(self, batch_size: int, tokens: int = BATCH_TOKENS) -> None:
        self._batch_size = batch_size
        self._tokens = tokens
        self._calls: dict[
            int, list[Item]
        ] = {}  # in the order of their turns; each from short to long

    def __bool__(self) -> bool:
        """Tell whether any wait."""
        return bool(self._calls)

    def add(self, item: Item) -> None:
        """Let an answer wait."""
        insort(self._calls.setdefault(item.call, []), item, key=_length)

    def forget(self, call: int) -> None:
        """Let the answers of a call wait no more."""
        self._calls.pop(call, None)

    def next_batch(self) -> list[Item]:
        """Return the answers that are next; they wait no more.

        The longest of the call whose turn it is leads, with the next ones of that call and then of others: each at least half
        as long, so that a batch is never mostly padding.
        """
        turn = next(iter(self._calls))
        longest = _length(self._calls[turn][-1])
        room = min(self._batch_size, max(1, self._tokens // max(1, longest)))
        batch: list[Item] = []
        for call in list(self._calls):
            items = self._calls[call]
            end = bisect_right(items, longest, key=_length)
            begin = end
            while begin and end - begin < room - len(batch) and _fits(items[begin - 1], longest):
                begin -= 1
            batch += items[begin:end]
            del items[begin:end]
            if not items:
                del self._calls[call]
            if len(batch) == room:
                break
        if turn in self._calls:
            self._calls[turn] = self._calls.pop(turn)
        return batch


def _length(item: Item) -> int:
    return len(item.ids)


def _fits(item: Item, longest: int) -> bool:
    return 2 * len(item.ids) >= longest
