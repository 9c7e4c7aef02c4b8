"""Fetching what users point to: the one way to an address that somebody else has chosen.

What such an address may do to us (server-side request forgery, https://owasp.org/Top10/A10_2021-Server-Side_Request_Forgery_(SSRF)/)
is bounded: only http and https; every address that the name stands for is one of the public internet, and the connection goes
to an address that was checked, not to what the name means a moment later; each redirect is checked anew; size and time end.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import SOCK_STREAM
from typing import Any
from urllib.parse import urljoin, urlsplit

import anyio
import httpcore2

from ..schemas import InvalidRequest, PermissionDenied, TooLarge, Unavailable
from .documents import media_type

MAX_URL = 8192
MAX_REDIRECTS = 5
MAX_ADDRESSES = 4
"""How many addresses of one host are tried."""
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
REDIRECTS = frozenset((301, 302, 303, 307, 308))
PORTS = {"http": 80, "https": 443}
_EMBEDDING = tuple(map(ip_network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
"""Where IPv4 addresses stand in the last bits (RFC 4291, RFC 6052, RFC 8215); nobody publishes anything there."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an address may cost.

    Attributes:
        max_bytes: of its content.
        seconds: until all of it was read.
        private_hosts: ``HOST:PORT`` that may be fetched from though they are not on the public internet; an address of
            IPv6 stands in brackets.
    """

    max_bytes: int
    seconds: float
    private_hosts: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """Content that is on its way: read ``body`` to its end.

    Attributes:
        media_type: what its server calls it, without parameters; empty where it says nothing.
        charset: what its server says that it is written in; empty where it says nothing.
        body: its bytes, as they come.
    """

    media_type: str
    charset: str
    body: AsyncIterator[bytes]


def check_url(url: str) -> None:
    """Refuse an address that is never fetched; names are not looked up.

    Raises:
        InvalidRequest: it is no http or https address with a host, or has credentials in it.
    """
    if len(url) > MAX_URL:
        raise TooLarge(f"an address has at most {MAX_URL} characters")
    # Python's own parser drops line ends, and not all that is sent is checked again.
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequest(
            "the address has spaces or letters that no address has: write a name as xn--..., all else as %XX"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequest(f"the address cannot be read: {error}") from error
    if parts.scheme not in PORTS or not host or port == 0:
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
                essence, parameters = media_type(_header(response, b"content-type"))
                body = _bounded(response, limits.max_bytes)
                yield Fetched(essence, parameters.get("charset", ""), body)
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
                url = _redirected(url, target)
                continue
            if response.status >= 500 or response.status in (408, 429):
                raise Unavailable(f"the server of the content answers {response.status}")
            if response.status != 200:
                raise InvalidRequest(f"the server of the content answers {response.status}")
            if _header(response, b"content-encoding").lower() not in ("", "identity"):
                raise InvalidRequest("the server of the content packs it, which was not asked for")
            yield response
            return
    raise InvalidRequest(f"the address redirects more than {MAX_REDIRECTS} times")


def _redirected(url: str, target: str) -> str:
    try:
        found = urljoin(url, target)
    except ValueError as error:
        raise InvalidRequest("the address redirects to what is none") from error
    if url.startswith("https:") and found.startswith("http:"):
        raise InvalidRequest(
            "the address redirects from https to http, where anybody may read along"
        )
    return found


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
        if any(found in network for network in _EMBEDDING):
            return False
        # What stands for an IPv4 address is that address.
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found.teredo is not None:
            inner = found.teredo[1]
        return _is_ordinary(found if inner is None else inner)
    return _is_ordinary(found)


def _is_ordinary(address: IPv4Address | IPv6Address) -> bool:
    is_old = isinstance(address, IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or is_old)


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that were checked."""

    def __init__(self, private_hosts: Collection[str]) -> None:
        self._backend: httpcore2.AsyncNetworkBackend
        # Another class where there is no anyio.
        self._backend = httpcore2.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue]
        self._private_hosts = frozenset(map(str.lower, private_hosts))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to one of a host's addresses, once all of them were checked."""
        last: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        for address in await self._addresses(host, port, timeout):
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last or httpcore2.ConnectError(f"{host[:100]} is not found")

    async def _addresses(self, host: str, port: int, timeout: float | None) -> Sequence[str]:
        """Return addresses of a host.

        Raises:
            PermissionDenied: one of them is not public.
        """
        try:
            with anyio.fail_after(timeout):
                found = await anyio.getaddrinfo(host, port, type=SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(f"{host[:100]} is not found in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host[:100]} is not found") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        name = f"[{host}]" if ":" in host else host
        if f"{name}:{port}".lower() not in self._private_hosts and not all(
            map(is_public, addresses)
        ):
            raise PermissionDenied(
                f"{host[:100]} is not on the public internet, and is not fetched from"
            )
        return addresses[:MAX_ADDRESSES]
