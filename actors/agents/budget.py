"""What a turn may take, together with those that it starts. No I/O.

The turns below one share its limits by allotment: each gets a part of what is left when it begins, and what it has not used
comes back with its end. So no counter is shared, nothing is exceeded, and whoever folds the journal knows the same.
"""

from __future__ import annotations

from ...schemas import BudgetExceeded, Limits, Spent, stricter
from ...schemas.delegation import MAX_DEPTH

LEAST_SECONDS = 0.001


def left(limits: Limits, spent: Spent, seconds: float) -> Limits:
    """Return what limits leave.

    Args:
        limits: of a turn.
        spent: what it has taken.
        seconds: how long ago it began.
    """
    return Limits(
        seconds=None if limits.seconds is None else max(LEAST_SECONDS, limits.seconds - seconds),
        tokens=None if limits.tokens is None else max(0, limits.tokens - spent.tokens),
        steps=None if limits.steps is None else max(0, limits.steps - spent.steps),
        cost=None if limits.cost is None else max(0.0, limits.cost - spent.cost),
        depth=limits.depth,
    )


def exceeded(limits: Limits, spent: Spent) -> BudgetExceeded | None:
    """Return that nothing is left for another step of a model, if so."""
    for name in ("steps", "tokens", "cost"):
        limit, taken = getattr(limits, name), getattr(spent, name)
        if limit is not None and taken >= limit:
            unit = (
                "cost units" if name == "cost" else f"{name} of models" if name == "steps" else name
            )
            return BudgetExceeded(
                f"the turn, with those that it started, has used up its {limit:g} {unit}"
            )
    return None


def added(one: Spent, other: Spent) -> Spent:
    """Return what two have taken."""
    return Spent(one.steps + other.steps, one.tokens + other.tokens, one.cost + other.cost)


def levels(limits: Limits) -> int:
    """Return how many levels of turns there may be below a turn."""
    return MAX_DEPTH if limits.depth is None else limits.depth


def allotted(pool: Limits, most: Limits, shares: int) -> Limits:
    """Return what a turn gets of what is left.

    Args:
        pool: what is left of the turn that starts it, and is allotted to none.
        most: what turns of this kind may take.
        shares: among how many it is divided, with this one.
    """
    part = Limits(
        seconds=pool.seconds,
        tokens=None if pool.tokens is None else pool.tokens // shares,
        # One is kept for whoever reads the answers.
        steps=None if pool.steps is None else max(0, pool.steps - 1) // shares,
        cost=None if pool.cost is None else pool.cost / shares,
        depth=levels(pool) - 1,
    )
    return stricter(part, most)


def without(pool: Limits, part: Limits) -> Limits:
    """Return what is left of a pool when a part of it is allotted."""

    def less(name: str) -> float | None:
        whole, taken = getattr(pool, name), getattr(part, name)
        return None if whole is None else max(0, whole - (taken or 0))

    return Limits(
        seconds=pool.seconds,
        tokens=less("tokens"),  # type: ignore[arg-type]  # of whole numbers it is one
        steps=less("steps"),  # type: ignore[arg-type]
        cost=less("cost"),
        depth=pool.depth,
    )
