"""Own actors on a gateway that does not know their Protocols, and what hostile ones on the bus cannot do."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

import anyio
import pytest
from support.gateway import Running, running_gateway
from websockets.asyncio.client import connect as open_websocket

from ayllu.bus.bus import local_bus
from ayllu.bus.service import serve
from ayllu.bus.transport import Endpoint, ServiceInfo
from ayllu.client import connect
from ayllu.runtime.auth import TokenSpec, hash_of
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.own_operations import (
    KEEP_SECONDS,
    MOST_BYTES,
    MOST_BYTES_AT_ONCE,
    MOST_OPERATIONS,
    MOST_READ,
    AllOperations,
    OwnOperations,
    OwnTable,
)
from ayllu.runtime.own_routes import name_of, own_payload
from ayllu.runtime.session import select_form
from ayllu.schemas import (
    OPERATIONS,
    OWN_OPERATIONS,
    BusError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    OwnOperation,
    PermissionDenied,
    Unavailable,
    Wire,
    encode,
    operation_from,
    webmethod,
)


class Search(Wire, frozen=True):
    """What is searched for."""

    text: str
    stream: bool = False


def joined(parts: Sequence[str]) -> str:
    return "".join(parts)


class Library(Protocol):
    """Keeps books."""

    @webmethod(route="/library/count", method="GET")
    async def count(self, shelf: str, least: int = 0) -> int:
        """Count the books of a shelf."""
        ...

    @webmethod(route="/library/put")
    async def put(self, shelf: str, books: list[str]) -> int:
        """Put books on a shelf."""
        ...

    @webmethod(route="/library/search")
    async def search(self, request: Search) -> str:
        """Search."""
        ...

    @webmethod(route="/library/search", assemble=joined)
    def stream_search(self, request: Search) -> AsyncIterator[str]:
        """Search."""
        ...

    @webmethod(route="/library/list")
    def list(self, shelf: str) -> AsyncIterator[str]:
        """List the books of a shelf."""
        ...

    @webmethod(route="/library/wait", timeout=30)
    async def wait(self) -> None:
        """Wait for ever."""
        ...


class LibraryActor(Library):
    """Keeps books in memory."""

    def __init__(self) -> None:
        self.shelves: dict[str, list[str]] = {}
        self.waiting = anyio.Event()
        self.cancelled = anyio.Event()

    async def count(self, shelf: str, least: int = 0) -> int:
        if shelf not in self.shelves:
            raise NotFound(f"there is no shelf {shelf!r}")
        return max(least, len(self.shelves[shelf]))

    async def put(self, shelf: str, books: list[str]) -> int:
        self.shelves.setdefault(shelf, []).extend(books)
        return len(self.shelves[shelf])

    async def search(self, request: Search) -> str:
        return request.text

    async def stream_search(self, request: Search) -> AsyncIterator[str]:
        for letter in request.text:
            yield letter

    async def list(self, shelf: str) -> AsyncIterator[str]:
        for book in self.shelves[shelf]:
            yield book

    async def wait(self) -> None:
        self.waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.set()


async def rpc(gateway: Running, method: str, **members: Any) -> list[dict[str, Any]]:
    """Call a method on a websocket of its own, and return all frames that come."""
    async with open_websocket(gateway.websocket_url) as websocket:
        frame = {"jsonrpc": "2.0", "id": 1, "method": method, **members}
        await websocket.send(json.dumps(frame))
        frames = [json.loads(await websocket.recv())]
        while "id" not in frames[-1]:
            frames.append(json.loads(await websocket.recv()))
        return frames


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_websocket_methods() -> None:
    async with running_gateway(LibraryActor()) as gateway:
        # Looked for at the first call, known at the second.
        for count in (1, 2):
            [put] = await rpc(gateway, "library.put", params={"shelf": "a", "books": ["x"]})
            assert put["result"] == count
        library = gateway.stack.api(Library)
        assert await library.count("a", least=9) == 9
        assert [book async for book in library.list("a")] == ["x", "x"]
        events, end = await rpc(gateway, "library.search", params={"text": "ab", "stream": True})
        assert "".join(events["params"]["events"]) == "ab"
        assert end["result"] == "ab"
        with pytest.raises(NotFound, match="no shelf"):
            await library.count("b")
        [wrong] = await rpc(gateway, "library.count", params={"shelf": 1})
        assert wrong["error"]["data"]["code"] == "invalid_request"
        assert "$.shelf" in wrong["error"]["message"]
        [none] = await rpc(gateway, "library.count", params=[1])
        assert none["error"]["code"] == -32602
        [absent] = await rpc(gateway, "library.burn")
        assert absent["error"]["code"] == -32601


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_deadlines_and_cancels() -> None:
    actor = LibraryActor()
    async with running_gateway(actor) as gateway:
        [late] = await rpc(gateway, "library.wait", timeout=0.2)
        assert late["error"]["data"]["code"] == "deadline_exceeded"
        with anyio.fail_after(5):
            await actor.cancelled.wait()
        actor.waiting, actor.cancelled = anyio.Event(), anyio.Event()
        async with open_websocket(gateway.websocket_url) as websocket:
            await websocket.send('{"jsonrpc":"2.0","id":1,"method":"library.wait"}')
            await actor.waiting.wait()
            await websocket.send('{"jsonrpc":"2.0","method":"$/cancel","params":{"id":1}}')
            answer = json.loads(await websocket.recv())
            assert answer["error"]["data"]["code"] == "cancelled"
            await actor.cancelled.wait()
            # Before it has been found, too.
            await websocket.send('{"jsonrpc":"2.0","id":2,"method":"library.burn"}')
            await websocket.send('{"jsonrpc":"2.0","method":"$/cancel","params":{"id":2}}')
            assert json.loads(await websocket.recv())["id"] == 2
        with pytest.raises(DeadlineExceeded):
            async with connect(gateway.url, timeout=0.2) as stack:
                await stack.api(Library).wait()


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_http_routes() -> None:
    async with running_gateway(LibraryActor()) as gateway:
        http = gateway.http
        put = await http.post("/library/put", params={"shelf": "a"}, json=["x", "y"])
        assert (put.status_code, put.json()) == (200, 2)
        for verb, body in (("GET", None), ("POST", None), ("POST", {"least": 2})):
            count = await http.request(verb, "/library/count", params={"shelf": "a"}, json=body)
            assert count.json() == 2
        assert (await http.post("/library/count", json={"shelf": "a"})).json() == 2
        assert (await http.get("/library/count/?shelf=a&least=7")).json() == 7
        listed = await http.post("/library/list?shelf=a")
        assert listed.headers["content-type"] == "application/jsonl"
        assert listed.text == '"x"\n"y"\n'
        streamed = await http.post("/library/search", json={"text": "ab", "stream": True})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.text == 'data: "a"\n\ndata: "b"\n\nevent: result\ndata: "ab"\n\n'
        assert (await http.post("/library/search", json={"text": "ab"})).json() == "ab"
        for path, status in (
            ("/library/count?shelf=b", 404),
            ("/library/count?shelf=a&least=x", 400),
            ("/library/count?shelf=a&other=1", 400),
            ("/library/count?shelf=a&shelf=a", 400),
            ("/library/burn", 404),
            ("/library.count?shelf=a", 404),
        ):
            reply = await http.get(path)
            assert reply.status_code == status, path
            assert reply.json()["error"]["message"]
        assert (await http.delete("/library/count?shelf=a")).status_code == 405
        assert (await http.get("/library/put?shelf=a")).status_code == 405
        slow = await http.post("/library/wait", headers={"Ayllu-Timeout": "0.1"})
        assert slow.status_code == 504


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_one_that_is_gone_may_come_back_and_may_have_changed() -> None:
    async with running_gateway() as gateway, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def run(actor: object, *, task_status: anyio.abc.TaskStatus[None]) -> None:
            nonlocal scope
            with anyio.CancelScope() as scope:
                await serve(gateway.bus, actor, task_status=task_status)

        await tasks.start(run, LibraryActor())
        library = gateway.stack.api(Library)
        assert await library.put("a", ["x"]) == 1
        scope.cancel()
        with anyio.fail_after(5):
            while await gateway.bus.transport.discover("LibraryActor"):
                await anyio.lowlevel.checkpoint()
        with pytest.raises(Unavailable) as caught:
            await library.put("a", ["x"])
        assert caught.value.info.retryable
        await tasks.start(run, LibraryActor())
        assert await library.put("a", ["x"]) == 1
        tasks.cancel_scope.cancel()


def token(name: str, *scopes: str) -> TokenSpec:
    return TokenSpec(name, hash_of(name), list(scopes))


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-scopes")
async def test_scopes() -> None:
    config = GatewayConfig(
        tokens=[token("all", "*"), token("books", "Library"), token("no", "Models")]
    )
    async with running_gateway(LibraryActor(), config=config, token="all") as gateway:
        asked = 0
        discover = gateway.bus.transport.discover

        async def counted(name: str, *, wait: float = 0.25) -> list[ServiceInfo]:
            nonlocal asked
            asked += not name
            return await discover(name, wait=wait)

        gateway.bus.transport.discover = counted  # type: ignore[method-assign]
        for header in ({"Authorization": "Bearer wrong"}, {"Authorization": "none"}):
            reply = await gateway.http.post("/library/search", json={"text": "a"}, headers=header)
            assert reply.status_code == 401
        assert asked == 0
        assert await gateway.stack.api(Library).search(Search(text="a")) == "a"
        for holder, status in (("books", 200), ("no", 403)):
            header = {"Authorization": f"Bearer {holder}"}
            reply = await gateway.http.post("/library/search", json={"text": "a"}, headers=header)
            assert reply.status_code == status
        async with connect(gateway.url, token="no") as stack:
            with pytest.raises(PermissionDenied, match="Library"):
                await stack.api(Library).search(Search(text="a"))
        assert asked == 1


@pytest.mark.requirement("own-actor-scopes")
def test_a_whole_form_that_another_api_announces_does_not_lead_to_the_streamed_one() -> None:
    """Over HTTP the scope of the whole form is asked for, whichever one is called."""
    streamed = operation_from(own("bells.ring.stream", api="Bells", kind="stream"))
    for api, chosen in (("Bells", "bells.ring.stream"), ("Evil", "bells.ring")):
        whole = operation_from(own("bells.ring", api=api))
        table = {one.name: one for one in (whole, streamed)}
        form = select_form(table, whole, whole.read(b'{"stream": true}'))
        assert (form.name, form.api) == (chosen, api)


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-hostile")
async def test_unknown_names_do_not_hammer_the_bus() -> None:
    async with running_gateway(LibraryActor()) as gateway:
        asked = 0
        discover = gateway.bus.transport.discover

        async def counted(name: str, *, wait: float = 0.25) -> list[ServiceInfo]:
            nonlocal asked
            asked += 1
            return await discover(name, wait=wait)

        gateway.bus.transport.discover = counted  # type: ignore[method-assign]
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(rpc, gateway, f"library.n{number}")
                tasks.start_soon(gateway.http.post, f"/library/n{number}")
        for name in ("models.x", "a..b", "library.*", "x" * 200, "evil name", "a\r\nPUB b 0"):
            [answer] = await rpc(gateway, name)
            assert answer["error"]["code"] == -32601
        assert asked <= 1 + (anyio.current_time() - began)
        page = (await gateway.http.get("/metrics")).text
        assert "library.n" not in page
        assert "library.put" not in page


def announced(
    *operations: OwnOperation, name: str = "own", text: str = "", id_: str = ""
) -> ServiceInfo:
    endpoints = [
        Endpoint(f"e{number}", f"ayllu.v1.op.{one.name}", name)
        for number, one in enumerate(operations)
    ]
    metadata = {OWN_OPERATIONS: text or encode(list(operations)).decode()}
    return ServiceInfo(name, "1.0.0", metadata=metadata, endpoints=endpoints, id=id_ or name)


def own(name: str, **fields: Any) -> OwnOperation:
    return OwnOperation(name, **{"api": "Own", "kind": "unary", **fields})


@pytest.mark.requirement("own-actor-hostile")
def test_what_stands_in_the_place_of_ours_or_elsewhere_is_not_served() -> None:
    table = OwnTable(OPERATIONS)
    elsewhere = announced(own("a.b"))
    table.take(
        [
            announced(
                own("completion.smollm2"), own("models"), own("a.ok"), own("a.c", api="Inference")
            ),
            ServiceInfo("x", "1.0.0", metadata={**elsewhere.metadata}, id="x"),
            announced(own("a.d"), text="{"),
            announced(own("a.e"), text='[{"name":"a.e"}]'),
            announced(own("a.f"), text='["' + "x" * MOST_BYTES + '"]'),
        ],
        0,
    )
    assert list(table) == ["a.ok"]
    assert table.may_have("a.other")
    assert not table.may_have("completion.other")


@pytest.mark.requirement("own-actor-hostile")
def test_an_operation_stays_what_it_is_while_one_of_its_actors_lives() -> None:
    table = OwnTable({})
    good, bad = own("a.b"), own("a.b", api="Evil", kind="stream")
    table.take([announced(good, id_="5")], 0)
    known = table.get("a.b")
    table.take([announced(bad, id_="1"), announced(good, id_="5")], 1)
    assert table.get("a.b") == known
    # It may have been missed: who calls needs the same scope as before, for as long as the name is known.
    table.take([announced(bad, id_="1")], 2)
    table.take([announced(bad, id_="1")], 1 + KEEP_SECONDS)
    assert table.get("a.b") == known
    table.take([announced(bad, id_="1")], 2 + KEEP_SECONDS)
    assert table.get("a.b") == (bad, operation_from(bad))
    # Who begins to look when both are there serves neither.
    late = OwnTable({})
    late.take([announced(bad, id_="1"), announced(good, id_="5")], 0)
    assert late.get("a.b") is None
    late.take([announced(good, id_="5")], 1)
    assert late.get("a.b") == known
    # What has the same scope may change at once.
    newer = own("a.b", api="Evil", timeout=1.0)
    table.take([announced(newer), announced(good, id_="5")], 3 + KEEP_SECONDS)
    assert table.get("a.b") == (newer, operation_from(newer))


@pytest.mark.requirement("own-actor-hostile")
def test_who_announces_very_much_does_not_hold_up_the_gateway() -> None:
    flood = [
        ServiceInfo(
            "Flood",
            "1.0.0",
            metadata={
                OWN_OPERATIONS: encode([own(f"s{service}.n{n}") for n in range(100)]).decode()
            },
            id=f"flood-{service}",
        )
        for service in range(MOST_READ // 100)
    ]
    table = OwnTable(OPERATIONS)
    began = time.process_time()
    table.take([announced(own("first.read")), *flood, announced(own("not.read"))], 0)
    assert time.process_time() - began < 1  # It takes a tenth of it.
    assert list(table) == ["first.read"]


@pytest.mark.requirement("own-actor-hostile")
def test_so_many_are_known_and_those_that_are_gone_make_room() -> None:
    table = OwnTable({})
    table.take([announced(*(own(f"old.n{number}") for number in range(60)))], 0)
    table.take([announced(*(own(f"new.n{number}") for number in range(99)))], 1)
    assert len(table) == MOST_OPERATIONS
    assert sum(name.startswith("new.") for name in table) == 99
    live = announced(*(own(f"new.n{number}") for number in range(99)))
    table.take([live, announced(own("more.a"), own("more.b"), name="more")], 2)
    assert (table.get("more.a") is None, table.get("more.b") is None) == (False, True)
    assert len(table) == MOST_OPERATIONS
    table.take([live], 2 + KEEP_SECONDS)
    assert len(table) == 100
    table.take([live], 3 + KEEP_SECONDS)
    assert len(table) == 99
    padding = " " * (MOST_BYTES - 1000)
    texts = [announced(own(f"late.n{number}"), name=f"s{number}") for number in range(20)]
    table = OwnTable({})
    table.take(
        [
            announced(own(f"late.n{n}"), name=f"s{n}", text=one.metadata[OWN_OPERATIONS] + padding)
            for n, one in enumerate(texts)
        ],
        0,
    )
    assert len(table) == MOST_BYTES_AT_ONCE // (MOST_BYTES - 900)


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-hostile")
async def test_hostile_actors_on_the_bus() -> None:
    """They describe what they like, and answer what they like; clients get errors, or JSON."""
    async with running_gateway(LibraryActor()) as gateway, AsyncExitStack() as stack:
        impostor = announced(own("library.search", kind="list", api="Evil"), name="Impostor")
        flood = announced(*(own(f"flood.n{number}") for number in range(500)), name="Flood")
        shadow = announced(own("shapes.shout", kind="stream"), own("livez"), name="Shadow")
        for service in (flood, shadow):
            await stack.enter_async_context(gateway.bus.transport.announce(service, lambda _: None))
        assert await gateway.stack.api(Library).search(Search(text="a")) == "a"
        assert await gateway.shapes.shout("x") == "X"
        assert (await gateway.http.get("/livez")).json() == {"live": True}
        # It describes what is known already in another way; the first one stays.
        await stack.enter_async_context(
            gateway.bus.transport.announce(
                ServiceInfo("Impostor", "1.0.0", metadata=impostor.metadata), lambda _: None
            )
        )
        asked = anyio.Event()
        discover = gateway.bus.transport.discover

        async def noted(name: str, *, wait: float = 0.25) -> list[ServiceInfo]:
            asked.set()
            return await discover(name, wait=wait)

        gateway.bus.transport.discover = noted  # type: ignore[method-assign]
        while not asked.is_set():  # What is known is fresh for a second.
            [absent] = await rpc(gateway, "library.burn")
            assert absent["error"]["code"] == -32601
        reply = await gateway.http.post("/library/search", json={"text": "a"})
        assert reply.headers["content-type"] == "application/json"


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_a_bus_that_does_not_answer_is_no_missing_operation() -> None:
    class Lost:
        async def discover(self, _: str) -> list[ServiceInfo]:
            raise BusError("the bus is gone")

    class Bus:
        transport = Lost()

    operations = OwnOperations(Bus(), OPERATIONS)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(Unavailable):
            await operations.find("own.do")
    assert await operations.find("models.x") is None


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_what_has_changed_is_learnt_while_it_is_used() -> None:
    with anyio.fail_after(10):
        async with local_bus() as bus, anyio.create_task_group() as tasks:
            known = OwnOperations(bus, OPERATIONS, refresh=0)
            everything = AllOperations(OPERATIONS, known)
            assert len(everything) == len(list(everything)) == len(OPERATIONS)
            assert everything["models"] is OPERATIONS["models"]
            tasks.start_soon(known.run)
            async with bus.transport.announce(announced(own("a.b")), lambda _: None):
                assert "a.b" not in everything
                await known.find("a.b")
                assert everything["a.b"].kind == "unary"
            changed = announced(own("a.b", kind="stream"))
            async with bus.transport.announce(changed, lambda _: None):
                while everything["a.b"].kind == "unary":
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()


@pytest.mark.requirement("own-actor-called")
@pytest.mark.parametrize(
    ("query", "body", "payload"),
    [
        ([], b"", {}),
        (
            [("text", "5"), ("number", "5"), ("on", "true")],
            b"",
            {"text": "5", "number": 5, "on": True},
        ),
        ([("number", "x")], b"", {"number": "x"}),
        ([("number", "[" * 100_000)], b"", {"number": "[" * 100_000}),
        ([], b'{"a":1}', {"a": 1}),
        ([("text", "x")], b'{"a":1}', {"text": "x", "a": 1}),
    ],
)
def test_what_an_http_request_means(
    query: list[tuple[str, str]], body: bytes, payload: Mapping[str, Any]
) -> None:
    described = own("a.b", query={"text": "text", "number": "json", "on": "json"})
    assert json.loads(own_payload(described, query, body)) == payload


@pytest.mark.requirement("own-actor-called")
def test_a_parameter_may_be_the_body() -> None:
    described = own("a.b", body="items", query={"text": "text"})
    assert json.loads(own_payload(described, [("text", "x")], b"[1]")) == {
        "text": "x",
        "items": [1],
    }
    assert json.loads(own_payload(described, [], b"")) == {}
    for query, body in (([], b"["), ([("items", "1")], b""), ([("text", "x")] * 2, b"")):
        with pytest.raises(InvalidRequest):
            own_payload(described, query, body)
    with pytest.raises(InvalidRequest, match="and in the body"):
        own_payload(own("a.b", query={"x": "text"}), [("x", "1")], b'{"x":1}')
    assert [name_of(path) for path in ("/a/b/", "/", "/a.b", "/favicon.ico")] == ["a.b", "", "", ""]
