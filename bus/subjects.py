"""Subjects: the names under which messages travel.

Names that clients choose (agents, banks, models) may hold any character; `encode_token` makes each one subject token,
reversibly and readably: letters, digits and ``-`` stay as they are, every other byte of the UTF-8 text becomes ``=XX``.
The result also fits keys of a NATS key-value bucket.
"""

from __future__ import annotations

import re

from ..schemas import InvalidRequest, Operation

ROOT = "ayllu.v1"
EMPTY_TOKEN = "="
MAX_TOKEN = 512

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
_TOKEN = re.compile(r"(?:[A-Za-z0-9-]|=[0-9A-F]{2})+")


def encode_token(text: str) -> str:
    """Return a name as one subject token.

    Raises:
        InvalidRequest: the name is not valid Unicode, or too long to be part of a subject.
    """
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest("a name is not valid Unicode") from error
    token = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in data)
    if len(token) > MAX_TOKEN:
        raise InvalidRequest(f"the name {text[:40]!r}... is too long")
    return token or EMPTY_TOKEN


def decode_token(token: str) -> str:
    """Return the name that a subject token stands for.

    Raises:
        ValueError: no name is encoded like this.
    """
    if token == EMPTY_TOKEN:
        return ""
    if len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
        raise ValueError(f"not an encoded name: {token!r}")
    text = re.sub(rb"=([0-9A-F]{2})", lambda m: bytes.fromhex(m[1].decode()), token.encode())
    name = text.decode()
    if encode_token(name) != token:
        raise ValueError(f"not an encoded name: {token!r}")
    return name


def operation_subject(operation: Operation, model: str | None = None) -> str:
    """Return where requests of an operation go; those that name a model go to the actors that serve it."""
    return operation.subject if model is None else f"{operation.subject}.{encode_token(model)}"


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject falls under a pattern: ``*`` is any one token, a final ``>`` any one or more."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > index
        if index >= len(tokens) or token not in ("*", tokens[index]):
            return False
    return len(wanted) == len(tokens)
