"""Addresses and servers that mean ill: a real server on loopback that answers byte for byte what a test tells it to."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from support.content_server import OK, Server, redirect, serving

from ayllu.actors.fetching import MAX_REDIRECTS, Limits, check_url, fetching, is_public
from ayllu.schemas import AylluError, InvalidRequest, PermissionDenied, TooLarge, Unavailable

pytestmark = pytest.mark.requirement("fetching-hostile")


async def fetched(
    server: Server, path: str, *, max_bytes: int = 1 << 20, seconds: float = 10.0
) -> tuple[str, bytes]:
    limits = Limits(max_bytes, seconds, [server.host])
    async with fetching(f"http://{server.host}{path}", limits) as found:
        return found.media_type, b"".join([chunk async for chunk in found.body])


@pytest.mark.asyncio
async def test_what_is_well_behaved_is_fetched() -> None:
    answers = {"/a?b=c": OK + b"Content-Type: Text/CSV; charset=x\r\nContent-Length: 3\r\n\r\nabc"}
    async with serving(answers) as server:
        assert await fetched(server, "/a?b=c#fragment") == ("text/csv", b"abc")
        [head] = server.asked
    lines = head.decode().lower().split("\r\n")
    assert f"host: {server.host}" in lines
    assert "accept-encoding: identity" in lines
    assert not any(line.startswith(("cookie", "authorization", "referer")) for line in lines)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (OK + b"Content-Length: 100\r\n\r\nabc", Unavailable),  # It breaks off.
        (OK + b"Content-Length: 99999999999\r\n\r\nabc", TooLarge),
        (OK + b"Content-Length: abc\r\n\r\nabc", Unavailable),
        (OK + b"\r\n" + b"x" * 5000, TooLarge),
        (
            OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n%b\r\n" % (b"x" * 1024) * 4,
            TooLarge,
        ),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", Unavailable),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", InvalidRequest),
        (b"HTTP/1.1 204 No\r\n\r\n", InvalidRequest),
        (b"HTTP/1.1 206 Part\r\nContent-Length: 1\r\n\r\nx", InvalidRequest),
        (b"HTTP/1.1 304 Not\r\n\r\n", InvalidRequest),
        (b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n", InvalidRequest),
        (b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n", InvalidRequest),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n", Unavailable),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", Unavailable),
        (b"HTTP/1.1 302 Nowhere\r\nContent-Length: 0\r\n\r\n", InvalidRequest),
        (b"no HTTP at all\r\n\r\n", Unavailable),
        (b"", Unavailable),
        (OK + b"X: " + b"x" * 200_000 + b"\r\n\r\n", Unavailable),
    ],
)
async def test_an_answer_that_is_none(answer: bytes, error: type[AylluError]) -> None:
    async with serving({"/x": answer}) as server:
        with pytest.raises(AylluError) as found:
            await fetched(server, "/x", max_bytes=2000)
    assert type(found.value) is error


@pytest.mark.asyncio
async def test_a_server_that_does_not_go_on_is_left() -> None:
    answers = {"/stall": b"HTTP/1.1 200 OK\r\n", "/stall/body": OK + b"Content-Length: 5\r\n\r\nab"}
    for path in answers:
        async with serving(answers) as server:
            with pytest.raises(Unavailable):
                await fetched(server, path, seconds=0.2)
            await server.gone.wait()


@pytest.mark.asyncio
async def test_redirects_are_followed_as_far_as_they_may() -> None:
    answers = {
        f"/{n}": redirect(f"/{n - 1}" if n % 2 else f"http://HOST/{n - 1}") for n in range(1, 10)
    }
    answers["/0"] = OK + b"Content-Length: 2\r\n\r\nok"
    async with serving(answers) as server:
        assert await fetched(server, f"/{MAX_REDIRECTS}") == ("", b"ok")
        with pytest.raises(InvalidRequest):
            await fetched(server, f"/{MAX_REDIRECTS + 1}")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("http://127.0.0.1:1/", PermissionDenied),  # Another port of a host that is listed.
        ("http://localhost:1/", PermissionDenied),
        ("http://[::1]:1/", PermissionDenied),
        ("http://169.254.169.254/latest/meta-data/", PermissionDenied),
        ("//10.0.0.1/x", PermissionDenied),
        ("file:///etc/passwd", InvalidRequest),
        ("ftp://example.org/x", InvalidRequest),
        ("http://user:secret@example.org/", InvalidRequest),
        ("http://[", InvalidRequest),
        ("http://\xe4.example/", InvalidRequest),
    ],
)
async def test_a_redirect_leads_nowhere_else(target: str, error: type[AylluError]) -> None:
    async with serving({"/x": redirect(target)}) as server:
        with pytest.raises(AylluError) as found:
            await fetched(server, "/x")
        assert len(server.asked) == 1
    assert type(found.value) is error
    assert "secret" not in found.value.message


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "localhost",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::7f00:1]", "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]", "[fe80::1]", "[fc00::1]", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "100.64.0.1", "169.254.169.254", "224.0.1.1", "255.255.255.255",
    ],
)  # fmt: skip
async def test_private_addresses_are_not_asked(host: str) -> None:
    # A server that is there, so that being refused is not being unreachable.
    async with serving({"/x": OK + b"\r\n"}) as server:
        limits = Limits(1000, 5.0)
        with pytest.raises(PermissionDenied):
            async with fetching(f"http://{host}:{server.port}/x", limits):
                pass
        assert not server.asked


@pytest.mark.asyncio
async def test_only_the_port_that_is_listed() -> None:
    async with serving({"/x": OK + b"\r\n"}) as server, serving({"/x": OK + b"\r\n"}) as other:
        with pytest.raises(PermissionDenied):
            async with fetching(f"http://{other.host}/x", Limits(1000, 5.0, [server.host])):
                pass
        listed = Limits(1000, 5.0, [f"LOCALHOST:{other.port}"])
        async with fetching(f"http://localhost:{other.port}/x", listed) as found:
            assert [chunk async for chunk in found.body] == []


@pytest.mark.asyncio
async def test_a_reader_that_fails_fails_as_itself() -> None:
    async with serving({"/x": OK + b"Content-Length: 3\r\n\r\nabc"}) as server:
        limits = Limits(1000, 5.0, [server.host])
        with pytest.raises(ZeroDivisionError):
            async with fetching(f"http://{server.host}/x", limits):
                raise ZeroDivisionError


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "http://", "http:///x", "https://?x", "ftp://h/x", "gopher://h:1/x", "file:///x", "http://[::1",
        "http://h:99999/", "http://h:0/", "http://h:x/", "http://u@h/", "http://u:p@h/", "http://h /x",
        "http://h/a b", "http://h/\r\nX: y", "http://h\t/", "http://\xe4/", "http://h/\u2028", "\nhttp://h/",
    ],
)  # fmt: skip
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(url)


def test_an_endless_address() -> None:
    with pytest.raises(TooLarge):
        check_url("http://h/" + "x" * 10_000)


@pytest.mark.parametrize(
    "url", ["http://h", "HTTPS://h:8443/x?y=%20#z", "http://1.2.3.4/", "http://[2606:4700::1]:80/"]
)
def test_what_is_an_address(url: str) -> None:
    check_url(url)


def test_public_addresses() -> None:
    assert all(map(is_public, ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "2002:808:808::1"]))
    assert not any(
        map(
            is_public,
            [
                "::ffff:224.0.1.1",
                "ff0e::1",
                "fec0::1",
                "64:ff9b:1::808:808",
                "2001:db8::1",
                "240.0.0.1",
                "fe80::1%1",
            ],
        )
    )


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """An authority that is trusted."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return made


