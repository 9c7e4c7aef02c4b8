"""Stop texts, however an answer is cut into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.engines.stops import Stops

TEXT = st.text("ab\n", max_size=12)


@pytest.mark.requirement("engine-stop")
@given(
    pieces=st.lists(TEXT, max_size=8),
    texts=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_pieces_amount_to_what_stands_before_the_first_stop(
    pieces: list[str], texts: list[str]
) -> None:
    whole = "".join(pieces)
    stops = Stops(texts)
    out = ""
    for piece in pieces:
        out += stops.feed(piece)
        if stops.ended:
            break
    else:
        out += stops.finish()
    # The first stop is the one whose end comes first: nothing is waited for once one is whole.
    ends = [(whole.index(text) + len(text), whole.index(text)) for text in texts if text in whole]
    assert stops.ended is bool(ends)
    if not ends:
        assert out == whole
    else:
        assert out in {whole[:start] for _, start in ends}
        assert not any(text in out for text in texts)
