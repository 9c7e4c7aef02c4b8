"""What goes through a classification model together: everything once, like lengths, in turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.rewards.classifier.batching import Item, Waiting

pytestmark = pytest.mark.requirement("classifier-batches")

CALLS = st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=6)


def waiting(calls: list[list[int]], batch_size: int = 4, tokens: int = 100) -> Waiting:
    made = Waiting(batch_size, tokens)
    for call, lengths in enumerate(calls):
        for index, length in enumerate(lengths):
            made.add(Item(call, index, [1] * length))
    return made


@given(CALLS, st.integers(1, 5), st.integers(1, 120))
def test_each_comes_once_in_batches_within_the_limits(
    calls: list[list[int]], batch_size: int, tokens: int
) -> None:
    left = waiting(calls, batch_size, tokens)
    seen: list[tuple[int, int]] = []
    while left:
        batch = left.next_batch()
        lengths = [len(item.ids) for item in batch]
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * max(lengths) <= tokens
        assert 2 * min(lengths) >= max(lengths), "more padding than tokens"
        seen += [(item.call, item.index) for item in batch]
    wanted = [(call, index) for call, lengths in enumerate(calls) for index in range(len(lengths))]
    assert sorted(seen) == wanted


def test_calls_take_turns_and_share_batches() -> None:
    left = waiting([[10] * 100, [9], [10]])
    batches = [[item.call for item in left.next_batch()] for _ in range(3)]
    # What is longer than its leader waits: it would make the leader's batch slower.
    assert batches == [[0, 0, 0, 0], [1], [2, 0, 0, 0]]


def test_what_is_forgotten_does_not_come() -> None:
    left = waiting([[5, 6], [5]])
    left.forget(0)
    left.forget(7)
    assert [(item.call, item.index) for item in left.next_batch()] == [(1, 0)]
    assert not left
