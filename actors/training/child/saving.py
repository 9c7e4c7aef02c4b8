"""What a trainer leaves on the disk, made into whole checkpoints, and taken up again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ....schemas import Checkpoint, InvalidRequest
from ..checkpoints import (
    RESUME,
    Manifest,
    checkpoint_folder,
    checkpoints_in,
    prune,
    remove,
    seal,
    verify,
)
from ..protocol import CHECKPOINTS, WORK, Saved
from .session import Session, StorageFailed

_PRIVATE = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "pytorch_model_fsdp")
_JUNK = ("training_args.bin", "README.md")
_ADAPTER_CONFIG = "adapter_config.json"
_GOING_ON = "going-on"
_DISK = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENODEV, errno.ESTALE)
)


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Say clearly that it was the disk, when what is written in the block cannot be.

    Raises:
        StorageFailed: in place of the many errors that libraries have for it.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageFailed(f"{what} could not be written: {error}") from error
    except RuntimeError as error:
        # torch's writer of archives has no error of its own.
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise StorageFailed(f"{what} could not be written: {error}") from error


def disk_failed(error: OSError) -> bool:
    """Tell whether an error is that of a disk that is full or broken."""
    return error.errno in _DISK


class Store:
    """The folders of a job's checkpoints.

    Args:
        folder: the job's folder.
        session: where it is told what was saved.
        describe: what checkpoints of this run are, but for the iteration and its figures.
        keep: how many checkpoints are kept.
    """

    def __init__(self, folder: Path, session: Session, describe: Manifest, keep: int) -> None:
        self._folder = folder
        self._session = session
        self._describe = describe
        self._keep = keep

    def make_whole(self, written: Path, iters: int, validation_loss: float | None) -> None:
        """Make what a trainer wrote a checkpoint, and tell of it.

        Raises:
            StorageFailed: the disk is full or broken; earlier checkpoints are as they were.
        """
        with storage_errors(f"the checkpoint of iteration {iters}"):
            _sort(written, self._describe.base)
            manifest = msgspec.structs.replace(
                self._describe, iters=iters, validation_loss=validation_loss
            )
            self._session.wait_until_kept(iters)
            with self._session.making_whole():
                target = checkpoint_folder(self._folder / CHECKPOINTS, iters)
                seal(written, target, manifest)
                pruned = prune(self._folder / CHECKPOINTS, self._keep)
                told = Checkpoint(
                    iters=iters,
                    path=target.as_uri(),
                    kind=manifest.kind,
                    validation_loss=validation_loss,
                )
                self._session.tell(Saved(told, pruned))


def empty_work(folder: Path) -> None:
    """Throw away what an earlier attempt did not make whole."""
    work = folder / WORK
    if work.exists():
        shutil.rmtree(work)
    work.mkdir()


def find_newest(folder: Path, session: Session) -> None:
    """Prepare going on from the newest whole checkpoint, if there is one.

    A damaged one, and what lies behind the one that is gone on with, is removed: it will be made again.
    """
    for iters, path in reversed(checkpoints_in(folder / CHECKPOINTS)):
        try:
            verify(path)
        except InvalidRequest as error:
            session.log(f"checkpoint {iters} is damaged and removed: {error.message}")
        else:
            if (path / RESUME).is_dir():
                _lay_out(path, going_on(folder))
                break
            session.log(f"checkpoint {iters} cannot be gone on with, and is made again")
        remove(path)


def going_on(folder: Path) -> Path:
    """Return where a checkpoint lies as the trainer wants it, once `find_newest` found one."""
    return folder / WORK / _GOING_ON


def _sort(written: Path, base: str) -> None:
    """Part what is a result from what is only needed to go on, and drop the rest."""
    resume = written / RESUME
    resume.mkdir()
    for path in list(written.iterdir()):
        if path.name in _JUNK:
            path.unlink()
        elif path.name.startswith(_PRIVATE):
            path.rename(resume / path.name)
    config = written / _ADAPTER_CONFIG
    if config.exists():
        # Where the weights lie is nobody's business; the model has a name.
        values = msgspec.json.decode(config.read_bytes())
        values["base_model_name_or_path"] = base
        values["target_modules"] = sorted(values["target_modules"])
        config.write_bytes(msgspec.json.format(msgspec.json.encode(values), indent=2))


def _lay_out(checkpoint: Path, target: Path) -> None:
    """Put results and private state side by side, without a copy of what is large."""
    target.mkdir()
    for source in (checkpoint, checkpoint / RESUME):
        for path in source.iterdir():
            if path.is_dir():
                if path.name != RESUME:
                    shutil.copytree(path, target / path.name, copy_function=os.link)
            else:
                os.link(path, target / path.name)
