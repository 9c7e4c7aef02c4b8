"""Files: those of models, which are paths or files of installed packages; those that are named by an id; whole ones."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from ..bus.subjects import encode_token
from ..schemas import InvalidRequest

PACKAGE_PREFIX = "package:"
LONGEST_NAME = 200


def name_of(id: str) -> str:
    """Return the name of a file or folder for an id: readable, and that of no other id."""
    name = encode_token(id)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(id.encode()).hexdigest()[:32]}"
    return name


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and durably; its folder is made.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:50]}-", delete=False) as draft:
        try:
            draft.write(data)
            draft.flush()
            os.fsync(draft.fileno())
            Path(draft.name).replace(path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def locate(source: str) -> Path:
    """Return the file that a source stands for: a path, or ``package:<package>/<file>``.

    Raises:
        InvalidRequest: there is none.
    """
    if not source.startswith(PACKAGE_PREFIX):
        path = Path(source).expanduser()
        if not path.is_file():
            raise InvalidRequest(f"there is no file {path}")
        return path
    package, _, name = source.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package.isidentifier() or not name:
        raise InvalidRequest("the source is not written as package:<package>/<file>")
    # The package is only looked up: its own code need not be importable, and is not run.
    found = importlib.util.find_spec(package)
    if found is None:
        raise InvalidRequest(f"the package {package} is not installed")
    for folder in found.submodule_search_locations or ():
        path = Path(folder) / name
        if path.is_file():
            return path
    raise InvalidRequest(f"the package {package} has no file {name}")
