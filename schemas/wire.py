"""How values travel: the base classes of all wire types, and the one way to read and write them."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from .errors import InvalidRequest

T = TypeVar("T")


class Wire(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A value that clients send: unknown fields are refused, since a misspelt option must not be ignored."""


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """A value that only servers send: readers skip fields that they do not know, so that servers may add some."""


_ENCODER = msgspec.json.Encoder()
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}


def encode(value: object) -> bytes:
    """Return the JSON text of a wire value."""
    return _ENCODER.encode(value)


def decoder(type_: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type, built once."""
    found = _DECODERS.get(type_)
    if found is None:
        found = _DECODERS[type_] = msgspec.json.Decoder(type_)
    return found


def decode(data: bytes | str, type_: type[T]) -> T:
    """Read JSON text as a type.

    Raises:
        InvalidRequest: the text is not JSON, nests too deep, or does not fit the type; the message names the path of
            the field that is wrong.
    """
    try:
        value: T = decoder(type_).decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise InvalidRequest(f"malformed JSON: {reason}") from error
    except RecursionError as error:
        raise InvalidRequest("malformed JSON: nested too deep") from error
    return value


def convert(value: object, type_: type[T], *, strict: bool = True) -> T:
    """Read plain Python values (a query string, a TOML file) as a type; ``strict=False`` reads numbers from text.

    Raises:
        InvalidRequest: the value does not fit; the message names the path.
    """
    try:
        return msgspec.convert(value, type_, strict=strict)
    except msgspec.ValidationError as error:
        raise InvalidRequest(str(error)) from error
