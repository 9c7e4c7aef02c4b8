"""Who may talk: tokens, scopes, hosts, origins and TLS; first without a socket, then on real ones."""

from __future__ import annotations

import os
import ssl
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
import trustme
from support.gateway import running_gateway
from support.processes import AYLLU, run_ayllu
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from ayllu.client import connect
from ayllu.runtime.auth import (
    Caller,
    TokenSpec,
    caller_of,
    hash_of,
    host_allowed,
    new_token,
    origin_allowed,
    presented_token,
)
from ayllu.runtime.config import Config, GatewayConfig, load_config
from ayllu.runtime.supervisor import open_listener, url_of
from ayllu.schemas import (
    OPERATIONS,
    BusError,
    InvalidRequest,
    Models,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    operations_of,
)

NOW = datetime(2027, 1, 1, tzinfo=UTC)
GOOD, NARROW, OLD = new_token(), new_token(), new_token()
TOKENS = [
    TokenSpec("alice", hash_of(GOOD), ["*"]),
    TokenSpec("bob", hash_of(NARROW), ["Models"]),
    TokenSpec("carol", hash_of(OLD), ["*"], NOW - timedelta(days=3650)),
]
CONFIG = GatewayConfig(tokens=TOKENS)
DIGEST = hash_of("a")


@pytest.mark.requirement("tokens")
def test_a_token_has_a_caller() -> None:
    assert caller_of(TOKENS, GOOD, NOW).name == "alice"
    for wrong in (None, "", GOOD[:-1], GOOD + "x", hash_of(GOOD), OLD):
        with pytest.raises(Unauthenticated):
            caller_of(TOKENS, wrong, NOW)


@pytest.mark.requirement("tokens")
def test_scopes_and_expiry_are_checked_for_each_call() -> None:
    completion, [models] = OPERATIONS["completion"], operations_of(Models)
    caller = Caller("bob", frozenset({"Models"}), NOW)
    before = NOW - timedelta(seconds=1)
    caller.check(models, before)
    with pytest.raises(PermissionDenied):
        caller.check(completion, before)
    with pytest.raises(Unauthenticated):
        caller.check(models, NOW)
    Caller("127.0.0.1").check(completion, NOW)


@pytest.mark.requirement("tokens")
@pytest.mark.parametrize(
    ("authorization", "subprotocols", "found"),
    [
        (None, [], None),
        ("Bearer abc", [], "abc"),
        ("bearer  abc ", [], "abc"),
        ("Basic abc", ["bearer.x"], None),
        ("Bearer abc", ["bearer.x"], "abc"),
        (None, ["ayllu.v1", "bearer.x"], "x"),
        (None, ["bearer"], None),
    ],
)
def test_where_a_token_stands(
    authorization: str | None, subprotocols: list[str], found: str | None
) -> None:
    assert presented_token(authorization, subprotocols) == found


@pytest.mark.requirement("host-and-origin")
@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("localhost.", True),
        ("127.0.0.1:8321", True),
        ("[::1]:8321", True),
        ("10.0.0.7", True),
        ("gateway.example:443", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost:80:evil", False),
        ("[::1].evil", False),
        ("", False),
        ("[", False),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:
    assert host_allowed(host, ["Gateway.example"]) is allowed


@pytest.mark.requirement("host-and-origin")
@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:8321", True),
        ("http://LOCALHOST:8321", True),
        ("https://app.example", True),
        ("http://app.example", False),
        ("http://localhost:8322", False),
        ("http://localhost", False),
        ("null", False),
        ("", False),
        ("http://[", False),
    ],
)
def test_origins(origin: str | None, allowed: bool) -> None:
    assert origin_allowed(origin, "localhost:8321", ["https://app.example"]) is allowed


@pytest.mark.requirement("tokens")
def test_the_command_makes_an_entry_that_the_configuration_takes(tmp_path: Path) -> None:
    done = run_ayllu("token", "al", "--scopes", "Models", "Inference", "--expires", "2999-01-01")
    token = done.stderr.splitlines()[-1]
    file = tmp_path / "ayllu.toml"
    file.write_text(done.stdout)
    [spec] = load_config(file).gateway.tokens
    assert caller_of([spec], token, NOW).scopes == {"Models", "Inference"}
    assert spec.expires == datetime(2999, 1, 1, tzinfo=UTC)
    assert token not in done.stdout
    for expires in ("2020-01-01", "soon"):
        assert run_ayllu("token", "al", "--expires", expires).returncode == 2


