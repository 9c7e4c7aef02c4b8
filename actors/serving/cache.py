"""What checkpoints became: GGUF files and folders, by the digest of all that went into them; made by a child process.

``<key>.gguf``, or the folder ``<key>``, is whole, or not there; in ``<key>-....part`` one is being made, or its making died.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import anyio
import anyio.to_thread
from anyio.abc import Process

from ...bus.lifeline import launch_command
from ...bus.processes import foreign_environment
from ...schemas import AylluError, EngineError, decode
from ...schemas.errors import error_from
from ..training.checkpoints import MANIFEST, RESUME, files_of
from .bases import file_digest
from .convert import Conversion, Converted

FORMAT = 1
"""Part of every key: raise it when the same checkpoint becomes another file."""
ABANDONED_SECONDS = 3600.0
"""How old a file is that nobody is making any more, and nobody refers to."""
KILL_SECONDS = 5.0
CONVERTED = (".safetensors", ".json")
"""The files of a checkpoint that most conversions read."""
_PART = ".part"
_SUFFIXES = (".gguf", "")


class ModelCache:
    """What was made of the checkpoints of registered models: for each key a file or a folder, told by the suffix.

    Args:
        folder: where it is.
        convert_seconds: how long a conversion may take.
    """

    def __init__(self, folder: Path, convert_seconds: float) -> None:
        self._folder = folder
        self._convert_seconds = convert_seconds
        self._one = anyio.Lock()  # a conversion takes a core, and the memory of a weight or two

    def place(self, key: str, suffix: str) -> Path:
        """Return where that of a key is, or would be."""
        return self._folder / f"{key}{suffix}"

    async def key(
        self, checkpoint: Path, base_digest: str, conversion: Conversion, reads: Collection[str]
    ) -> str:
        """Return the key of what a checkpoint becomes if files of some kinds are read; reads all of them."""
        parts = [f"{FORMAT} {conversion} {base_digest}"]
        parts += await anyio.to_thread.run_sync(checkpoint_digests, checkpoint, reads)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    async def make(
        self, target: Path, checkpoint: Path, base: Path, conversion: Conversion
    ) -> None:
        """Make what shall be in a place, if it is not there. Cancelling it kills the conversion, and leaves nothing.

        Raises:
            InvalidRequest: the checkpoint is damaged, or does not fit the base.
            Unsupported: it needs something that cannot be represented.
            EngineError: the conversion died, or took too long.
        """
        async with self._one:
            if _is_there(target):
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            part = Path(mkdtemp(prefix=f"{target.stem}-", suffix=_PART, dir=self._folder))
            made = part / target.name
            try:
                with anyio.fail_after(self._convert_seconds):
                    await _convert(checkpoint, base, made, conversion)
                _rename(made, target)
            except TimeoutError as error:
                raise EngineError(
                    f"the conversion took longer than {self._convert_seconds:g} s"
                ) from error
            finally:
                _remove(part)

    def remove(self, keys: Collection[str]) -> None:
        """Remove what was made; engines that have it open go on with it."""
        for key in keys:
            for suffix in _SUFFIXES:
                _remove(self.place(key, suffix))

    def sweep(self, wanted: Collection[str]) -> None:
        """Remove what was left by those who died, and what no registered model refers to, if it is old enough."""
        before = time.time() - ABANDONED_SECONDS
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.suffix in (_PART, *_SUFFIXES) and path.stem not in wanted:
                with suppress(OSError):
                    if max(one.stat().st_mtime for one in (path, *path.rglob("*"))) < before:
                        _remove(path)


def checkpoint_digests(checkpoint: Path, kinds: Collection[str] = CONVERTED) -> list[str]:
    """Return a line for each file of some kinds that is not private to the job."""
    lines = []
    for path in files_of(checkpoint):
        name = path.relative_to(checkpoint).as_posix()
        read = path.suffix in kinds and name != MANIFEST
        if read and not name.startswith(f"{RESUME}/"):
            lines.append(f"{name} {file_digest(path)}")
    return lines


def _is_there(target: Path) -> bool:
    if not target.exists():
        return False
    with suppress(OSError):
        os.utime(target)  # Whoever sweeps sees that it is wanted.
    return True


def _rename(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # Another worker of this machine made the same folder meanwhile.
            raise


def _remove(path: Path) -> None:
    """Remove a file or a folder, so that at no time half of it is taken for a whole one."""
    if path.is_dir():
        gone = path.with_suffix(_PART)
        with suppress(OSError):  # Somebody else removes it.
            if gone != path:
                shutil.rmtree(gone, ignore_errors=True)
                path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


async def _convert(checkpoint: Path, base: Path, target: Path, conversion: Conversion) -> None:
    program = [sys.executable, "-P", "-m", "ayllu.actors.serving.convert"]
    command = launch_command([*program, str(checkpoint), str(base), str(target), conversion])
    environment = foreign_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = await anyio.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        said = b""
        async for data in process.stdout:
            said += data
        await process.wait()
    finally:
        await _end(process)
    try:
        converted = decode(said, Converted)
    except AylluError as error:
        raise EngineError(f"the conversion died with the status {process.returncode}") from error
    if converted.error is not None:
        raise error_from(converted.error)
    if converted.merged != (conversion != "adapter"):
        raise EngineError("the conversion made something else than was asked for")


async def _end(process: Process) -> None:
    with anyio.CancelScope(shield=True):
        with suppress(ProcessLookupError):
            process.kill()
        with anyio.move_on_after(KILL_SECONDS):
            await process.wait()
        await process.aclose()
