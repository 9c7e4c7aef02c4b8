"""MCP over HTTP for tests: `python mcp_http.py PORT`; `/mcp` is the SDK's own server, the other paths are hostile."""

from __future__ import annotations

import gzip
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from starlette.requests import Request
from starlette.responses import (
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

TOKEN = "sesame"
server = MCPServer("http")
cancelled: list[str] = []


@server.tool()
async def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello, {name}!"


@server.tool()
async def hang() -> str:
    """Do not answer."""
    try:
        await anyio.sleep_forever()
    finally:
        cancelled.append("hang")
    return ""


@server.tool()
async def count() -> int:
    """Return how many calls were cancelled."""
    return len(cancelled)


@server.tool()
async def grow(context: Context) -> str:
    """Have one more tool."""
    server.add_tool(greet, name="grown", description="Greet.")
    await context.notify_tools_changed()
    return "done"


async def huge(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536
            await anyio.lowlevel.checkpoint()  # Else nothing would notice that the client has gone.

    return StreamingResponse(parts(), media_type="application/json")


async def events(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"data: " + b"x" * 65536
            await anyio.lowlevel.checkpoint()

    return StreamingResponse(parts(), media_type="text/event-stream")


async def packed(_: Request) -> Response:
    body = gzip.compress(b" " * (64 << 20))
    return Response(body, headers={"content-encoding": "gzip", "content-type": "application/json"})


async def away(_: Request) -> Response:
    return RedirectResponse("http://127.0.0.2:9/", status_code=307)


async def garbage(_: Request) -> Response:
    return PlainTextResponse("It works!")


async def broken(_: Request) -> Response:
    return JSONResponse({"jsonrpc": "2.0", "id": 1, "result": 5}, status_code=500)


HOSTILE: list[Callable[[Request], Awaitable[Response]]] = [
    *(huge, events, packed, away, garbage, broken)
]
app = server.streamable_http_app()
for one in HOSTILE:
    app.router.routes.append(Route(f"/{one.__name__}", one, methods=["POST", "GET"]))


async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
    guards = scope["type"] == "http" and scope["path"] == "/mcp"
    if guards and dict(scope["headers"]).get(b"authorization") != f"Bearer {TOKEN}".encode():
        await PlainTextResponse("no", status_code=401)(scope, receive, send)
    else:
        await app(scope, receive, send)


if __name__ == "__main__":
    uvicorn.run(guarded, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
