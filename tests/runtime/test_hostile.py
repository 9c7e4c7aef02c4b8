"""Clients that mean no good, on real sockets."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import httpx2
import msgspec
import pytest
from anyio.abc import SocketStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from support.gateway import OPERATIONS, Running, running_gateway
from support.processes import AYLLU, SCRIPTED, read_ready_line, run_ayllu
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ayllu.runtime.auth import TokenSpec, hash_of, new_token
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.http import read_payload
from ayllu.runtime.limits import PURGE_AT, CallRate
from ayllu.runtime.protocols import MAX_FRAGMENTS, WAITING_ROOM
from ayllu.runtime.session import SendFrame, Session, StartCall
from ayllu.runtime.tokens import entry_of
from ayllu.schemas import AylluError, Operation, Overloaded
from ayllu.schemas.errors import error_codes

CODES = error_codes().keys()
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MASK = b"\0\0\0\0"
MIB = 1 << 20
WINDOW = 256
"""How many events of a call may be on the way. The actor, both ends and the kernel are on this machine."""


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a frame of a client; its mask is zero, which changes nothing."""
    assert len(data) < 126
    return bytes([opcode | 0x80 * fin, 0x80 | len(data)]) + MASK + data


@asynccontextmanager
async def raw(gateway: Running, *, first: bytes = b"") -> AsyncIterator[SocketStream]:
    """Open a bare connection, with a small receive buffer, and send something."""
    host, port = httpx2.URL(gateway.url).host, httpx2.URL(gateway.url).port
    assert port is not None
    async with await anyio.connect_tcp(host, port) as stream:
        if first:
            await stream.send(first)
        yield stream


async def read_to_end(stream: SocketStream) -> bytes:
    read = b""
    with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            read += await stream.receive()
    return read


async def upgraded(stream: SocketStream) -> None:
    read = b""
    while b"\r\n\r\n" not in read:
        read += await stream.receive()
    assert read.startswith(b"HTTP/1.1 101")


