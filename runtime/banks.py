"""``ayllu bank``: memory banks from the command line: fill them from files, search, look at them, export and import."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import msgspec

from ..client import Stack, connect
from ..schemas import Conflict, InvalidRequest, MemoryBankDocument, MemoryBankQuery, decode, encode
from ..schemas.filters import Filter
from .bank_files import document_of, find_files
from .bank_filling import BATCH_BYTES, Documents, Filling, progress_bar

PAGE = 100
SHOWN = 200
"""How many characters of a chunk people see."""
TIMEOUT = 600.0
Action = Callable[[Stack, argparse.Namespace], Coroutine[Any, Any, None]]


async def run(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu bank`` was asked for.

    Raises:
        AylluError: what went wrong; documents that were confirmed before it stay.
    """
    async with connect(url, token=token, timeout=TIMEOUT) as stack:
        await _ACTIONS[options.action](stack, options)


async def _list(stack: Stack, options: argparse.Namespace) -> None:  # noqa: ARG001
    async for bank in stack.memory_banks.get():
        sys.stdout.write(f"{bank.uuid}\t{bank.name}\n")


async def _create(stack: Stack, options: argparse.Namespace) -> None:
    files = _files(options)
    await _create_empty(stack, options)
    if options.paths:
        await _fill(Filling(stack, options.bank), files)


async def _create_empty(stack: Stack, options: argparse.Namespace) -> None:
    await stack.memory_banks.create(
        options.bank,
        options.name or options.bank,
        [],
        options.embedding_model,
        options.chunk_size,
        options.chunk_overlap,
    )


async def _insert(stack: Stack, options: argparse.Namespace) -> None:
    files = _files(options)
    try:
        await _fill(Filling(stack, options.bank, replace=options.replace), files)
    except Conflict as error:
        if options.replace:
            raise
        raise Conflict(f"{error.message}; with --replace they are updated") from error


def _files(options: argparse.Namespace) -> Mapping[str, Path]:
    found = find_files(options.paths)
    if left_out := found.left_out():
        sys.stderr.write(f"{left_out}\n")
    return found.files


async def _fill(filling: Filling, files: Mapping[str, Path]) -> None:
    async def documents() -> Documents:
        for uuid, path in files.items():
            try:
                document = await anyio.to_thread.run_sync(document_of, uuid, path)
            except InvalidRequest as error:
                filling.refused.append(error.message)
            else:
                yield document

    await filling.run(documents(), len(files))


async def _query(stack: Stack, options: argparse.Namespace) -> None:
    query = _read_query(options)
    async for result in stack.memory_bank.query(options.bank, [query]):
        if options.json:
            sys.stdout.write(encode(result).decode() + "\n")
            continue
        for match in result.matches:
            text = " ".join(match.chunk.split())
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            sys.stdout.write(f"{match.score:.3f}  {match.document_uuid}\n       {shown}\n")
        if not result.matches:
            sys.stderr.write("nothing was found\n")


def _read_query(options: argparse.Namespace) -> MemoryBankQuery:
    fields = {
        "text": options.text,
        "mode": options.mode,
        "filter": _read_filter(options.filter),
        "min_score": options.min_score,
        "k": options.k,
        "include_documents": options.json,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return decode(encode(given), MemoryBankQuery)


def _read_filter(text: str | None) -> Filter | None:
    """Read a filter by itself, so that an error tells a place in it."""
    if text is None:
        return None
    try:
        return decode(b'{"filter":%b}' % bytes(decode(text, msgspec.Raw)), MemoryBankQuery).filter
    except InvalidRequest as error:
        raise InvalidRequest(f"--filter: {error.message}; see docs/memory.md") from error


async def _stats(stack: Stack, options: argparse.Namespace) -> None:
    found = msgspec.to_builtins(await stack.memory_bank.stats(options.bank))
    width = max(map(len, found))
    for name, value in found.items():
        sys.stdout.write(f"{name:<{width}}  {value}\n")


async def _export(stack: Stack, options: argparse.Namespace) -> None:
    total = (await stack.memory_bank.stats(options.bank)).documents
    # On one terminal with the documents, the bar would only be in the way.
    bar = nullcontext(lambda _: None) if sys.stdout.isatty() else progress_bar(options.bank, total)
    with bar as advance:
        async for document in all_documents(stack, options.bank):
            sys.stdout.write(encode(document).decode() + "\n")
            advance(1)


async def all_documents(stack: Stack, bank: str) -> Documents:
    """Yield all documents of a bank, page by page in the order of their ids."""
    after = ""
    while True:
        page = [one async for one in stack.memory_bank.documents(bank, after, PAGE)]
        for document in page:
            yield document
        if len(page) < PAGE:
            return
        after = page[-1].uuid


async def _import(stack: Stack, options: argparse.Namespace) -> None:
    total = None
    if options.file != "-":
        # What is wrong with a file is said before anything is made of it; stdin can be read only once.
        total = 0
        async for _ in _read_documents(options.file):
            total += 1
    await _create_empty(stack, options)
    await Filling(stack, options.bank).run(_read_documents(options.file), total)


async def _read_documents(file: str) -> Documents:
    number = 0
    async for line in _read_lines(file):
        number += 1
        if line.strip():
            try:
                document = decode(line, MemoryBankDocument)
            except InvalidRequest as error:
                raise InvalidRequest(f"line {number}: {error.message}") from error
            yield document


async def _read_lines(file: str) -> AsyncIterator[bytes]:
    try:
        with _open(file) as source:
            # As many at a time as a call takes: no more of a large file is in memory.
            while lines := await anyio.to_thread.run_sync(
                source.readlines, BATCH_BYTES, abandon_on_cancel=True
            ):
                for line in lines:
                    yield line
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from error


def _open(file: str) -> AbstractContextManager[BinaryIO]:
    # To close stdin would wait for the thread that reads it.
    return nullcontext(sys.stdin.buffer) if file == "-" else Path(file).open("rb")


async def _drop(stack: Stack, options: argparse.Namespace) -> None:
    await stack.memory_banks.drop(options.bank)


_ACTIONS: dict[str, Action] = {
    "list": _list,
    "create": _create,
    "insert": _insert,
    "query": _query,
    "stats": _stats,
    "export": _export,
    "import": _import,
    "drop": _drop,
}
