"""The AsyncAPI document is valid for AsyncAPI's own parser, and it covers bus and websocket."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Protocol

import pytest
from support.node import INSTALL_SECONDS, node_with_packages

from ayllu import schemas as s
from ayllu.schemas.asyncapi import asyncapi_document

TOOL = Path(__file__).parent.parent / "tools" / "asyncapi"
VALIDATE_SECONDS = 90

DOCUMENT = asyncapi_document(s.OPERATIONS)
NAMES = list(s.OPERATIONS)


@pytest.fixture(scope="session")
def node() -> str:
    """Return node, beside an installed parser."""
    return node_with_packages(TOOL)


def validate(node: str, document: dict[str, Any]) -> tuple[bool, list[dict[str, Any]]]:
    """Return whether the parser took a document, and the errors that it found."""
    done = subprocess.run(
        [node, str(TOOL / "validate.mjs")],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        timeout=VALIDATE_SECONDS,
        check=True,
    )
    result = json.loads(done.stdout)
    return result["parsed"], [found for found in result["diagnostics"] if found["severity"] == 0]


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS + VALIDATE_SECONDS)
@pytest.mark.requirement("asyncapi-valid")
def test_the_document_is_valid(node: str) -> None:
    assert validate(node, DOCUMENT) == (True, [])


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_SECONDS + VALIDATE_SECONDS)
@pytest.mark.requirement("asyncapi-valid")
def test_the_validator_notices_a_mistake(node: str) -> None:
    # A small one: the whole takes ten times as long.
    document = asyncapi_document({"models": s.OPERATIONS["models"]})
    assert validate(node, document) == (True, [])
    operations = {**document["operations"]}
    operations["websocket.cancel"] = {**operations["websocket.cancel"], "action": "guess"}
    _, errors = validate(node, {**document, "operations": operations})
    assert errors


def resolve(reference: dict[str, str]) -> Any:
    """Return what a reference inside the document stands for."""
    found: Any = DOCUMENT
    for part in reference["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


@pytest.mark.requirement("asyncapi-operations")
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_on_the_bus(name: str) -> None:
    operation, described = s.OPERATIONS[name], DOCUMENT["operations"][f"bus.{name}"]
    channel = resolve(described["channel"])
    model = ".{model}" if operation.routed_by else ""
    assert channel["address"] == f"ayllu.v1.op.{name}{model}"
    (request,) = map(resolve, described["messages"])
    assert request["payload"] == {"$ref": f"#/components/schemas/{operation.input.__name__}"}
    assert "Ayllu-Exchange" in request["headers"]["properties"]
    kinds = [message["$ref"].rpartition("/")[2] for message in described["reply"]["messages"]]
    assert kinds == (["reply", "error"] if operation.kind == "unary" else ["reply", "end", "error"])


@pytest.mark.requirement("asyncapi-operations")
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_on_the_websocket(name: str) -> None:
    operation, described = s.OPERATIONS[name], DOCUMENT["operations"][f"websocket.{name}"]
    (call,) = map(resolve, described["messages"])
    payload = call["payload"]
    assert payload["properties"]["method"] == {"const": name}
    assert payload["properties"]["jsonrpc"] == {"const": "2.0"}
    assert "timeout" not in payload["required"]
    assert ("params" in payload["required"]) is bool(operation.input.__struct_fields__)
    replies = [resolve(message) for message in described["reply"]["messages"]]
    assert len(replies) == (2 if operation.kind == "unary" else 3)


@pytest.mark.requirement("asyncapi-operations")
@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("completion", {"$ref": "#/components/schemas/CompletionResponse"}),
        ("completion.stream", {"$ref": "#/components/schemas/CompletionResponse"}),
        ("datasets.create", {"type": "null"}),
    ],
)
def test_a_call_ends_in_its_whole_reply(name: str, result: dict[str, Any]) -> None:
    message = DOCUMENT["channels"]["websocket"]["messages"][f"{name}.result"]
    assert message["payload"]["properties"]["result"] == result


@pytest.mark.requirement("asyncapi-operations")
@pytest.mark.parametrize("name", ["models", "batch_completion", "post_training.job.logs"])
def test_a_list_ends_in_the_count_of_its_items(name: str) -> None:
    message = DOCUMENT["channels"]["websocket"]["messages"][f"{name}.result"]
    assert set(message["payload"]["properties"]["result"]["properties"]) == {"count"}


@pytest.mark.requirement("asyncapi-exchange")
def test_the_frames_of_the_exchange_are_described() -> None:
    exchange, control = DOCUMENT["channels"]["exchange"], DOCUMENT["channels"]["control"]
    assert set(exchange["messages"]) == {"accept", "data", "bundle", "claim", "heartbeat", "end"}
    assert set(control["messages"]) == {"cancel", "credit"}
    end = exchange["messages"]["end"]["payload"]
    assert (set(end["properties"]), end["required"]) == (
        {"count", "error", "result", "claim"},
        ["count"],
    )


class Discriminated(s.Wire, frozen=True):
    """A value with a field of that name."""

    discriminator: int


class Own(Protocol):
    """An own API."""

    @s.webmethod(route="/own")
    async def own(self, request: Discriminated) -> None: ...


@pytest.mark.requirement("asyncapi-valid")
def test_a_field_called_discriminator_stays() -> None:
    own = asyncapi_document(s.table_of([Own]))["components"]["schemas"]
    assert "discriminator" in own["Discriminated"]["properties"]
    ours = DOCUMENT["components"]["schemas"]
    assert "discriminator" not in ours["AgenticSystemTurn"]["properties"]["steps"]["items"]
