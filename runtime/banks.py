"""``ayllu bank``: memory banks from the command line: fill them from files, search, look at them, export and import."""

from __future__ import annotations

import argparse
import mimetypes
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ..actors.memory.texts import is_supported
from ..client import Stack, connect
from ..schemas import InvalidRequest, MemoryBankDocument, MemoryBankQuery, NotFound, decode, encode
from ..schemas.memory import MAX_DOCUMENTS

BATCH_BYTES = 512 << 10
"""How much content goes into one call: less than a gateway takes in one message (1 MiB, base64 included)."""
BATCH_DOCUMENTS = 64
PAGE = 100
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
    files = files_of(options.paths)
    await stack.memory_banks.create(
        options.bank,
        options.name or options.bank,
        [],
        options.embedding_model,
        options.chunk_size,
        options.chunk_overlap,
    )
    await _insert_all(stack, options.bank, (_document(*file) for file in files), len(files))


async def _insert(stack: Stack, options: argparse.Namespace) -> None:
    files = files_of(options.paths)
    documents = (_document(*file) for file in files)
    await _insert_all(stack, options.bank, documents, len(files), replace=options.replace)


async def _insert_all(
    stack: Stack,
    bank: str,
    documents: Iterable[MemoryBankDocument],
    total: int | None,
    *,
    replace: bool = False,
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(bank, total=total)
        for batch in batches(documents):
            new, known = batch, list[MemoryBankDocument]()
            if replace:
                there = await _known(stack, bank, batch)
                known = [one for one in batch if one.uuid in there]
                new = [one for one in batch if one.uuid not in there]
            if new:
                await stack.memory_bank.insert(bank, new)
            if known:
                await stack.memory_bank.update(bank, known)
            progress.advance(task, len(batch))


async def _known(stack: Stack, bank: str, batch: list[MemoryBankDocument]) -> set[str]:
    found = set()
    for document in batch:
        try:
            async for one in stack.memory_bank.get(bank, [document.uuid]):
                found.add(one.uuid)
        except NotFound:
            continue
    return found


async def _query(stack: Stack, options: argparse.Namespace) -> None:
    fields = {
        "text": options.text,
        "mode": options.mode,
        "filter": msgspec.Raw(options.filter.encode()) if options.filter else None,
        "min_score": options.min_score,
        "k": options.k,
        "include_documents": options.json,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    query = decode(encode(given), MemoryBankQuery)
    async for result in stack.memory_bank.query(options.bank, [query]):
        if options.json:
            sys.stdout.write(encode(result).decode() + "\n")
            continue
        for match in result.matches:
            text = " ".join(match.chunk.split())
            sys.stdout.write(f"{match.score:.3f}  {match.document_uuid}\n       {text[:200]}\n")
        if not result.matches:
            sys.stderr.write("nothing was found\n")


async def _stats(stack: Stack, options: argparse.Namespace) -> None:
    found = msgspec.to_builtins(await stack.memory_bank.stats(options.bank))
    width = max(map(len, found))
    for name, value in found.items():
        sys.stdout.write(f"{name:<{width}}  {value}\n")


async def _export(stack: Stack, options: argparse.Namespace) -> None:
    total = (await stack.memory_bank.stats(options.bank)).documents
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(options.bank, total=total)
        async for document in all_documents(stack, options.bank):
            sys.stdout.write(encode(document).decode() + "\n")
            progress.advance(task)


async def all_documents(stack: Stack, bank: str) -> AsyncIterator[MemoryBankDocument]:
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
    source = anyio.wrap_file(sys.stdin.buffer)
    if options.file != "-":
        try:
            source = await anyio.open_file(options.file, "rb")
        except OSError as error:
            raise InvalidRequest(f"{options.file} cannot be read: {error.strerror}") from error
    async with source:
        lines = await source.readlines()
    documents = [_read_line(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    await stack.memory_banks.create(options.bank, options.name or options.bank, [])
    await _insert_all(stack, options.bank, documents, len(documents))


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


def _read_line(number: int, line: bytes) -> MemoryBankDocument:
    try:
        return decode(line, MemoryBankDocument)
    except InvalidRequest as error:
        raise InvalidRequest(f"line {number}: {error.message}") from error


def files_of(paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """Return the files below some paths by the ids of their documents: paths relative to the folder that was given.

    Hidden files, and files of a kind that no bank takes, are left out of folders; those are told on stderr.

    Raises:
        InvalidRequest: there is no such path, a named file is of such a kind, or two files have one id.
    """
    found: dict[str, Path] = {}
    skipped = 0
    for path in paths:
        if path.is_file():
            if not is_supported(mime_type_of(path)):
                raise InvalidRequest(f"{path} is {mime_type_of(path)}, which no bank takes")
            candidates = {path.name: path}
        elif path.is_dir():
            all_files = {str(one.relative_to(path)): one for one in _visible_files(path)}
            candidates = {
                uuid: one for uuid, one in all_files.items() if is_supported(mime_type_of(one))
            }
            skipped += len(all_files) - len(candidates)
        else:
            raise InvalidRequest(f"there is no file or folder {path}")
        for uuid, one in candidates.items():
            if uuid in found:
                raise InvalidRequest(f"{found[uuid]} and {one} would both be called {uuid!r}")
            found[uuid] = one
    if skipped:
        sys.stderr.write(f"{skipped} files are of kinds that no bank takes, and left out\n")
    return sorted(found.items())


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.stat().st_size:
            yield path


def mime_type_of(path: Path) -> str:
    """Return the MIME type that a file's name says."""
    if path.suffix in (".md", ".markdown"):
        return "text/markdown"
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _document(uuid: str, path: Path) -> MemoryBankDocument:
    return MemoryBankDocument(uuid, path.read_bytes(), {"path": uuid}, mime_type_of(path))


def batches(documents: Iterable[MemoryBankDocument]) -> Iterator[list[MemoryBankDocument]]:
    """Yield documents in batches that fit into a call; a document that does not fit anywhere comes alone."""
    batch: list[MemoryBankDocument] = []
    size = 0
    for document in documents:
        if batch and (
            size + len(document.content) > BATCH_BYTES
            or len(batch) >= min(BATCH_DOCUMENTS, MAX_DOCUMENTS)
        ):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.content)
    if batch:
        yield batch
