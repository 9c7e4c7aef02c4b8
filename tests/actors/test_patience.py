"""Bearing with what is away for a while, and with what is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from ayllu.actors import patience
from ayllu.actors.patience import AT_ONCE, LONGEST_HINT, pause_after, persistently, until
from ayllu.actors.rewards.asking import Patience
from ayllu.schemas import AylluError, NotFound, Overloaded, Unavailable

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("overloaded-is-borne")]


def full(seconds: float = 0.001) -> Overloaded:
    return Overloaded("all slots are taken", details={"retry_after": seconds})


def failing(*errors: AylluError) -> Callable[[], Awaitable[str]]:
    """Return what fails with these errors, one after the other, and then works."""
    left = list(errors)

    async def work() -> str:
        await anyio.sleep(0.002)
        if left:
            raise left.pop(0)
        return "done"

    return work


async def test_a_full_system_is_borne_for_longer_than_one_that_is_away() -> None:
    assert await persistently(failing(*[full()] * 20), patience=0.01) == "done"
    with pytest.raises(Unavailable):
        await persistently(failing(*[Unavailable("gone")] * 20), patience=0.01)


async def test_what_is_away_after_it_was_full_is_borne_too() -> None:
    errors = [*[full()] * 20, Unavailable("gone")]
    assert await persistently(failing(*errors), patience=0.01) == "done"


async def test_a_full_system_is_not_borne_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FULL_PATIENCE", 0.01)
    with pytest.raises(Overloaded):
        await persistently(failing(*[full()] * 20), patience=0.005)
    with pytest.raises(NotFound):
        await persistently(failing(NotFound("no")))
    with pytest.raises(Overloaded):
        never = Overloaded("never", retryable=False)
        await until(lambda _: AT_ONCE, failing(never))


async def test_a_reward_model_bears_with_a_full_model_and_does_not_take_it_for_away() -> None:
    patient = Patience(0.01)
    assert await patient.bear(failing(*[full()] * 10)) == "done"
    with pytest.raises(NotFound):
        await patient.bear(failing(NotFound("no")))


@pytest.mark.parametrize(
    ("hint", "low", "high"),
    [(4.0, 4.0, 5.0), (4, 4.0, 5.0), (1e9, LONGEST_HINT, 1.25 * LONGEST_HINT)],
)
async def test_the_pause_is_what_the_error_asks_for(hint: float, low: float, high: float) -> None:
    assert low <= pause_after(full(hint), 0.1) <= high


@pytest.mark.parametrize("hint", [None, "soon", -1, 0, float("nan"), []])
async def test_a_hint_that_is_none_leaves_the_usual_pause(hint: object) -> None:
    assert pause_after(Overloaded("full", details={"retry_after": hint}), 0.1) == 0.1
