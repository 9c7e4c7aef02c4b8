"""When a schedule is due; no I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cronsim import CronSim, CronSimError

from ...schemas import Schedule

FIELDS = 5
_SECOND = 1_000_000
_EPOCH = datetime.fromtimestamp(0, UTC)


def schedule_problems(schedule: Schedule) -> list[str]:
    """Return what is wrong with a schedule."""
    if (schedule.every is None) is (schedule.cron is None):
        return ["schedule: it has either `every` or `cron`"]
    if schedule.cron is None:
        return []
    if len(schedule.cron.split()) != FIELDS:
        return [
            f"schedule.cron: {schedule.cron!r} has not the five fields minute, hour, day, month, day of the week"
        ]
    try:
        CronSim(schedule.cron, _EPOCH)
    except CronSimError as error:
        return [f"schedule.cron: {schedule.cron!r}: {error}"]
    return []


def next_due(schedule: Schedule, created: datetime, after: datetime) -> datetime | None:
    """Return the first time after another one at which a schedule is due, or None if it never is."""
    if schedule.cron is not None:
        return next(CronSim(schedule.cron, after), None)
    # In whole microseconds: all workers must come to the same time.
    step = round((schedule.every or 0.0) * _SECOND)
    begun = _microseconds(created)
    times = max(0, _microseconds(after) - begun) // step + 1
    return _EPOCH + timedelta(microseconds=begun + times * step)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
