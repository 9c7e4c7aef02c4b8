"""A server that hangs, breaks off, talks nonsense, is overloaded, or refuses: what the engine `openai` makes of it."""

from __future__ import annotations

import logging
from contextlib import aclosing
from email.utils import formatdate

import anyio
import pytest
from support.engines import GREEDY, answer, user
from support.openai_double import (
    ANSWER,
    END,
    EVENTS,
    Act,
    answering,
    chunked,
    dropping,
    finished,
    hanging,
    running_double,
    sending,
    streaming,
    text,
)

from ayllu.actors.engines.engine import Delta, Generation
from ayllu.actors.engines.openai.engine import OpenAIEngine
from ayllu.actors.engines.openai.sse import MAX_EVENT_BYTES
from ayllu.schemas import (
    AylluError,
    EngineDead,
    EngineError,
    InvalidRequest,
    Overloaded,
    StopReason,
)

pytestmark = pytest.mark.asyncio

KEY = "sk-secret-0123456789"
HI = user("Hi")
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
GENERATION = Generation(GREEDY)


async def failure(engine: OpenAIEngine) -> AylluError:
    """Return the error that a generation ends in."""
    with pytest.raises(AylluError) as caught:
        await answer(engine, HI)
    assert engine.running == 0
    assert "127.0.0.1" not in str(caught.value.info)
    return caught.value


async def read_then_fail(engine: OpenAIEngine) -> tuple[list[Delta], AylluError]:
    found: list[Delta] = []
    with pytest.raises(AylluError) as caught:
        async with aclosing(engine.generate(HI, GENERATION)) as deltas:
            async for delta in deltas:
                found.append(delta)
    assert engine.running == 0
    return found, caught.value


@pytest.mark.requirement("upstream-stream")
async def test_an_answer_is_streamed_over_one_connection() -> None:
    async with running_double(streaming(*ANSWER)) as double, double.engine(key=KEY) as engine:
        for _ in range(3):
            whole = await answer(engine, HI)
            assert whole.text == "Hello"
            assert whole.last == Delta(
                stop_reason=StopReason.finished_ok, prompt_tokens=7, completion_tokens=2
            )
        assert double.connections == 1
        assert {asked.headers["authorization"] for asked in double.asked} == {f"Bearer {KEY}"}


@pytest.mark.requirement("upstream-stream")
async def test_there_are_no_more_connections_than_slots() -> None:
    async with running_double(streaming(*ANSWER)) as double, double.engine(slots=2) as engine:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(answer, engine, HI)
        assert len(double.asked) == 8
        assert double.connections <= 2


@pytest.mark.requirement("upstream-cancel")
@pytest.mark.parametrize(
    "act", [hanging(headers=False), hanging(), hanging(ROLE), hanging(text("Hel"))]
)
async def test_a_cancel_closes_the_connection(act: Act) -> None:
    async with running_double(act) as double, double.engine() as engine:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer, engine, HI)
            await double.hanging.wait()
            tasks.cancel_scope.cancel()
        assert engine.running == 0
        await double.closed.wait()


@pytest.mark.requirement("upstream-cancel")
async def test_closing_the_generator_closes_the_connection() -> None:
    async with running_double(hanging(text("Hel"))) as double, double.engine() as engine:
        deltas = engine.generate(HI, GENERATION)
        assert (await anext(deltas)).text == "Hel"
        await deltas.aclose()
        assert engine.running == 0
        await double.closed.wait()


@pytest.mark.requirement("upstream-timeouts")
@pytest.mark.parametrize("act", [hanging(headers=False), hanging(), hanging(ROLE)])
async def test_an_answer_that_does_not_begin_in_time_is_given_up(act: Act) -> None:
    async with (
        running_double(act) as double,
        double.engine(first_token_seconds=0.3, idle_seconds=9, retries=5) as engine,
    ):
        error = await failure(engine)
        assert (type(error), error.retryable) == (EngineError, True)
        assert "silent" in error.message
        # The limit is for all tries together.
        assert len(double.asked) == 1
        await double.closed.wait()


@pytest.mark.requirement("upstream-timeouts")
async def test_silence_in_an_answer_is_given_up() -> None:
    async with (
        running_double(hanging(text("Hel"))) as double,
        double.engine(idle_seconds=0.3) as engine,
    ):
        found, error = await read_then_fail(engine)
        assert [delta.text for delta in found] == ["Hel"]
        assert (type(error), error.retryable) == (EngineError, True)
        assert len(double.asked) == 1
        await double.closed.wait()


