"""Where checkpoints come from: a job, or a folder that may be read; looked at before anything is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import anyio.to_thread
import msgspec

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import (
    Conflict,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    PostTrainingJobs,
    RegisterModelRequest,
)
from ..training.checkpoints import MANIFEST, refuse_pickles, verify
from .adapter import CONFIG


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that was looked at.

    Attributes:
        folder: where it is.
        base: the name of the model that was trained; empty where nothing tells it and nothing needs it.
        kind: what it is.
        merge: whether its manifest says that it is an adapter which can be served only merged into its base.
        job: whose it is.
        iters: which one of it.
    """

    folder: Path
    base: str
    kind: Literal["adapter", "model", "reward"]
    merge: bool = False
    job: str | None = None
    iters: int | None = None


class Sources:
    """Finds checkpoints.

    Args:
        bus: where jobs are asked for theirs.
        roots: the folders below which they may lie.
    """

    def __init__(self, bus: Bus, roots: Sequence[Path]) -> None:
        self._bus = bus
        self._roots = [root.expanduser().resolve() for root in roots]

    async def find(self, request: RegisterModelRequest) -> Source:
        """Return what a request asks to serve, once all of it was found to be whole.

        Raises:
            InvalidRequest: the request says too much or too little; something may hold code, or is damaged.
            PermissionDenied: the folder is not where checkpoints may lie.
            NotFound: there is no such job, checkpoint or folder.
            Conflict: the job has no checkpoint yet.
        """
        if (request.job_uuid is None) == (request.url is None):
            raise InvalidRequest("give either job_uuid or url")
        if request.job_uuid is None and request.iters is not None:
            raise InvalidRequest("iters chooses among the checkpoints of a job")
        url = request.url or await self._of_job(request)
        folder = self.folder(url)
        source = await anyio.to_thread.run_sync(look_at, folder, request.base)
        if request.job_uuid is not None:
            return replace(source, job=request.job_uuid)
        return source

    async def _of_job(self, request: RegisterModelRequest) -> str:
        assert request.job_uuid is not None
        artifacts = await client(PostTrainingJobs, self._bus).artifacts(request.job_uuid)
        known = {checkpoint.iters: checkpoint.path for checkpoint in artifacts.checkpoints}
        if not known:
            raise Conflict(f"the job {request.job_uuid!r} has no checkpoint yet")
        iters = max(known) if request.iters is None else request.iters
        if iters not in known:
            raise NotFound(
                f"the job {request.job_uuid!r} has no checkpoint of iteration {iters}; "
                f"it has {', '.join(map(str, sorted(known)))}"
            )
        return known[iters]

    def folder(self, url: str) -> Path:
        """Return the folder that an address stands for.

        Raises:
            InvalidRequest: it is no address of a file.
            PermissionDenied: it is outside of the roots, as far as links lead.
            NotFound: there is none.
        """
        parts = urlsplit(url)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise InvalidRequest("url: give the file:// address of a checkpoint's folder")
        path = Path(unquote(parts.path))
        if not path.is_absolute() or "\0" in str(path):
            raise InvalidRequest("url: give an absolute path")
        path = path.resolve()
        if not any(path.is_relative_to(root) for root in self._roots):
            raise PermissionDenied(
                "checkpoints are only taken from jobs, and from below the folders in serving.roots"
            )
        if not path.is_dir():
            raise NotFound(f"there is no folder {path.name} on this machine")
        return path


def look_at(folder: Path, base: str | None) -> Source:
    """Check a checkpoint, and return what it is; reads all of it.

    Raises:
        InvalidRequest: something in it may hold code, is damaged, or nothing tells its base.
    """
    kind: Literal["adapter", "model"]
    if (folder / MANIFEST).is_file():
        manifest = verify(folder)
        merge, reward = manifest.merge, manifest.reward
        kind, base, iters = manifest.kind, base or manifest.base, manifest.iters
    else:
        refuse_pickles(folder)
        merge, iters = False, None
        kind = "adapter" if (folder / CONFIG).is_file() else "model"
        reward = _scores(folder)
    if base is None and (kind == "adapter" or not reward):
        raise InvalidRequest("base: which served model was trained? The folder does not tell")
    if reward:
        return Source(folder, base or "", "reward", iters=iters)
    assert base is not None
    return Source(folder, base, kind, merge, iters=iters)


def _scores(folder: Path) -> bool:
    """Tell whether a folder that others wrote has a reward model, by what its libraries say of it."""
    for name in (CONFIG, "config.json"):
        try:
            told: Any = msgspec.json.decode((folder / name).read_bytes())
        except (OSError, msgspec.DecodeError):
            continue
        if isinstance(told, dict):
            named = told.get("architectures")
            kinds = [told.get("task_type"), *(named if isinstance(named, list) else ())]
            if any(kind == "SEQ_CLS" or "SequenceClassification" in str(kind) for kind in kinds):
                return True
    return False