def resident() -> int:
    """Return how many bytes of memory this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def still_serves(gateway: Running) -> None:
    assert (await gateway.http.post("/shapes/shout?text=a")).json() == "A"
    async with open_websocket(gateway.websocket_url) as websocket:
        await websocket.send(
            '{"jsonrpc":"2.0","id":1,"method":"shapes.shout","params":{"text":"a"}}'
        )
        assert '"A"' in str(await websocket.recv())


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET /livez HTTP/1.1\r\nhost: loc", b"408"),
        (b"POST /shapes/count HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{", b"408"),
    ],
    ids=["silent", "headers", "body"],
)
async def test_requests_that_come_too_slowly(sent: bytes, answered: bytes) -> None:
    async with running_gateway(config=GatewayConfig(request_timeout=0.4)) as gateway:
        async with raw(gateway, first=sent) as stream:
            answer = await read_to_end(stream)
        assert answered in answer
        assert bool(answer) == bool(answered)
        await still_serves(gateway)


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
async def test_single_bytes_buy_no_time() -> None:
    answer = b""
    async with running_gateway(config=GatewayConfig(request_timeout=0.5)) as gateway:
        began = anyio.current_time()
        async with raw(gateway, first=b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ") as stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                while not answer:
                    await stream.send(b"x")
                    with anyio.move_on_after(0.05):  # The pace of the attack.
                        answer = await stream.receive()
        assert b"408" in answer
        assert anyio.current_time() - began < 5
        await still_serves(gateway)


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
async def test_kept_connections_and_pipelines_are_not_taken_for_slow_ones() -> None:
    request = b"POST /shapes/shout?text=a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"
    hang = request.replace(b"shout?text=a", b"stall?after=1")
    async with running_gateway(config=GatewayConfig(request_timeout=0.3)) as gateway:
        async with raw(gateway, first=request + request + hang) as stream:
            read = b""
            while read.count(b"HTTP/1.1 200") < 3:
                read += await stream.receive()
            with anyio.move_on_after(0.6) as waited:  # Longer than a request may take to come.
                while True:
                    await stream.receive()
            assert waited.cancelled_caught
        await gateway.actor.idle.wait()


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
async def test_oversized_bodies_and_headers() -> None:
    async with running_gateway(config=GatewayConfig(max_message_bytes=1000)) as gateway:
        head = (
            b"POST /shapes/count HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        async with raw(gateway, first=head + (b"100\r\n" + b"x" * 256 + b"\r\n") * 5) as stream:
            assert b"413" in await stream.receive()
        async with raw(gateway, first=b"GET / HTTP/1.1\r\nx: " + b"x" * 100_000) as stream:
            assert b"200" not in (await read_to_end(stream))[:20]
        await still_serves(gateway)


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
async def test_a_half_open_websocket_is_dropped() -> None:
    async with running_gateway(config=GatewayConfig(ping_interval=0.2)) as gateway:
        async with raw(gateway, first=UPGRADE) as stream:
            await upgraded(stream)
            await read_to_end(stream)  # Pings come and are not answered; then, the end.
        await still_serves(gateway)


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, b"{", fin=False) + frame(0, fin=False) * (MAX_FRAGMENTS + 1), 1009),
        (frame(3), 1002),
        (frame(9, fin=False), 1002),
        (b"\xc1\x80" + MASK, 1002),
        (b"\x81\x02ab", 1002),
        (b"\x81\xff" + (1 << 40).to_bytes(8) + MASK, 1009),
    ],
    ids=["utf-8", "fragments", "opcode", "long ping", "compressed", "unmasked", "terabyte"],
)
async def test_broken_frames_end_the_connection(sent: bytes, code: int) -> None:
    async with running_gateway() as gateway:
        async with raw(gateway, first=UPGRADE) as stream:
            await upgraded(stream)
            await stream.send(sent)
            answer = await read_to_end(stream)
        assert answer[0] == 0x88
        assert int.from_bytes(answer[2:4]) == code
        await still_serves(gateway)


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
async def test_compression_is_off() -> None:
    async with running_gateway() as gateway:
        async with open_websocket(gateway.websocket_url, compression="deflate") as websocket:
            assert websocket.response is not None
            assert "Sec-WebSocket-Extensions" not in websocket.response.headers
        reply = await gateway.http.post(
            "/shapes/count",
            content=bytes.fromhex("1f8b08000000000000ff"),
            headers={"Content-Encoding": "gzip"},
        )
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_request")


@pytest.mark.requirement("hostile-requests")
@pytest.mark.asyncio
async def test_pongs_that_nobody_reads_do_not_pile_up() -> None:
    async with running_gateway(config=GatewayConfig(write_timeout=2)) as gateway:
        before = resident()
        pings = frame(9, b"x" * 125) * 1000
        async with raw(gateway, first=UPGRADE) as stream:
            await upgraded(stream)
            with suppress(anyio.BrokenResourceError):
                for _ in range(400):  # 52 MB of pings
                    await stream.send(pings)
            assert resident() - before < 20 * MIB
        await still_serves(gateway)


@pytest.mark.requirement("limits-of-connections")
@pytest.mark.asyncio
async def test_too_many_connections_are_told_to_come_back() -> None:
    async with running_gateway(config=GatewayConfig(max_connections=2)) as gateway:  # One is ours.
        async with open_websocket(gateway.websocket_url):
            reply = await gateway.http.post("/shapes/shout?text=a")
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
            assert reply.headers["retry-after"] == "1"
            with pytest.raises(InvalidStatus) as refused:
                async with open_websocket(gateway.websocket_url):
                    pass
            assert refused.value.response.status_code == 503
        reply = await gateway.http.post("/shapes/shout?text=a")
        assert reply.json() == "A"


@pytest.mark.requirement("limits-of-connections")
@pytest.mark.asyncio
async def test_connections_that_crowd_the_waiting_room_are_dropped() -> None:
    async with running_gateway(config=GatewayConfig(max_connections=1)) as gateway:
        async with AsyncExitStack() as connections:
            for _ in range(WAITING_ROOM):
                await connections.enter_async_context(raw(gateway))
            async with raw(gateway) as stream:
                assert await read_to_end(stream) == b""
        assert await gateway.shapes.shout("a") == "A"


@pytest.mark.requirement("limits-of-callers")
def test_callers_are_forgotten() -> None:
    time = 0.0
    rate = CallRate(10, lambda: time)
    for number in range(3 * PURGE_AT):
        time += 0.01
        rate.take(str(number))
        assert len(rate._paid) <= PURGE_AT
    for _ in range(10):
        rate.take("burst")
    with pytest.raises(Overloaded) as refused:
        rate.take("burst")
    time += refused.value.details["retry_after"]
    rate.take("burst")


ENDLESS = {"to": 10_000_000, "size": 10_000}


@pytest.mark.requirement("never-read")
@pytest.mark.asyncio
async def test_websockets_that_never_read_cost_little_and_delay_nobody() -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "shapes.list", "params": ENDLESS}
    count = 20
    async with running_gateway(config=GatewayConfig(write_timeout=1), seconds=60) as gateway:
        before = resident()
        async with AsyncExitStack() as connections:
            for _ in range(count):
                slow = await connections.enter_async_context(
                    open_websocket(
                        gateway.websocket_url, max_queue=1, max_size=None, close_timeout=0.1
                    )
                )
                await slow.send(msgspec.json.encode(call).decode())
            answers = 0

            async def ask() -> None:
                nonlocal answers
                for _ in range(5):
                    await still_serves(gateway)
                    answers += 1

            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    for _ in range(count):
                        tasks.start_soon(ask)
                await gateway.actor.idle.wait()
            assert answers == 5 * count
            assert resident() - before < count * 4 * WINDOW * ENDLESS["size"]
        await still_serves(gateway)


@pytest.mark.requirement("never-read")
@pytest.mark.asyncio
async def test_http_streams_that_nobody_reads_are_dropped() -> None:
    body = msgspec.json.encode(ENDLESS)
    head = b"POST /shapes/list HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    async with running_gateway(config=GatewayConfig(write_timeout=0.5)) as gateway:
        async with raw(gateway, first=head % len(body) + body):
            await gateway.actor.started.wait()
            await gateway.actor.idle.wait()
        await still_serves(gateway)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "id": st.integers(0, 3) | JSON,
        "method": st.sampled_from([*OPERATIONS, "$/cancel"]) | JSON,
        "params": JSON,
        "timeout": JSON,
    },
)
FRAMES = st.binary(max_size=40) | st.text(max_size=40) | (CALLS | JSON).map(msgspec.json.encode)
FUZZ = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
"""Ten frames or requests an example: 10,000 in all."""


@pytest.mark.requirement("fuzz")
@pytest.mark.slow
@settings(FUZZ, max_examples=700)
@given(st.lists(FRAMES, min_size=10, max_size=10))
def test_random_frames_end_in_documented_errors(frames: list[str | bytes]) -> None:
    session = Session(OPERATIONS, max_calls=3, max_timeout=100)
    for sent in frames:
        effect = session.receive(sent)
        if isinstance(effect, SendFrame):
            answer = msgspec.json.decode(effect.frame)
            assert answer["error"]["code"] in (-32700, -32600, -32601, -32602, -32000)
            assert answer["error"]["data"]["code"] in CODES
        elif isinstance(effect, StartCall):
            effect.operation.read(effect.payload)
    assert session.running <= 3


@pytest.mark.requirement("fuzz")
@pytest.mark.slow
@settings(FUZZ, max_examples=300)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(OPERATIONS.values())), st.binary(max_size=20), FRAMES),
        min_size=10,
        max_size=10,
    )
)
def test_random_requests_end_in_documented_errors(
    requests: list[tuple[Operation, bytes, str | bytes]],
) -> None:
    for operation, query, body in requests:
        request = Request({"type": "http", "query_string": query, "headers": []})
        content = body.encode() if isinstance(body, str) else body
        try:
            operation.read(read_payload(operation, request, content))
        except AylluError as error:
            assert error.code in CODES


def samples(count: int) -> list[bytes]:
    """Return random frames."""
    found: list[bytes] = []

    @settings(max_examples=count, deadline=None, database=None, derandomize=True)
    @given(FRAMES)
    def collect(sent: str | bytes) -> None:
        found.append(sent.encode() if isinstance(sent, str) else sent)

    collect()
    return found


@pytest.mark.requirement("fuzz")
@pytest.mark.asyncio
async def test_random_frames_on_a_real_socket() -> None:
    async with running_gateway(seconds=60) as gateway:
        async with open_websocket(gateway.websocket_url) as websocket:
            for sent in samples(300):
                await websocket.send(sent)
                with suppress(TimeoutError, ConnectionClosed):
                    with anyio.fail_after(0.01):
                        answer = msgspec.json.decode(await websocket.recv())
                        if "error" in answer:
                            assert answer["error"]["data"]["code"] in CODES
        for sent in samples(100):
            async with raw(gateway, first=sent + b"\r\n\r\n") as stream:
                await stream.send_eof()
                status = re.match(rb"HTTP/1.1 (\d+)", await stream_answer(stream))
                assert status is None or status[1] == b"400"
        await still_serves(gateway)


async def stream_answer(stream: SocketStream) -> bytes:
    with anyio.move_on_after(0.05), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        return await stream.receive()
    return b""


@pytest.mark.slow
@pytest.mark.requirement("no-secrets-in-logs", "loopback-or-tokens")
def test_no_secret_is_in_logs_errors_or_answers(tmp_path: Path) -> None:
    good, wrong = new_token(), new_token()
    config = tmp_path / "ayllu.toml"
    config.write_text(SCRIPTED + entry_of(TokenSpec("alice", hash_of(good), ["Models"])))
    command = [AYLLU, "-v", "up", "--host", "0.0.0.0", "--port", "0", "--data-dir", str(tmp_path)]
    said = ""
    with (tmp_path / "log").open("w+") as log:
        with subprocess.Popen(
            [*command, "--config", str(config)], stdout=subprocess.PIPE, stderr=log, text=True
        ) as process:
            try:
                port = read_ready_line(process).rpartition(":")[2]
                url = f"http://127.0.0.1:{port}"
                for token, status in ((good, 0), (wrong, 1)):
                    environment = {**os.environ, "AYLLU_TOKEN": token}
                    call = subprocess.run(
                        [AYLLU, "-v", "call", "models", "--url", url],
                        env=environment,
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    assert call.returncode == status, call.stderr
                    said += call.stdout + call.stderr
                    headers = {"Authorization": f"Bearer {token}"}
                    for path in (f"/models?token={token}", "/datasets/get?dataset_id=x", "/x"):
                        said += httpx2.get(url + path, headers=headers).text
                    with socket.create_connection(("127.0.0.1", int(port))) as bare:
                        bare.sendall(f"Authorization: Bearer {token}\r\n\r\n".encode())
                        said += bare.recv(1000).decode()
                assert run_ayllu("call", "models", "--url", url).returncode == 1
            finally:
                process.terminate()
                process.wait(30)
        log.seek(0)
        said += log.read()
    assert "echo" in said
    for secret in (good, wrong, hash_of(good)):
        assert secret not in said
        assert secret.removeprefix("ayllu_") not in said
