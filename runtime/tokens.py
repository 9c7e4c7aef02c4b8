"""``ayllu token``: make a token, and the entry of the configuration that lets it in."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from ..schemas import OPERATIONS, InvalidRequest, encode
from .auth import TokenSpec, check_tokens, hash_of, new_token


def read_expiry(text: str) -> datetime:
    """Return the point in time that a date or time means (ISO 8601; in UTC unless it says otherwise).

    Raises:
        InvalidRequest: it is none, or it has passed.
    """
    try:
        expires = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(f"{text} is no date such as 2027-12-31") from error
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    if expires <= datetime.now(UTC):
        raise InvalidRequest(f"{text} has passed")
    return expires


def entry_of(token: TokenSpec) -> str:
    """Return a token's entry in the configuration, as TOML."""
    # JSON's strings and lists of strings are TOML, too.
    lines = [
        "[[gateway.tokens]]",
        f"name = {encode(token.name).decode()}",
        f'sha256 = "{token.sha256}"',
        f"scopes = {encode(token.scopes).decode()}",
    ]
    if token.expires is not None:
        lines.append(f"expires = {token.expires.isoformat()}")
    return "\n".join(lines) + "\n"


def make_token(name: str, scopes: Sequence[str], expires: str | None) -> None:
    """Print a new token on stderr, once, and its entry on stdout, which may go into a file.

    Raises:
        InvalidRequest: the expiry is wrong, or has passed; a scope is no name of an API.
    """
    until = None if expires is None else read_expiry(expires)
    token = new_token()
    spec = TokenSpec(name, hash_of(token), list(scopes), until)
    check_tokens([spec], {operation.api for operation in OPERATIONS.values()})
    sys.stdout.write(entry_of(spec))
    sys.stdout.flush()
    sys.stderr.write(
        f"The token of {name}, which is shown only now:{os.linesep}{token}{os.linesep}"
    )
