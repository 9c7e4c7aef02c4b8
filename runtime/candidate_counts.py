"""What became of candidates that were not accepted, in words for people."""

from __future__ import annotations

from ..schemas import SyntheticDataStatistics


def counts_of_left_out(counts: SyntheticDataStatistics) -> list[tuple[str, int]]:
    """Return why candidates were left out, and how many, in the order in which they are sieved; reasons of none are not told."""
    told = (
        ("could not be generated", counts.failed),
        ("could not be scored", counts.unscored),
        ("below the threshold", counts.below_threshold),
        ("said before", counts.duplicates),
        ("left out by the filter", counts.filtered_out),
        ("beyond the target", counts.surplus),
    )
    return [(name, count) for name, count in told if count]
