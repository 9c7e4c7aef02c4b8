"""The client's connection against a real websocket server that behaves badly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from ayllu.client import connect, connection
from ayllu.schemas import BusError, DeadlineExceeded, InvalidRequest, NotFound, TooLarge

pytestmark = pytest.mark.asyncio

Behaviour = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def server(behave: Behaviour, port: int = 0) -> AsyncIterator[int]:
    """Serve one behaviour, and yield the port."""
    async with serve(behave, "127.0.0.1", port) as running:
        yield next(iter(running.sockets)).getsockname()[1]


async def stay(connection: ServerConnection) -> None:
    await connection.wait_closed()


@pytest.mark.requirement("client-reconnects")
async def test_calls_fail_with_the_connection_and_later_ones_wait_for_the_next() -> None:
    async def drop(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close()

    connections = 0

    async def drop_then_answer(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await drop(connection)
        async for _ in connection:
            await connection.send(
                '{"jsonrpc":"2.0","id":2,"result":{"columns":{},"content_url":"data:,"}}'
            )

    with anyio.fail_after(10):
        async with server(drop_then_answer) as port, connect(f"http://127.0.0.1:{port}") as stack:
            with pytest.raises(BusError) as lost:
                await stack.datasets.get(dataset_id="x")
            assert lost.value.retryable
            assert (await stack.datasets.get(dataset_id="x")).content_url == "data:,"
    assert connections == 2


@pytest.mark.requirement("deadline-everywhere")
async def test_a_call_does_not_wait_for_ever_for_a_gateway_that_is_gone() -> None:
    async with AsyncExitStack() as stack_of_contexts:
        stack_of_contexts.enter_context(anyio.fail_after(10))
        running = server(stay)
        port = await running.__aenter__()
        stack = await stack_of_contexts.enter_async_context(
            connect(f"http://127.0.0.1:{port}", timeout=0.3)
        )
        await running.__aexit__(None, None, None)
        with pytest.raises(DeadlineExceeded):
            while True:  # At first the client may not know yet that it is alone.
                with suppress(BusError):
                    await stack.datasets.get(dataset_id="x")


@pytest.mark.requirement("deadline-everywhere")
async def test_a_gateway_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GRACE_SECONDS", 0.1)
    with anyio.fail_after(10):
        async with server(stay) as port, connect(f"http://127.0.0.1:{port}", timeout=0.1) as stack:
            with pytest.raises(DeadlineExceeded):
                await stack.datasets.get(dataset_id="x")


async def test_a_frame_that_is_none_is_skipped() -> None:
    async def babble(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send("babble")
        await connection.send(
            '{"jsonrpc":"2.0","id":1,"result":{"columns":{},"content_url":"data:,"}}'
        )
        await connection.wait_closed()

    with anyio.fail_after(10):
        async with server(babble) as port, connect(f"http://127.0.0.1:{port}") as stack:
            assert (await stack.datasets.get(dataset_id="x")).content_url == "data:,"


@pytest.mark.parametrize(
    ("url", "error"),
    [("nonsense", InvalidRequest), ("http://127.0.0.1:1", BusError)],
)
async def test_no_gateway(url: str, error: type[Exception]) -> None:
    with anyio.fail_after(10), pytest.raises(error):
        async with connect(url):
            pass


async def test_a_request_that_the_gateway_would_not_take_is_refused_before_it_is_sent() -> None:
    def announce(_: ServerConnection, __: Request, response: Response) -> Response:
        response.headers["ayllu-max-message"] = "2000"
        return response

    with anyio.fail_after(10):
        async with (
            serve(stay, "127.0.0.1", 0, process_response=announce) as running,
            connect(f"http://127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}") as stack,
        ):
            with pytest.raises(TooLarge) as large:
                await stack.datasets.get(dataset_id="x" * 2000)
            assert not large.value.retryable


async def test_what_the_block_raises_comes_out_as_it_is() -> None:
    with anyio.fail_after(10):
        async with server(stay) as port:
            with pytest.raises(NotFound):
                async with connect(f"http://127.0.0.1:{port}"):
                    raise NotFound("mine")
