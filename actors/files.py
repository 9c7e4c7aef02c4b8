"""Where the files of models are: paths, or files of installed packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ..schemas import InvalidRequest

PACKAGE_PREFIX = "package:"


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
