"""``ayllu dataset``: datasets from the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anyio.to_thread

from ..actors.datasets.columns import RowReport, check_rows
from ..actors.datasets.formats import format_of
from ..client import connect
from ..schemas import CreateDatasetRequest, Dataset, InvalidRequest, encode
from .agent_commands import write_json
from .dataset_files import dataset_of

MAX_SHOWN = 20
"""How many bad rows ``check`` shows."""


async def run_dataset(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu dataset`` was asked for.

    Raises:
        AylluError: what went wrong; of ``check``, that rows are bad.
    """
    if options.action == "check":
        await anyio.to_thread.run_sync(_check, options.source, options.columns)
        return
    made: Dataset | None = None
    if options.action == "create":  # What is wrong with a file needs no gateway.
        made = await anyio.to_thread.run_sync(dataset_of, options.source, options.columns)
        _tell_columns(made)
    async with connect(url, token=token) as stack:
        if made is not None:
            await stack.datasets.create(CreateDatasetRequest(options.dataset, made))
            sys.stdout.write(f"{options.dataset}\n")
        elif options.action == "show":
            write_json(await stack.datasets.get(options.dataset))
        elif options.action == "delete":
            await stack.datasets.delete(options.dataset)
        else:
            async for info in stack.datasets.list():
                if options.json:
                    sys.stdout.write(encode(info).decode() + "\n")
                else:
                    columns = " ".join(
                        f"{name}={type_}" for name, type_ in info.dataset.columns.items()
                    )
                    sys.stdout.write(
                        f"{info.uuid}\t{info.rows} rows\t{info.bytes} bytes\t{columns}\n"
                    )


def _tell_columns(dataset: Dataset) -> None:
    columns = ", ".join(f"{name} ({type_})" for name, type_ in dataset.columns.items())
    sys.stderr.write(f"columns: {columns}\n")


def _check(source: str, columns: list[str]) -> None:
    if "://" in source:
        raise InvalidRequest("a file is checked here; what lies at a URL is checked by `create`")
    path = Path(source).expanduser().resolve()
    dataset = dataset_of(source, columns)
    _tell_columns(dataset)
    report = check_rows(path, format_of(path.as_uri()), dataset.columns, most=MAX_SHOWN)
    _tell(report)


def _tell(report: RowReport) -> None:
    for bad in report.bad:
        sys.stdout.write(f"row {bad.number}: {bad.message}\n")
    if report.wrong:
        raise InvalidRequest(f"{report.wrong} of {report.rows} rows are not as declared")
    sys.stdout.write(f"{report.rows} rows, all as declared\n")
