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
    """Return the tables of what is shown."""
    return Group(*_separated(_parts(top)))


def _parts(top: Top) -> Iterable[Table]:
    yield _table(
        top,
        "actors",
        ("service", "instances", "running", "waiting", "calls/s", "errors/s"),
        (
            (
                _name(row.service),
                str(row.instances),
                str(row.running),
                _marked(row.waiting),
                _rate(row.calls_per_second),
                Text(_rate(row.errors_per_second), "red" if row.errors_per_second else ""),
            )
            for row in top.actors
        ),
    )
    yield _table(
        top,
        "models",
        ("model", "actors", "slots", "in use", "waiting", "tokens/s"),
        (
            (
                _name(row.model),
                str(row.actors),
                str(row.slots),
                str(row.in_use),
                _marked(row.waiting),
                _rate(row.tokens_per_second),
            )
            for row in top.models
        ),
    )
    yield _table(
        top,
        "turns",
        ("agent", "turn", "status", "does", "age", "tokens", "behind it"),
        (
            (
                _name(row.agent),
                _name(row.turn),
                Text(row.status, STYLES[TurnStatus(row.status)]),
                _name(row.step),
                "" if row.seconds is None else seconds(row.seconds),
                f"{row.tokens:,}",
                _marked(row.behind),
            )
            for row in top.turns
        ),
        left=4,
    )
    yield _table(
        top,
        "streams",
        ("stream", "entries", "size", "of", "entries/s", "pending", "in work"),
        (
            (
                _name(row.stream),
                f"{row.entries:,}",
                size(row.bytes),
                size(row.limit) if row.limit >= 0 else "",
                _rate(row.entries_per_second),
                "" if row.pending is None else _marked(row.pending),
                "" if row.unacknowledged is None else str(row.unacknowledged),
            )
            for row in top.streams
        ),
    )


def _separated(tables: Iterable[Table]) -> Iterable[RenderableType]:
    for number, table in enumerate(tables):
        if number:
            yield Text()
        yield table


def _table(
    top: Top,
    part: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    left: int = 1,
) -> Table:
    """Return the table of a part; its first columns are of texts, the others of numbers."""
    left_out = top.left_out.get(part, 0)
    caption = f"and {left_out:,} more" if left_out else None
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        caption=caption,
        caption_justify="left",
        padding=(0, 2, 0, 0),
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if not table.row_count:
        table.add_row(Text("none", "dim"))
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
