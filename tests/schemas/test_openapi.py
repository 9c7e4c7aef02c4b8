"""The OpenAPI document is valid, and it says what the draft's own one said."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, Protocol

import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from ayllu import schemas as s
from ayllu.schemas.html import openapi_html
from ayllu.schemas.openapi import openapi_document, to_yaml

DOCUMENT = openapi_document(s.OPERATIONS)
FORMS = list(s.OPERATIONS.values())


class Item(s.Wire, frozen=True):
    """An item, with <b>markup</b> in its `description`."""

    name: str


class Bare(s.Wire, frozen=True):
    text: str


class Shop(Protocol):
    """Sell & buy."""

    @s.webmethod(route="/<script>/find", method="GET")
    def find(self, name: str, limit: int = 10) -> AsyncIterator[Item]: ...

    @s.webmethod(route="/shop/price", method="POST")
    async def price(self, names: list[str] | None = None) -> dict[str, float]: ...

    @s.webmethod(route="/shop/bare")
    async def bare(self, request: Bare) -> None: ...


class Market(Protocol):
    @s.webmethod(route="/market/price")
    async def price(self) -> None: ...


OWN = openapi_document(s.table_of([Shop, Market]))


def response(route: str, verb: str = "post") -> dict[str, Any]:
    """Return the content of the good response, by media type."""
    content: dict[str, Any] = DOCUMENT["paths"][route][verb]["responses"]["200"]["content"]
    return content


@pytest.mark.requirement("openapi-valid")
@pytest.mark.parametrize("document", [DOCUMENT, OWN], ids=["ours", "own"])
def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


@pytest.mark.requirement("openapi-valid")
def test_the_yaml_is_the_document_without_aliases() -> None:
    text = to_yaml(DOCUMENT)
    assert yaml.safe_load(text) == DOCUMENT
    assert not re.search(r"[&*]id\d+", text)


@pytest.mark.requirement("openapi-title")
def test_title_and_version_are_the_drafts() -> None:
    info = DOCUMENT["info"]
    assert (info["title"], info["version"]) == ("[DRAFT] Llama Stack Specification", "0.0.1")
    assert "ayllu" in info["description"]


@pytest.mark.requirement("openapi-operations")
@pytest.mark.parametrize("operation", FORMS, ids=lambda operation: operation.name)
def test_every_operation_stands_on_its_route(operation: s.Operation) -> None:
    described = DOCUMENT["paths"][operation.route][operation.verb.lower()]
    assert described["operationId"] == operation.operation_id
    assert described["tags"] == [operation.api]
    query = [parameter["name"] for parameter in described.get("parameters", [])]
    assert query == [parameter.name for parameter in operation.parameters if parameter.in_query]
    assert described["responses"]["default"] == {"$ref": "#/components/responses/Error"}


@pytest.mark.requirement("openapi-operations")
def test_there_is_nothing_else() -> None:
    found = {(route, verb) for route, verbs in DOCUMENT["paths"].items() for verb in verbs}
    assert found == {(operation.route, operation.verb.lower()) for operation in FORMS}
    assert {tag["name"] for tag in DOCUMENT["tags"]} == {operation.api for operation in FORMS}


@pytest.mark.requirement("spec-streamed-forms")
def test_both_forms_share_one_route() -> None:
    assert response("/chat_completion") == {
        "application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletionResponse"}},
        "text/event-stream": {
            "schema": {"$ref": "#/components/schemas/ChatCompletionResponseStreamChunk"}
        },
    }


@pytest.mark.requirement("openapi-operations")
@pytest.mark.parametrize(
    ("route", "verb", "media", "schema"),
    [
        (
            "/batch_completion",
            "post",
            "application/jsonl",
            {"$ref": "#/components/schemas/CompletionResponse"},
        ),
        (
            "/post_training/job/logs",
            "get",
            "text/event-stream",
            {"$ref": "#/components/schemas/PostTrainingJobLogStream"},
        ),
        ("/datasets/create", "post", "application/json", {"type": "null"}),
        (
            "/datasets/get",
            "get",
            "application/json",
            {"$ref": "#/components/schemas/Dataset"},
        ),
    ],
)
def test_a_response_has_its_media_type(
    route: str, verb: str, media: str, schema: dict[str, Any]
) -> None:
    assert response(route, verb) == {media: {"schema": schema}}


@pytest.mark.requirement("spec-query-and-body")
def test_the_composite_parameter_is_the_body() -> None:
    described = DOCUMENT["paths"]["/memory_banks/create"]["post"]
    assert [parameter["name"] for parameter in described["parameters"]] == [
        "bank_uuid",
        "bank_name",
        "embedding_model",
        "chunk_size",
        "chunk_overlap",
    ]
    assert described["requestBody"] == {
        "content": {
            "application/json": {
                "schema": {
                    "type": "array",
                    "items": {"$ref": "#/components/schemas/MemoryBankDocument"},
                }
            }
        },
        "required": True,
    }
    assert "requestBody" not in DOCUMENT["paths"]["/datasets/get"]["get"]
    ids = DOCUMENT["paths"]["/memory_bank/get"]["post"]["requestBody"]["content"]
    assert ids["application/json"]["schema"] == {"type": "array", "items": {"type": "string"}}


def test_an_optional_parameter_has_its_default() -> None:
    name, limit = OWN["paths"]["/<script>/find"]["get"]["parameters"]
    assert (name["required"], limit["required"]) == (True, False)
    assert limit["schema"] == {"type": "integer", "default": 10}
    assert OWN["paths"]["/shop/price"]["post"]["requestBody"]["required"] is False


@pytest.mark.requirement("own-actors")
def test_own_operations_of_one_last_name_and_protocols_without_a_docstring_are_told_apart() -> None:
    ids = {OWN["paths"][route]["post"]["operationId"] for route in ("/shop/price", "/market/price")}
    assert ids == {"shop_price", "market_price"}
    assert OWN["tags"] == [
        {"name": "Shop", "description": "Sell & buy."},
        {"name": "Market", "description": ""},
    ]


@pytest.mark.requirement("error-codes")
def test_all_error_codes_are_listed_with_their_status() -> None:
    text = DOCUMENT["components"]["schemas"]["ErrorInfo"]["description"]
    for code, cls in s.error_codes().items():
        assert f"`{code}` (HTTP {cls.http_status}" in text


@pytest.mark.requirement("openapi-operations")
def test_every_component_is_described() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema.get("description"), name
        assert "\n    " not in schema["description"], name


PAGE = openapi_html(DOCUMENT)


@pytest.mark.requirement("openapi-page")
def test_the_page_needs_no_network_and_no_script() -> None:
    assert "<script" not in PAGE
    assert "<link" not in PAGE
    assert not re.search(r"(src|href)=\"(?!#)", PAGE)
    assert "url(" not in PAGE
    assert "prefers-color-scheme: dark" in PAGE


@pytest.mark.requirement("openapi-page")
def test_every_link_of_the_page_leads_somewhere() -> None:
    anchors = re.findall(r' id="([^"]+)"', PAGE)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r'href="#([^"]+)"', PAGE)) <= set(anchors)


@pytest.mark.requirement("openapi-page")
def test_the_page_shows_everything() -> None:
    for route, verbs in DOCUMENT["paths"].items():
        assert f"<code>{route}</code>" in PAGE
        for operation in verbs.values():
            assert f"<code>{operation['operationId']}</code>" in PAGE
    for name in DOCUMENT["components"]["schemas"]:
        assert f'id="schema-{name}"' in PAGE


@pytest.mark.requirement("openapi-page")
def test_the_page_escapes_what_others_wrote() -> None:
    page = openapi_html(OWN)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;markup&lt;/b&gt; in its <code>description</code>" in page
    assert "Sell &amp; buy." in page
    assert "Default: <code>10</code>." in page