@pytest.mark.requirement("tokens")
@pytest.mark.parametrize(
    "text",
    [
        f'tokens = [{{name = "a", sha256 = "{DIGEST}", scopes = ["Inferense"]}}]',
        f'tokens = [{{name = "a", sha256 = "{DIGEST}", scopes = ["no name"]}}]',
        'tokens = [{name = "a", sha256 = "a secret as it is", scopes = ["*"]}]',
        f'tokens = [{{name = "a", sha256 = "{DIGEST}"}}]',
        f'tokens = [{{name = "a", sha256 = "{DIGEST}", scopes = [], expires = 2027-01-01}}]',
        f"""tokens = [
            {{name = "a", sha256 = "{DIGEST}", scopes = []}},
            {{name = "a", sha256 = "{hash_of("b")}", scopes = []}},
        ]""",
        'certfile = "x.pem"',
        'allowed_origins = ["*"]',
    ],
)
def test_wrong_configurations_are_refused(tmp_path: Path, text: str) -> None:
    assert tomllib.loads(text)
    file = tmp_path / "ayllu.toml"
    file.write_text(f"[gateway]\n{text}\n")
    with pytest.raises(InvalidRequest):
        load_config(file)


@pytest.mark.requirement("loopback-or-tokens")
def test_other_addresses_need_tokens() -> None:
    with pytest.raises(PermissionDenied):
        open_listener("0.0.0.0", 0)
    with open_listener("0.0.0.0", 0, authenticated=True) as listener:
        assert url_of(listener, tls=True).startswith("https://0.0.0.0:")
        fd = listener.fileno()
        os.set_inheritable(fd, True)
        command = [
            AYLLU,
            "worker",
            "gateway",
            "--bus",
            "nats://127.0.0.1:1",
            "--listen-fd",
            str(fd),
        ]
        done = subprocess.run(command, pass_fds=[fd], capture_output=True, check=False)
        assert (done.returncode, b"gateway.tokens" in done.stderr) == (1, True)


