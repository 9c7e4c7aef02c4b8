"""Who may talk: tokens, what they allow, and which hosts and origins a browser may come from. Pure: no I/O, no clock."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from hashlib import sha256
from ipaddress import ip_address
from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta

from ..schemas import InvalidRequest, Operation, PermissionDenied, Unauthenticated, Wire

EVERYTHING: Final = "*"
"""The scope that allows every API."""
SUBPROTOCOL_PREFIX: Final = "bearer."
"""Browsers cannot set headers of a websocket: there the token is a subprotocol, ``bearer.<token>``."""
TOKEN_PREFIX: Final = "ayllu_"
"""What tokens begin with, so that scanners for leaked secrets can find them."""
TOKEN_BYTES: Final = 32
SIMILAR: Final = 0.8
"""From where on a name is almost another one (`difflib`)."""


class TokenSpec(Wire, frozen=True):
    """A token that clients may present; the configuration has its hash only.

    Attributes:
        name: whose it is; limits are counted, and logs speak, by it.
        sha256: the SHA-256 of the token in hexadecimal digits. A random token of 256 bits needs no slower hash.
        scopes: the APIs that it allows, by their names in the table of operations; ``*`` is all.
        expires: until when it is valid, with a time zone; by default for ever.
    """

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    scopes: list[str]
    expires: Annotated[datetime, Meta(tz=True)] | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the holder of a token or, where none are configured, an address.

    Attributes:
        name: what limits are counted by.
        scopes: the APIs that it may call.
        expires: until when it may call.
    """

    name: str
    scopes: frozenset[str] = frozenset({EVERYTHING})
    expires: datetime | None = None

    def expired(self, now: datetime) -> bool:
        """Tell whether the token is no longer valid."""
        return self.expires is not None and now >= self.expires

    def check(self, operation: Operation, now: datetime) -> None:
        """Refuse what the caller may not call.

        Raises:
            Unauthenticated: its token has expired.
            PermissionDenied: the operation's API is not in its scopes.
        """
        if self.expired(now):
            raise Unauthenticated("the token has expired")
        if not self.scopes & {EVERYTHING, operation.api}:
            raise PermissionDenied(f"this token does not allow the API {operation.api}")


def new_token() -> str:
    """Return a new random token; it fits a header and a subprotocol."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def hash_of(token: str) -> str:
    """Return what the configuration keeps of a token."""
    return sha256(token.encode()).hexdigest()


def check_tokens(tokens: Sequence[TokenSpec], apis: Collection[str]) -> None:
    """Refuse tokens that cannot be meant.

    Raises:
        InvalidRequest: two have one name or one hash, or a scope is no name of an API. Those of own actors are not known
            here; a name that is almost one of ours is taken for a mistake.
    """
    for what, values in (
        ("name", [token.name for token in tokens]),
        ("sha256", [token.sha256 for token in tokens]),
    ):
        if len(set(values)) < len(values):
            raise InvalidRequest(f"gateway.tokens: two have the same {what}")
    for token in tokens:
        for scope in sorted(set(token.scopes) - {EVERYTHING, *apis}):
            similar = get_close_matches(scope.lower(), [api.lower() for api in apis], 1, SIMILAR)
            if similar or not scope.isidentifier():
                raise InvalidRequest(
                    f"gateway.tokens: `{scope}` in the scopes of {token.name!r} is not an API; "
                    f"there are {', '.join(sorted(apis))}, those of own actors, and {EVERYTHING}"
                )


def presented_token(authorization: str | None, subprotocols: Iterable[str]) -> str | None:
    """Return the token that came with a request, if one did; the header goes before the subprotocol."""
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None
    for offered in subprotocols:
        if offered.startswith(SUBPROTOCOL_PREFIX):
            return offered.removeprefix(SUBPROTOCOL_PREFIX)
    return None


def caller_of(tokens: Iterable[TokenSpec], presented: str | None, now: datetime) -> Caller:
    """Return whose token was presented. How long it takes does not depend on how much of it is right.

    Raises:
        Unauthenticated: there is none, it is unknown, or it has expired.
    """
    if presented is None:
        raise Unauthenticated("a token is needed: send the header `Authorization: Bearer TOKEN`")
    digest = hash_of(presented)
    found: TokenSpec | None = None
    for token in tokens:
        if hmac.compare_digest(digest, token.sha256):
            found = token
    if found is None:
        raise Unauthenticated("the token is not valid")
    caller = Caller(found.name, frozenset(found.scopes), found.expires)
    if caller.expired(now):
        raise Unauthenticated("the token has expired")
    return caller


def host_allowed(host: str, names: Collection[str]) -> bool:
    """Tell whether a ``Host`` header names this server.

    Addresses always do: a page can make a browser send its requests here only under a *name* whose address it changes
    (DNS rebinding). Of names, ``localhost`` and the configured ones do.
    """
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        name, _, port = host.partition(":")
    if port and not (port.isascii() and port.isdigit()):
        return False
    try:
        ip_address(name)
    except ValueError:
        name = name.lower().removesuffix(".")
        return name == "localhost" or name in {allowed.lower() for allowed in names}
    return True


def origin_allowed(origin: str | None, host: str, origins: Collection[str]) -> bool:
    """Tell whether a page may call: programs (no ``Origin``), pages of this server, and the configured origins."""
    if origin is None or origin in origins:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower() != ""
    except ValueError:
        return False
