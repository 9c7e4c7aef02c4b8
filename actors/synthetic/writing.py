"""What a job accepted, as a dataset: a file of JSON lines, registered under its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import (
    CreateDatasetRequest,
    Dataset,
    DatasetColumnType,
    Datasets,
    Dialog,
    Message,
    SyntheticDataJobRequest,
    encode,
)
from ..files import name_of, write_whole
from ..patience import persistently
from .candidates import Place, Work
from .selection import Failure, Selection

COLUMNS = {
    "sft": {"dialog": DatasetColumnType.dialog},
    "preference": dict.fromkeys(("prompt", "chosen", "rejected"), DatasetColumnType.dialog),
}


async def write_dataset(
    bus: Bus,
    folder: Path,
    asked: SyntheticDataJobRequest,
    work: Mapping[Place, Work],
    selection: Selection,
) -> int:
    """Write and register what a job was asked to make of its data; again, it is the same dataset.

    Args:
        bus: where datasets are registered.
        folder: where the file is written.
        asked: the job's request.
        work: its candidates.
        selection: what is accepted of them.

    Returns:
        how many examples it has; without any, there is no dataset.

    Raises:
        Conflict: there is another dataset of this id.
        OSError: the file cannot be written.
    """
    assert asked.dataset is not None
    make = sft_rows if asked.dataset.form == "sft" else preference_rows
    lines = [encode(row) for row in make(asked, work, selection)]
    if not lines:
        return 0
    path = folder / f"{name_of(asked.job_uuid)}.jsonl"
    await anyio.to_thread.run_sync(write_whole, path, b"\n".join(lines) + b"\n")
    dataset = Dataset(COLUMNS[asked.dataset.form], path.resolve().as_uri())
    request = CreateDatasetRequest(asked.dataset.uuid, dataset)
    await persistently(lambda: client(Datasets, bus).create(request))
    return len(lines)


def sft_rows(
    asked: SyntheticDataJobRequest, _: Mapping[Place, Work], selection: Selection
) -> Iterator[dict[str, Any]]:
    """Yield a dialog for each accepted answer: what stood before it, without what only helped to find it."""
    for prompt in selection.accepted:
        for one in prompt.k_scored_generations:
            before = [*asked.request.context, prompt.prompt]
            yield {"dialog": Dialog(one.message, before)}


def preference_rows(
    asked: SyntheticDataJobRequest, work: Mapping[Place, Work], selection: Selection
) -> Iterator[dict[str, Any]]:
    """Yield the best accepted and the worst scored answer to each prompt, where their scores differ."""
    worst = _worst(work)
    for prompt in selection.accepted:
        if not prompt.k_scored_generations or prompt.index not in worst:
            continue
        best, (score, message) = prompt.k_scored_generations[0], worst[prompt.index]
        if best.score > score:
            yield {
                "prompt": [*asked.request.context, prompt.prompt],
                "chosen": [best.message],
                "rejected": [message],
            }


def _worst(work: Mapping[Place, Work]) -> dict[int, tuple[float, Message]]:
    """Return the worst scored answer to each prompt, by its place in the request."""
    worst: dict[int, tuple[float, Message]] = {}
    for place, group in sorted(work.items()):
        finished = group.finished()
        for one in finished.candidates if finished is not None else ():
            if one.message is None or isinstance(one.score, Failure):
                continue
            if place.prompt not in worst or one.score < worst[place.prompt][0]:
                worst[place.prompt] = (one.score, one.message)
    return worst