@pytest.mark.requirement("tokens")
@pytest.mark.asyncio
async def test_http_needs_a_token() -> None:
    async with running_gateway(config=CONFIG, token=GOOD) as gateway:
        assert (await gateway.http.post("/shapes/shout?text=a")).json() == "A"
        assert (await gateway.http.get("/metrics")).status_code == 200
        for token, status, code in [
            ("wrong", 401, "unauthenticated"),
            (OLD, 401, "unauthenticated"),
            (NARROW, 403, "permission_denied"),
        ]:
            headers = {"Authorization": f"Bearer {token}"}
            reply = await gateway.http.post("/shapes/shout?text=a", headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
            assert token not in reply.text
        none = {"Authorization": ""}
        reply = await gateway.http.post(f"/shapes/shout?text=a&token={GOOD}", headers=none)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert (await gateway.http.get("/metrics", headers=none)).status_code == 401
        for public in ("/openapi.yaml", "/livez"):
            assert (await gateway.http.get(public, headers=none)).status_code == 200


@pytest.mark.requirement("tokens")
@pytest.mark.asyncio
async def test_the_websocket_needs_a_token() -> None:
    async with running_gateway(config=CONFIG, token=GOOD) as gateway:
        assert await gateway.shapes.shout("a") == "A"
        for refused in (None, "wrong", OLD):
            with pytest.raises(Unauthenticated):
                async with connect(gateway.url, token=refused):
                    pass
        async with connect(gateway.url, token=NARROW) as stack:
            with pytest.raises(PermissionDenied):
                await stack.datasets.get(dataset_id="x")
        offered = [Subprotocol("ayllu.v1"), Subprotocol(f"bearer.{GOOD}")]
        async with open_websocket(gateway.websocket_url, subprotocols=offered) as websocket:
            assert websocket.subprotocol == "ayllu.v1"
        with pytest.raises(InvalidStatus):
            async with open_websocket(f"{gateway.websocket_url}?token={GOOD}"):
                pass


@pytest.mark.requirement("tokens")
@pytest.mark.asyncio
async def test_expiry_ends_open_connections() -> None:
    expires = datetime.now(UTC) + timedelta(seconds=1)
    config = GatewayConfig(tokens=[TokenSpec("brief", hash_of(GOOD), ["*"], expires)])
    shout = '{"jsonrpc":"2.0","id":1,"method":"shapes.shout","params":{"text":"a"}}'
    hang = '{"jsonrpc":"2.0","id":2,"method":"shapes.hang","params":{}}'
    async with running_gateway(config=config, token=GOOD) as gateway:
        headers = {"Authorization": f"Bearer {GOOD}"}
        url = gateway.websocket_url
        async with open_websocket(url, additional_headers=headers) as websocket:
            await websocket.send(shout)
            assert '"A"' in str(await websocket.recv())
            await websocket.send(hang)
            with pytest.raises(ConnectionClosed) as closed:
                await websocket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401
        await gateway.actor.idle.wait()
        with pytest.raises(Unauthenticated):
            await gateway.shapes.shout("a")
        # The next call may still be lost with the connection, and says so.
        with pytest.raises((Unauthenticated, BusError)):
            await gateway.shapes.shout("a")
        with pytest.raises(Unauthenticated):
            await gateway.shapes.shout("a")


@pytest.mark.requirement("host-and-origin")
@pytest.mark.asyncio
async def test_foreign_hosts_and_origins_are_turned_away() -> None:
    async with running_gateway() as gateway:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            reply = await gateway.http.post("/shapes/shout?text=a", headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "permission_denied")
            assert (await gateway.http.get("/openapi.yaml", headers=headers)).status_code == 403
        with pytest.raises(InvalidStatus) as refused:
            async with open_websocket(gateway.websocket_url, origin=Origin("https://evil.example")):
                pass
        assert refused.value.response.status_code == 403
        async with open_websocket(gateway.websocket_url, origin=Origin(gateway.url)):
            pass
        reply = await gateway.http.post("/shapes/shout?text=a", headers={"Origin": gateway.url})
        assert reply.json() == "A"
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.requirement("host-and-origin")
@pytest.mark.asyncio
async def test_pages_of_allowed_origins_may_call() -> None:
    page = "https://app.example"
    config = GatewayConfig(allowed_origins=[page], allowed_hosts=["gateway.example"], tokens=TOKENS)
    async with running_gateway(config=config, token=GOOD) as gateway:
        headers = {"Origin": page, "Host": "gateway.example:8321"}
        reply = await gateway.http.post("/shapes/shout?text=a", headers=headers)
        assert reply.headers["access-control-allow-origin"] == page
        asks = {
            **headers,
            "Authorization": "",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        preflight = await gateway.http.options("/shapes/shout", headers=asks)
        assert preflight.status_code == 200
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()


@pytest.mark.requirement("tls")
@pytest.mark.asyncio
async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key, trusted = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(trusted)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    config = GatewayConfig(certfile=str(chain), keyfile=str(key))
    async with running_gateway(config=config) as gateway:
        assert gateway.url.startswith("https://")
        assert await gateway.shapes.shout("a") == "A"
        port = int(gateway.url.rpartition(":")[2])
        context = ssl.create_default_context(cafile=str(trusted))
        async with await anyio.connect_tcp(
            "127.0.0.1", port, ssl_context=context, tls_standard_compatible=False
        ) as stream:
            await stream.send(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 200")
    wrong = GatewayConfig(certfile=str(chain), keyfile=str(trusted))
    with pytest.RaisesGroup(InvalidRequest, flatten_subgroups=True):
        async with running_gateway(config=wrong):
            pass


@pytest.mark.requirement("limits-of-callers")
@pytest.mark.asyncio
async def test_calls_in_flight_are_counted_by_token() -> None:
    config = GatewayConfig(tokens=TOKENS, max_calls_per_caller=1)
    async with (
        running_gateway(config=config, token=GOOD) as gateway,
        anyio.create_task_group() as t,
    ):
        t.start_soon(gateway.shapes.hang)
        await gateway.actor.started.wait()
        reply = await gateway.http.post("/shapes/shout?text=a")
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "overloaded")
        async with connect(gateway.url, token=GOOD) as other:
            with pytest.raises(Overloaded):
                await other.datasets.get(dataset_id="x")
        t.cancel_scope.cancel()


@pytest.mark.requirement("limits-of-callers")
@pytest.mark.asyncio
async def test_calls_in_a_second_are_counted() -> None:
    async with running_gateway(config=GatewayConfig(calls_per_second=0.01)) as gateway:
        assert await gateway.shapes.shout("a") == "A"
        with pytest.raises(Overloaded) as refused:
            await gateway.shapes.shout("a")
        assert 90 < refused.value.details["retry_after"] <= 100
        reply = await gateway.http.post("/shapes/shout?text=a")
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "overloaded")
        assert 90 < int(reply.headers["retry-after"]) <= 100


def test_by_default_everything_is_open_on_loopback() -> None:
    assert Config().gateway.tokens == []
