"""The GGUF files that checkpoints became, by the digest of all that went into them; made by a child process.

``<key>.gguf`` is whole, or not there; ``<key>-....part`` is one that is being made, or whose making died.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp

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


class ModelCache:
    """The files of registered models.

    Args:
        folder: where they are.
        convert_seconds: how long a conversion may take.
    """

    def __init__(self, folder: Path, convert_seconds: float) -> None:
        self._folder = folder
        self._convert_seconds = convert_seconds
        self._one = anyio.Lock()  # a conversion takes a core, and the memory of a weight or two

    def file(self, key: str) -> Path:
        """Return where the file of a key is, or would be."""
        return self._folder / f"{key}.gguf"

    async def key(self, checkpoint: Path, base_digest: str, conversion: Conversion) -> str:
        """Return the key of what a checkpoint becomes; reads all of it."""
        parts = [f"{FORMAT} {conversion} {base_digest}"]
        parts += await anyio.to_thread.run_sync(checkpoint_digests, checkpoint)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    async def make(self, key: str, checkpoint: Path, base: Path, conversion: Conversion) -> None:
        """Make the file of a key, if it is not there. Cancelling it kills the conversion, and leaves nothing.

        Raises:
            InvalidRequest: the checkpoint is damaged, or does not fit the base.
            Unsupported: it needs something that cannot be represented.
            EngineError: the conversion died, or took too long.
        """
        async with self._one:
            target = self.file(key)
            if target.is_file():
                with suppress(OSError):
                    os.utime(target)  # Whoever sweeps sees that it is wanted.
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = mkstemp(prefix=f"{key}-", suffix=".part", dir=self._folder)
            os.close(handle)
            part = Path(name)
            try:
                with anyio.fail_after(self._convert_seconds):
                    await _convert(checkpoint, base, part, conversion)
                _rename(part, target)
            except TimeoutError as error:
                raise EngineError(
                    f"the conversion took longer than {self._convert_seconds:g} s"
                ) from error
            finally:
                _remove(part)

    def remove(self, keys: Collection[str]) -> None:
        """Remove files; engines that have them open go on with them."""
        for key in keys:
            _remove(self.file(key))

    def sweep(self, wanted: Collection[str]) -> None:
        """Remove what was left by those who died, and what no registered model refers to, if it is old enough."""
        before = time.time() - ABANDONED_SECONDS
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.suffix in (".part", ".gguf") and path.stem not in wanted:
                with suppress(OSError):
                    if path.stat().st_mtime < before:
                        path.unlink()


def checkpoint_digests(
    checkpoint: Path, kinds: Collection[str] = (".safetensors", ".json")
) -> list[str]:
    """Return a line for each file of some kinds that is not private to the job: by default those that a conversion may read."""
    lines = []
    for path in files_of(checkpoint):
        name = path.relative_to(checkpoint).as_posix()
        read = path.suffix in kinds and name != MANIFEST
        if read and not name.startswith(f"{RESUME}/"):
            lines.append(f"{name} {file_digest(path)}")
    return lines


def _rename(part: Path, target: Path) -> None:
    part.replace(target)


def _remove(path: Path) -> None:
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
