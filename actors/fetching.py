"""Fetching what users point to: the one way to an address that somebody else has chosen.

What such an address may do to us (server-side request forgery, https://owasp.org/Top10/A10_2021-Server-Side_Request_Forgery_(SSRF)/)
is bounded: only http and https; every address that the name stands for is one of the public internet, and the connection goes
to an address that was checked, not to what the name means a moment later; each redirect is checked anew; size and time end.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urljoin, urlsplit

import anyio
import httpcore2

from ..schemas import InvalidRequest, PermissionDenied, TooLarge, Unavailable

MAX_REDIRECTS = 5
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
REDIRECTS = frozenset((301, 302, 303, 307, 308))
PORTS = {"http": 80, "https": 443}
_NAT64 = ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an address may cost.

    Attributes:
        max_bytes: of its content.
        seconds: until all of it was read.
        private_hosts: ``HOST:PORT`` that may be fetched from though they are not on the public internet.
    """

    max_bytes: int
    seconds: float
    private_hosts: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """Content that is on its way: read ``body`` to its end.

    Attributes:
        media_type: what its server calls it, without parameters; empty where it says nothing.
        body: its bytes, as they come.
    """

    media_type: str
    body: AsyncIterator[bytes]


def check_url(url: str) -> None:
    """Refuse an address that is never fetched; names are not looked up.

    Raises:
        InvalidRequest: it is no http or https address with a host, or has credentials in it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"the address cannot be read: {error}") from error
    if parts.scheme not in PORTS or not host:
        raise InvalidRequest("an address to fetch from begins with http:// or https:// and a host")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest(
            "an address with credentials in it is not fetched: they would be kept with it"
        )


@asynccontextmanager
async def fetching(url: str, limits: Limits) -> AsyncIterator[Fetched]:
    """Fetch what an address stands for.

    Raises:
        InvalidRequest: it is no address to fetch from, or its server says no.
        PermissionDenied: it, or what it redirects to, is not on the public internet.
        TooLarge: there is more of it than the limit.
        Unavailable: its server does not answer, breaks off, or is too slow; it may later.
    """
    try:
        with anyio.fail_after(limits.seconds):
            backend = _CheckedBackend(limits.private_hosts)
            async with (
                httpcore2.AsyncConnectionPool(
                    ssl_context=ssl.create_default_context(), network_backend=backend
                ) as pool,
                _followed(pool, url) as response,
            ):
                media_type = _header(response, b"content-type").partition(";")[0].strip()
                yield Fetched(media_type.lower(), _bounded(response, limits.max_bytes))
    except TimeoutError as error:
        raise Unavailable(f"the content was not fetched within {limits.seconds:.0f} s") from error
    except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"the content cannot be fetched: {reason}") from error


@asynccontextmanager
async def _followed(
    pool: httpcore2.AsyncConnectionPool, url: str
) -> AsyncIterator[httpcore2.Response]:
    """Yield the response at the end of an address's redirects."""
    for _ in range(MAX_REDIRECTS + 1):
        check_url(url)
        headers = {"User-Agent": "ayllu", "Accept": "*/*", "Accept-Encoding": "identity"}
        timeout = {"connect": CONNECT_SECONDS, "read": READ_SECONDS, "pool": CONNECT_SECONDS}
        request: dict[str, Any] = {"headers": headers, "extensions": {"timeout": timeout}}
        async with pool.stream("GET", url, **request) as response:
            target = _header(response, b"location")
            if response.status in REDIRECTS and target:
                url = urljoin(url, target)
                continue
            if response.status >= 500 or response.status in (408, 429):
                raise Unavailable(f"the server of the content answers {response.status}")
            if response.status != 200:
                raise InvalidRequest(f"the server of the content answers {response.status}")
            yield response
            return
    raise InvalidRequest(f"the address redirects more than {MAX_REDIRECTS} times")


async def _bounded(response: httpcore2.Response, max_bytes: int) -> AsyncIterator[bytes]:
    told = _header(response, b"content-length")
    size = 0
    if told.isdigit() and int(told) > max_bytes:
        raise TooLarge(f"the content has {told} bytes; the limit is {max_bytes}")
    async for chunk in response.aiter_stream():
        size += len(chunk)
        if size > max_bytes:
            raise TooLarge(f"the content has more than {max_bytes} bytes, the limit")
        yield chunk


def _header(response: httpcore2.Response, name: bytes) -> str:
    for known, value in response.headers:
        if known.lower() == name:
            return value.decode("latin-1")
    return ""


def is_public(address: str) -> bool:
    """Tell whether an address is one of the public internet."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        # What stands for an IPv4 address is that address.
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found.teredo is not None:
            inner = found.teredo[1]
        if inner is not None:
            return inner.is_global
        if found in _NAT64:
            return False
    return found.is_global and not found.is_multicast


class _CheckedBackend(httpcore2.AnyIOBackend):
    """Connects to addresses that were checked."""

    def __init__(self, private_hosts: Collection[str]) -> None:
        super().__init__()
        self._private_hosts = frozenset(private_hosts)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address of a host, once all of them were checked."""
        try:
            with anyio.fail_after(timeout):
                found = await anyio.getaddrinfo(host, port, type=1)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host} is not found in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} is not found") from error
        addresses = [str(entry[4][0]) for entry in found]
        if f"{host}:{port}" not in self._private_hosts:
            for address in addresses:
                if not is_public(address):
                    raise PermissionDenied(
                        f"{host} is not on the public internet, and is not fetched from"
                    )
        return await super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)
