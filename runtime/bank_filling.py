"""How ``ayllu bank`` fills a bank: documents in batches, what is refused, and a bar for people."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ..client import Stack
from ..schemas import InvalidRequest, MemoryBankDocument, NotFound, TooLarge

BATCH_BYTES = 128 << 10
"""How much content goes into one call: some seconds of work for an embedding model, so that the bar moves."""
BATCH_DOCUMENTS = 64

Documents = AsyncIterator[MemoryBankDocument]


class Filling:
    """Documents on their way into a bank.

    Args:
        stack: the gateway.
        bank: the bank's id.
        replace: whether documents that are there are updated.

    Attributes:
        refused: what could not be stored, a line each.
        inserted: how many documents were new.
        replaced: how many were there.
    """

    def __init__(self, stack: Stack, bank: str, *, replace: bool = False) -> None:
        self._stack = stack
        self._bank = bank
        self._replace = replace
        self.refused: list[str] = []
        self.inserted = 0
        self.replaced = 0

    async def run(self, documents: Documents, total: int | None) -> None:
        """Store all documents, and say on stderr how many; what is too large, or was refused before, does not stop it.

        Raises:
            InvalidRequest: some were refused; each is named on stderr.
            AylluError: what stopped it; documents of batches before it stay.
        """
        try:
            with progress_bar(self._bank, total) as advance:
                async for batch in batches(documents):
                    await self._store(batch)
                    advance(len(batch))
        except BaseException:
            if self.inserted or self.replaced or self.refused:
                self._tell()
            raise
        self._tell()
        if self.refused:
            count = len(self.refused)
            raise InvalidRequest(f"{count} document{'s were' if count > 1 else ' was'} refused")

    def _tell(self) -> None:
        replaced = f", {self.replaced} replaced" if self._replace else ""
        lines = [*self.refused, f"{self._bank}: {self.inserted} inserted{replaced}"]
        sys.stderr.write("\n".join(lines) + "\n")

    async def _store(self, batch: Sequence[MemoryBankDocument]) -> None:
        try:
            if self._replace:
                await self._update(batch)
            else:
                await self._insert(batch)
        except TooLarge as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._store(batch[:middle])
                await self._store(batch[middle:])
                return
            self.refused.append(
                f"{batch[0].uuid}: {error.message}; split it, or raise gateway.max_message_bytes in the "
                "gateway's configuration"
            )

    async def _insert(self, batch: Sequence[MemoryBankDocument]) -> None:
        await self._stack.memory_bank.insert(self._bank, list(batch))
        self.inserted += len(batch)

    async def _update(self, batch: Sequence[MemoryBankDocument]) -> None:
        """Update the documents that are there, and insert the others."""
        try:
            await self._stack.memory_bank.update(self._bank, list(batch))
            self.replaced += len(batch)
        except NotFound as error:
            missing = set(error.details.get("documents", ()))
            if not missing:  # It is the bank that is not there.
                raise
            await self._insert([one for one in batch if one.uuid in missing])
            if known := [one for one in batch if one.uuid not in missing]:
                await self._update(known)


async def batches(documents: Documents) -> AsyncIterator[list[MemoryBankDocument]]:
    """Yield documents in batches that fit into a call; a document that does not fit anywhere comes alone."""
    batch: list[MemoryBankDocument] = []
    size = 0
    async for document in documents:
        if batch and (size + len(document.content) > BATCH_BYTES or len(batch) >= BATCH_DOCUMENTS):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.content)
    if batch:
        yield batch


@contextmanager
def progress_bar(name: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr while it is a terminal, and nothing of it afterwards; yields what is called with each step."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        # What we write to stdout is for a file or another program, and would go to the terminal instead.
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        yield partial(progress.advance, progress.add_task(name, total=total))
