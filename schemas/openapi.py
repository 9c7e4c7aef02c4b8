"""The OpenAPI 3.1 document of a table of operations: what HTTP clients may rely on.

Descriptions come from the docstrings of classes and from `msgspec.Meta`; nothing is parsed out of a docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .errors import ErrorInfo, error_codes
from .webmethod import NoParameters, Operation, Parameter

Json = dict[str, Any]

TITLE = "[DRAFT] Llama Stack Specification"
VERSION = "0.0.1"
DESCRIPTION = (
    "This is the specification of the llama stack that provides a set of endpoints and their "
    "corresponding interfaces that are tailored to best leverage Llama Models. The specification "
    "is still in draft and subject to change.\n\n"
    "This document describes ayllu's implementation of that draft. A request that is valid under "
    "the draft is valid here; the fields and operations that ayllu adds are optional, and "
    "docs/spec-notes.md lists them.\n\n"
    "The gateway also answers OpenAI's clients, under `/v1/`. Those paths are OpenAI's and are described by its own "
    "document; docs/openai.md says which fields of it are honoured."
)
_SSE_ASKED = "With `stream` in the request, the response is streamed. "
_SSE = (
    "Server-sent events: each unnamed event is one chunk; an event named `error` holds "
    "what an error response holds, and ends the stream."
)
_LINES = (
    "One JSON document a line; the schema is that of one line. A list that fails on the way ends "
    "in a line that holds what an error response holds."
)
_SSE_RESULT = " An event named `result` at the end holds the whole response."


class Schemas:
    """The JSON schemas of many types, which share their components."""

    def __init__(self, types: Iterable[Any]) -> None:
        """Describe types, `ErrorInfo` among them; `of` knows these and no others."""
        known = list(dict.fromkeys(types))
        schemas, components = msgspec.json.schema_components(
            known, ref_template="#/components/schemas/{name}"
        )
        self._schemas = dict(zip(known, schemas, strict=True))
        self.components: Json = components
        for component in components.values():
            if "description" in component:
                component["description"] = inspect.cleandoc(component["description"])
        _describe_errors(components["ErrorInfo"])

    def of(self, type_: Any) -> Json:
        """Return the schema of a type: a reference, where it is a component."""
        return dict(self._schemas[type_])


def _describe_errors(schema: Json) -> None:
    """Add the list of all error codes to the schema of `ErrorInfo`."""
    codes = "\n".join(
        f"- `{code}` (HTTP {cls.http_status}{', retryable' if cls.retryable else ''}): "
        f"{inspect.getdoc(cls)}"
        for code, cls in sorted(error_codes().items())
    )
    schema["description"] += (
        f"\n\nThe codes, to which newer servers and other actors may add:\n\n{codes}"
    )


def openapi_document(operations: Mapping[str, Operation]) -> Json:
    """Return the OpenAPI 3.1 document of a table of operations, as plain JSON values."""
    table = list(operations.values())
    schemas = Schemas([*(type_ for op in table for type_ in _http_types(op)), ErrorInfo])
    routes: dict[tuple[str, str], list[Operation]] = {}
    for operation in table:
        routes.setdefault((operation.route, operation.verb.lower()), []).append(operation)
    paths: dict[str, Json] = {}
    for (route, verb), forms in routes.items():
        paths.setdefault(route, {})[verb] = _operation(forms, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The gateway that serves this document."}],
        "tags": tags(table),
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": {"Error": _error_response(schemas)},
        },
    }


def to_yaml(document: Json) -> str:
    """Return a document as YAML in the order of its keys; needs PyYAML, of the extra ``local``."""
    import yaml  # the contract itself, and the client, need no PyYAML

    # Through JSON, since the values that stand at several places would become anchors and aliases.
    plain = msgspec.json.decode(msgspec.json.encode(document))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
    return text


def tags(operations: Iterable[Operation]) -> list[Json]:
    """Return one tag for each API, described by the docstrings of its Protocols."""
    protocols: dict[str, dict[type, None]] = {}
    for operation in operations:
        protocols.setdefault(operation.api, {})[operation.protocol] = None
    # Not `inspect.getdoc`, which would find that of `typing.Protocol` where there is none.
    return [
        {
            "name": api,
            "description": "\n\n".join(
                inspect.cleandoc(cls.__doc__) for cls in found if cls.__doc__
            ),
        }
        for api, found in protocols.items()
    ]


def _http_types(operation: Operation) -> list[Any]:
    inputs = [parameter.type for parameter in operation.parameters] or [operation.input]
    if inputs == [NoParameters]:
        inputs = []
    return inputs if operation.output is None else [*inputs, operation.output]


def _operation(forms: list[Operation], schemas: Schemas) -> Json:
    """Describe one route and verb: an operation, with its streamed form where it has one."""
    whole = forms[0]
    described: Json = {
        "tags": [whole.api],
        "operationId": whole.operation_id,
        "summary": whole.summary,
    }
    parameters = [_parameter(whole, parameter, schemas) for parameter in whole.parameters]
    if any(parameters):
        described["parameters"] = [parameter for parameter in parameters if parameter]
    body = _body(whole)
    if body is not None:
        schema, required = schemas.of(body.type), body.required
        described["requestBody"] = {
            "content": {"application/json": {"schema": schema}},
            "required": required,
        }
    described["responses"] = {
        "200": _response(forms, schemas),
        "default": {"$ref": "#/components/responses/Error"},
    }
    return described


def _parameter(operation: Operation, parameter: Parameter, schemas: Schemas) -> Json:
    if not parameter.in_query:
        return {}
    schema = schemas.of(parameter.type)
    if not parameter.required:
        schema["default"] = msgspec.to_builtins(_default_of(operation, parameter.name))
    return {
        "name": parameter.name,
        "in": "query",
        "required": parameter.required,
        "schema": schema,
    }


def _default_of(operation: Operation, name: str) -> Any:
    """Return the default of an optional parameter."""
    fields = {field.name: field for field in msgspec.structs.fields(operation.input)}
    return fields[name].default


def _body(operation: Operation) -> Parameter | None:
    if not operation.parameters and operation.input is not NoParameters:
        return Parameter("request", operation.input, required=True, in_query=False)
    return next((found for found in operation.parameters if not found.in_query), None)


def _response(forms: list[Operation], schemas: Schemas) -> Json:
    content: dict[str, Json] = {}
    sentences = []
    for form in forms:
        schema = {"type": "null"} if form.output is None else schemas.of(form.output)
        if form.kind == "stream":
            content["text/event-stream"] = {"schema": schema}
            sentences.append(_SSE if len(forms) == 1 else _SSE_ASKED + _SSE + _SSE_RESULT)
        elif form.kind == "list":
            content["application/jsonl"] = {"schema": schema}
            sentences.append(_LINES)
        else:
            content["application/json"] = {"schema": schema}
            sentences.append("OK." if form.output is None else "The whole response.")
    return {"description": " ".join(sentences), "content": content}


def _error_response(schemas: Schemas) -> Json:
    schema = {
        "type": "object",
        "properties": {"error": schemas.of(ErrorInfo)},
        "required": ["error"],
    }
    return {
        "description": "The call failed; the status is the one of the error's code.",
        "content": {"application/json": {"schema": schema}},
    }
