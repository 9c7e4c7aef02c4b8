"""Files that a command makes a request of: TOML, or the same as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from ..schemas import InvalidRequest, decode, encode
from .call import read_payload
from .toml_files import read_toml

T = TypeVar("T")


def read_request(file: str, type_: type[T], **replaced: str | None) -> T:
    """Read a request.

    Args:
        file: its path; ``-`` is JSON from stdin.
        type_: what it is.
        replaced: fields that replace those of the file, where they are given.

    Raises:
        InvalidRequest: the file cannot be read, or something in it is wrong; the message names the place.
        TooLarge: there is too much of it.
    """
    if Path(file).suffix == ".toml":
        fields: Any = read_toml(file)
    else:
        fields = decode(read_payload(file if file == "-" else f"@{file}"), Any)
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{file}: it must be an object")
    fields |= {name: value for name, value in replaced.items() if value is not None}
    try:
        return decode(encode(fields), type_)
    except InvalidRequest as error:
        raise InvalidRequest(f"{file}: {error.message}") from error