@pytest.mark.requirement("upstream-faults")
@pytest.mark.parametrize(
    "act",
    [
        dropping(text("Hel")),
        dropping(text("Hel"), end=END),
        dropping(text("Hel"), b"[DONE]", end=END),
        dropping(text("Hel"), end=b"ff\r\ndata: {"),
    ],
)
async def test_an_answer_that_breaks_off_is_not_asked_for_again(act: Act) -> None:
    async with running_double(act) as double, double.engine() as engine:
        found, error = await read_then_fail(engine)
        assert [delta.text for delta in found] == ["Hel"]
        assert (type(error), error.retryable) == (EngineError, True)
        assert "in the middle" in error.message
        assert len(double.asked) == 1


@pytest.mark.requirement("upstream-faults")
@pytest.mark.parametrize("end", [b"", END])
async def test_a_whole_answer_stands_whatever_becomes_of_its_connection(end: bytes) -> None:
    act = dropping(text("Hel"), text("lo"), finished("length"), end=end)
    async with running_double(act) as double, double.engine() as engine:
        whole = await answer(engine, HI)
        assert whole.text == "Hello"
        # The server did not count.
        assert whole.last == Delta(stop_reason=StopReason.max_tokens, completion_tokens=2)


@pytest.mark.requirement("upstream-faults")
async def test_the_end_of_a_response_is_not_waited_for() -> None:
    async with running_double(hanging(*ANSWER)) as double, double.engine() as engine:
        assert (await answer(engine, HI)).text == "Hello"
        await double.closed.wait()


@pytest.mark.requirement("upstream-retries")
@pytest.mark.parametrize(
    "act",
    [
        answering(500, {"error": {"message": "boom"}}),
        answering(503, "loading"),
        answering(429, "later", "Retry-After: 0\r\n"),
        dropping(headers=False),
        dropping(),
        dropping(ROLE),
        streaming({"error": {"message": "boom", "code": 500}}),
    ],
)
async def test_what_fails_before_the_answer_is_asked_again(act: Act) -> None:
    async with running_double(act, act, streaming(*ANSWER)) as double:
        async with double.engine(retries=2) as engine:
            assert (await answer(engine, HI)).text == "Hello"
            assert len(double.asked) == 3
            assert double.asked[0] == double.asked[2]


@pytest.mark.requirement("upstream-retries")
async def test_what_fails_for_ever_is_an_error() -> None:
    async with running_double(answering(500, {"error": {"message": "boom"}})) as double:
        async with double.engine(retries=1) as engine:
            error = await failure(engine)
            assert (type(error), error.retryable) == (EngineError, True)
            assert "boom" in error.message
            assert len(double.asked) == 2


@pytest.mark.requirement("upstream-retries")
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("wait", ["60", formatdate(4102444800, usegmt=True)])
async def test_a_server_that_asks_for_patience_is_overloaded(status: int, wait: str) -> None:
    act = answering(status, {"error": {"message": "slow down"}}, f"Retry-After: {wait}\r\n")
    async with running_double(act) as double, double.engine() as engine:
        error = await failure(engine)
        assert type(error) is Overloaded
        assert error.details["retry_after"] == (60 if wait == "60" else 3600)
        assert len(double.asked) == 1


@pytest.mark.requirement("upstream-retries")
async def test_there_is_no_try_that_would_come_too_late() -> None:
    act = answering(429, "later", "Retry-After: 2\r\n")
    async with running_double(act) as double, double.engine(first_token_seconds=1) as engine:
        assert type(await failure(engine)) is Overloaded
        assert len(double.asked) == 1


@pytest.mark.requirement("upstream-retries")
async def test_a_pause_can_be_cancelled() -> None:
    act = answering(429, "later", "Retry-After: 4\r\n")
    async with running_double(act) as double, double.engine(slots=1) as engine:
        with anyio.move_on_after(0.3) as scope:
            await answer(engine, HI)
        assert scope.cancelled_caught
        assert len(double.asked) == 1
        assert engine.running == 0


@pytest.mark.requirement("upstream-faults")
async def test_a_server_that_is_away_at_the_start_is_only_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running_double(streaming(*ANSWER)) as double:
        url = double.url
    async with OpenAIEngine(url, "m") as engine:
        assert url in caplog.text
        error = await failure(engine)
    assert (type(error), error.retryable) == (EngineError, True)
    assert "cannot be reached" in error.message


