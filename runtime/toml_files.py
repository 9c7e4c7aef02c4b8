"""Files in TOML, as commands take them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..schemas import InvalidRequest


def read_toml(path: Path | str) -> dict[str, Any]:
    """Return what a file says.

    Raises:
        InvalidRequest: it cannot be read, or is not TOML; the message begins with its path as it was given.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidRequest(f"{path} is not TOML: {error}") from error
