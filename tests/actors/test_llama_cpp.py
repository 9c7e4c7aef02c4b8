"""What is the llama.cpp engine's own: its thread, its listener, its failures."""

from __future__ import annotations

import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.engines import small_model

from ayllu.actors.engines.llama_cpp import LlamaCppEngine
from ayllu.actors.engines.llama_cpp_call import LlamaCppCall, error_of
from ayllu.schemas import (
    AylluError,
    ContextLengthExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
)

pytestmark = pytest.mark.asyncio

TOKEN = {"choices": [{"text": "a", "finish_reason": None}]}


def raising(error: Exception) -> Callable[[Any, Any], None]:
    def method(request: Any, take: Any) -> None:
        take(TOKEN)
        raise error

    return method


def children(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def stopping(request: Any, take: Any) -> None:
    take(TOKEN)


def failing(request: Any, take: Any) -> None:
    assert take({"error": {"code": 500, "message": "no"}})


@pytest.mark.requirement("engine-dead")
@pytest.mark.parametrize(
    ("method", "error"),
    [
        (raising(RuntimeError("boom")), EngineDead),
        (raising(ValueError("unknown role")), InvalidRequest),
        (stopping, EngineDead),
        (failing, EngineError),
    ],
)
async def test_every_end_of_the_thread_reaches_the_reader(
    method: Callable[[Any, Any], None], error: type[AylluError]
) -> None:
    ended: list[LlamaCppCall] = []
    call = LlamaCppCall(method, {}, on_end=ended.append)
    with anyio.fail_after(5):
        await anyio.to_thread.run_sync(call.run)
        with pytest.raises(error) as caught:
            async for _ in call.deltas():
                pass
    assert caught.type is error
    assert ended == [call]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"code": 400, "type": "exceed_context_size_error"}, ContextLengthExceeded),
        ({"code": 400, "type": "invalid_request_error", "message": "x"}, InvalidRequest),
        ({"code": 500, "type": "server_error", "message": "x"}, EngineError),
    ],
)
async def test_errors_are_mapped(answer: dict[str, Any], error: type[AylluError]) -> None:
    assert type(error_of(answer)) is error


@pytest.mark.requirement("engine-closed-listener")
async def test_the_listener_of_llama_cpp_lets_nobody_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def ask(path: Path) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(b"GET /props HTTP/1.0\r\nHost: x\r\n\r\n")
            return client.recv(100)

    async with small_model(context=256, slots=1):
        (folder,) = children(tmp_path)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (listener,) = children(folder)
        answer = await anyio.to_thread.run_sync(ask, listener)
        assert b" 401 " in answer.splitlines()[0]
    assert children(tmp_path) == []
    assert capfd.readouterr() == ("", "")


async def test_a_file_that_is_no_model_is_an_engine_error(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF, not really")
    with pytest.raises(EngineError, match=r"model\.gguf"):
        async with LlamaCppEngine(path):
            pass


@pytest.mark.requirement("engine-context")
async def test_a_context_that_the_model_does_not_have_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="context"):
        async with small_model(context=10_000, slots=1):
            pass