@pytest.mark.requirement("upstream-faults")
@pytest.mark.parametrize(
    "act",
    [
        streaming(b"<html>"),
        streaming(b"[1, 2]"),
        streaming({"choices": [{"delta": {"content": 5}}]}),
        sending(EVENTS + chunked(b"data: " + b"x" * (MAX_EVENT_BYTES + 1))),
        answering(200, "<html>"),
        answering(200, {"choices": []}),
        answering(302, "", "Location: http://example.com\r\n"),
        sending(EVENTS.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + chunked(b"x")),
    ],
)
async def test_nonsense_is_an_error_and_not_asked_for_again(act: Act) -> None:
    async with running_double(act) as double, double.engine() as engine:
        error = await failure(engine)
        assert (type(error), error.retryable) == (EngineError, False)
        assert len(double.asked) == 1


@pytest.mark.requirement("upstream-faults")
@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 99999]
)
async def test_what_is_not_http_is_an_error(data: bytes) -> None:
    async with running_double(sending(data)) as double, double.engine(retries=0) as engine:
        assert type(await failure(engine)) is EngineError


@pytest.mark.requirement("upstream-faults")
async def test_an_error_within_the_answer_ends_it() -> None:
    broken = {"error": {"message": "the GPU is on fire", "type": "server_error", "code": 500}}
    async with running_double(streaming(text("Hel"), broken)) as double, double.engine() as engine:
        found, error = await read_then_fail(engine)
        assert [delta.text for delta in found] == ["Hel"]
        assert (type(error), error.retryable) == (EngineError, True)
        assert "on fire" in error.message
        assert len(double.asked) == 1


@pytest.mark.requirement("upstream-faults")
async def test_a_refused_request_is_the_callers() -> None:
    act = answering(400, {"error": {"message": "no such template"}})
    async with running_double(act) as double, double.engine() as engine:
        error = await failure(engine)
        assert type(error) is InvalidRequest
        assert "no such template" in error.message
        # The connection is not lost by it.
        await failure(engine)
        assert double.connections == 1


@pytest.mark.requirement("upstream-key")
@pytest.mark.parametrize("status", [400, 401, 403, 429, 500])
async def test_a_key_is_told_to_nobody(caplog: pytest.LogCaptureFixture, status: int) -> None:
    caplog.set_level(logging.DEBUG)
    act = answering(status, {"error": {"message": f"wrong key {KEY}! " * 20, "code": KEY}})
    async with running_double(act) as double, double.engine(key=KEY, retries=1) as engine:
        error = await failure(engine)
        assert double.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error.info)
    assert KEY not in caplog.text
    if status in (401, 403):
        assert "key" in error.message
        assert "wrong" not in error.message
    assert len(error.message) < 400


@pytest.mark.requirement("upstream-start")
async def test_a_wrong_key_is_found_out_at_the_start() -> None:
    async with running_double(models=answering(401, f"who is {KEY}?")) as double:
        with pytest.raises(EngineError, match="refuses our key"):
            async with double.engine(key=KEY):
                pass


@pytest.mark.requirement("upstream-start")
async def test_a_model_that_the_server_lacks_is_found_out_at_the_start() -> None:
    async with running_double(models=["a", "b"]) as double:
        with pytest.raises(EngineError, match="'mine', but a, b"):
            async with double.engine(model="mine"):
                pass
        async with double.engine(model="b"):
            pass


@pytest.mark.requirement("upstream-start")
@pytest.mark.parametrize(
    "act",
    [
        answering(404, "no such thing"),
        answering(403, "not with this key"),
        answering(500, "boom"),
        answering(200, "[1"),
        answering(200, {"data": None}),
        dropping(headers=False),
    ],
)
async def test_a_server_need_not_tell_its_models(act: Act) -> None:
    async with running_double(streaming(*ANSWER), models=act) as double:
        async with double.engine() as engine:
            assert (await answer(engine, HI)).text == "Hello"


@pytest.mark.requirement("engine-dead")
async def test_closing_the_engine_ends_every_wait() -> None:
    async def use(engine: OpenAIEngine) -> None:
        with pytest.raises(EngineDead):
            await answer(engine, HI)

    hangs, later = hanging(text("Hel")), answering(429, "later", "Retry-After: 5\r\n")
    async with running_double(hangs, later, hanging(headers=False)) as double:
        engine, begun = double.engine(slots=3), 0.0
        async with anyio.create_task_group() as tasks:
            async with engine:
                # One that is not read, one that pauses, one that waits for its answer, one that waits for a slot.
                unread = engine.generate(HI, GENERATION)
                assert (await anext(unread)).text == "Hel"
                double.hanging = anyio.Event()
                for _ in range(3):
                    tasks.start_soon(use, engine)
                await double.hanging.wait()
                begun = anyio.current_time()
            await double.closed.wait()
            with pytest.raises(EngineDead):
                await anext(unread)
        assert anyio.current_time() - begun < 3
        assert engine.running == 0
        await use(engine)
