"""Checkpoints on the disk: whole or not there, and known by a manifest. Nothing here needs torch.

    checkpoint-20/
        manifest.json               the other files, with size and digest
        adapter_model.safetensors   what training made: an adapter, or model.safetensors
        adapter_config.json, tokenizer.json, ...
        resume/                     private: how to go on (optimizer, random state, ...); only in the two newest ones

A checkpoint is written under another name, flushed, and renamed: whoever sees the name sees all of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from ...schemas import InvalidRequest, decode, encode

MANIFEST = "manifest.json"
RESUME = "resume"
_RESUMABLE = 2
"""How many checkpoints can be gone on with."""
_NAME = re.compile(r"checkpoint-(\d+)")
PICKLES = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"))
"""What may hold a pickle: code that loading would run."""


class ManifestFile(msgspec.Struct, frozen=True):
    """A file of a checkpoint; ``name`` is its path in the folder, with slashes."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is.

    Attributes:
        job: who made it.
        iters: after which iteration.
        kind: an ``adapter``, or a whole ``model``.
        base: the name of the model that was trained.
        merge: whether an adapter can be served only merged into its base: DoRA, or one on the output layer.
        reward: whether it scores answers: a model with one output in place of the next token's.
        validation_loss: as it was then.
        files: all other files.
    """

    job: str
    iters: int
    kind: Literal["adapter", "model"]
    base: str
    merge: bool = False
    reward: bool = False
    validation_loss: float | None = None
    files: list[ManifestFile]


def checkpoint_folder(checkpoints: Path, iters: int) -> Path:
    """Return where the checkpoint of an iteration is."""
    return checkpoints / f"checkpoint-{iters}"


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints that are whole by name, the oldest first."""
    found = []
    if folder.is_dir():
        for path in folder.iterdir():
            if (match := _NAME.fullmatch(path.name)) and (path / MANIFEST).is_file():
                found.append((int(match[1]), path))
    return sorted(found)


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, but for its manifest, in the order of their names.

    Raises:
        InvalidRequest: something there is not a plain file or folder.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidRequest(f"{path.name} is not a plain file")
        if path.is_file() and path != folder / MANIFEST:
            yield path


def seal(work: Path, target: Path, describe: Manifest) -> Manifest:
    """Make what is in a folder a whole checkpoint: write its manifest, flush all of it, rename it.

    Args:
        work: where it was written; on the file system of the target.
        target: where it shall be.
        describe: the manifest but for the files.

    Raises:
        OSError: the disk is full or broken; the target is as it was.
    """
    files = []
    for path in files_of(work):
        files.append(ManifestFile(path.relative_to(work).as_posix(), *_digest(path, flush=True)))
    manifest = msgspec.structs.replace(describe, files=files)
    written = work / MANIFEST
    written.write_bytes(encode(manifest))
    _digest(written, flush=True)
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work.rename(target)
    _flush_folder(target.parent)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises:
        InvalidRequest: there is none, or it is not one of ours.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{folder.name} has no manifest: it is no whole checkpoint") from error
    try:
        return decode(data, Manifest)
    except InvalidRequest as error:
        raise InvalidRequest(f"the manifest of {folder.name} is wrong: {error.message}") from error


def verify(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint, once all of its files were found to be as it says; reads all of them.

    Raises:
        InvalidRequest: something is missing, changed, or was added.
    """
    manifest = read_manifest(folder)
    known = {file.name: file for file in manifest.files}
    there = {path.relative_to(folder).as_posix(): path for path in files_of(folder)}
    # How to go on is removed from a checkpoint once a newer one is there.
    wanted = {name for name in known if not name.startswith(f"{RESUME}/")}
    if missing := sorted(wanted - there.keys()):
        raise InvalidRequest(f"{folder.name} lacks {', '.join(missing)}")
    if added := sorted(there.keys() - known.keys()):
        raise InvalidRequest(f"{folder.name} has files that are not its own: {', '.join(added)}")
    for name, path in there.items():
        if _digest(path) != (known[name].bytes, known[name].sha256):
            raise InvalidRequest(f"{name} in {folder.name} is not what was written")
    return manifest


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder of weights that we did not write, if loading something in it could run code.

    Raises:
        InvalidRequest: a file in it may be a pickle, or a program; the message names it.
    """
    for path in files_of(folder):
        if path.suffix in PICKLES or path.suffix == ".py":
            raise InvalidRequest(
                f"{path.name} may hold code, which loading it would run: only safetensors are taken"
            )


def prune(checkpoints: Path, keep: int) -> list[int]:
    """Remove all but the newest checkpoints, and the resume state of older ones; return what was removed."""
    found = checkpoints_in(checkpoints)
    # Two can be gone on with, so that a damaged one does not cost the whole run.
    for _, path in found[:-_RESUMABLE]:
        shutil.rmtree(path / RESUME, ignore_errors=True)
    removed = []
    for iters, path in found[:-keep]:
        remove(path)
        removed.append(iters)
    return removed


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, so that at no time half of it is taken for one."""
    dying = checkpoint.with_name(f"removing-{checkpoint.name}")
    # What an earlier attempt began to remove.
    shutil.rmtree(dying, ignore_errors=True)
    checkpoint.rename(dying)
    shutil.rmtree(dying, ignore_errors=True)


def _digest(path: Path, *, flush: bool = False) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        if flush:
            os.fsync(file.fileno())
        return file.tell(), digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