def certified(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["localhost", "other.example"])
async def test_a_certificate_is_that_of_the_name_though_the_address_was_asked(
    authority: trustme.CA, name: str
) -> None:
    context = certified(authority, name)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, sni, _context: asked.append(sni)
    async with serving({"/x": OK + b"Content-Length: 2\r\n\r\nok"}, context) as server:
        host = f"localhost:{server.port}"
        found = fetching(f"https://{host}/x", Limits(1000, 5.0, [host]))
        if name == "localhost":
            async with found as reply:
                assert b"".join([chunk async for chunk in reply.body]) == b"ok"
            [head] = server.asked
            assert f"host: {host}" in head.decode().lower()
        else:
            with pytest.raises(Unavailable):
                async with found:
                    pass
            assert not server.asked
    assert set(asked) == {"localhost"}


@pytest.mark.asyncio
async def test_no_redirect_leads_out_of_https(authority: trustme.CA) -> None:
    async with serving({"/y": OK + b"\r\n"}) as plain:
        answers = {"/x": redirect(f"http://{plain.host}/y")}
        async with serving(answers, certified(authority, "localhost")) as server:
            host = f"localhost:{server.port}"
            with pytest.raises(InvalidRequest):
                async with fetching(f"https://{host}/x", Limits(1000, 5.0, [host, plain.host])):
                    pass
            assert len(server.asked) == 1
        assert not plain.asked
