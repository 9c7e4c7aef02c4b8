"""What ``ayllu top`` shows, as tables. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..schemas import TurnStatus
from .terminal import one_line
from .top import Top
from .trace_view import STYLES, seconds

LONGEST = 40
"""How many characters of a name are shown."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def top_view(top: Top) -> RenderableType:
    """Return the tables of what is shown; actors that do nothing and streams that are empty are only named."""
    return Group(*_separated((_turns(top), _models(top), _actors(top), _streams(top))))


def _turns(top: Top) -> Table:
    table = _table("agent", "turn", "status", "does", "age", "tokens", "behind it", left=4)
    for row in top.turns:
        table.add_row(
            _name(row.agent),
            _name(row.turn),
            Text(row.status, STYLES[TurnStatus(row.status)]),
            _name(row.step),
            "" if row.seconds is None else seconds(row.seconds),
            f"{row.tokens:,}",
            _marked(row.behind),
        )
    return _ended(table, top, "turns")


def _models(top: Top) -> Table:
    table = _table("model", "actors", "slots", "in use", "waiting", "tokens/s")
    for row in top.models:
        table.add_row(
            _name(row.model),
            str(row.actors),
            str(row.slots),
            str(row.in_use),
            _marked(row.waiting),
            _rate(row.tokens_per_second),
        )
    return _ended(table, top, "models")


def _actors(top: Top) -> Table:
    table = _table("service", "instances", "running", "waiting", "calls/s", "errors/s")
    idle: list[str] = []
    for row in top.actors:
        if not (row.running or row.waiting or row.calls_per_second):
            idle.append(row.service)
            continue
        table.add_row(
            _name(row.service),
            str(row.instances),
            str(row.running),
            _marked(row.waiting),
            _rate(row.calls_per_second),
            Text(_rate(row.errors_per_second), "red" if row.errors_per_second else ""),
        )
    return _ended(table, top, "actors", "idle", idle)


def _streams(top: Top) -> Table:
    table = _table("stream", "entries", "size", "of", "entries/s", "pending", "in work")
    empty: list[str] = []
    for row in top.streams:
        if not (row.entries or row.pending or row.unacknowledged or row.entries_per_second):
            empty.append(row.stream)
            continue
        table.add_row(
            _name(row.stream),
            f"{row.entries:,}",
            size(row.bytes),
            size(row.limit) if row.limit >= 0 else "",
            _rate(row.entries_per_second),
            "" if row.pending is None else _marked(row.pending),
            "" if row.unacknowledged is None else str(row.unacknowledged),
        )
    return _ended(table, top, "streams", "empty", empty)


def _separated(tables: Iterable[Table]) -> Iterable[RenderableType]:
    for number, table in enumerate(tables):
        if number:
            yield Text()
        yield table


def _table(*columns: str, left: int = 1) -> Table:
    """Return a table; its first columns are of texts, the others of numbers."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", caption_justify="left", padding=(0, 2, 0, 0)
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    return table


def _ended(table: Table, top: Top, part: str, quiet: str = "", names: Sequence[str] = ()) -> Table:
    """Return the table of a part with what is said below it: what is quiet, and how much more there is."""
    if not table.row_count and not names:
        table.add_row(Text("none", "dim"))
    said = [f"{quiet}: {', '.join(_name(name).plain for name in names)}"] if names else []
    if part in top.left_out:
        said.append(f"and {top.left_out[part]:,} more")
    table.caption = Text("; ".join(said), "dim") if said else None
    return table


def _name(name: str) -> Text:
    line = one_line(name)
    return Text(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…")


def _marked(count: int) -> Text:
    return Text(f"{count:,}", "yellow" if count else "")


def _rate(rate: float | None) -> str:
    if rate is None:
        return ""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def size(count: int) -> str:
    """Return a size in bytes as people read it."""
    power = 0
    while count >= 1024 ** (power + 1) and power < len(UNITS) - 1:
        power += 1
    value = count / 1024**power
    return (
        f"{value:.0f} {UNITS[power]}"
        if value >= 100 or not power
        else f"{value:.1f} {UNITS[power]}"
    )
