"""The AsyncAPI 3.0 document of a table of operations: what travels on the NATS bus and over the websocket.

It describes ayllu, so what a client sends is an operation with the action ``receive``. docs/protocol.md is the same in prose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ErrorInfo
from .openapi import DESCRIPTION, VERSION, Json, Schemas, tags
from .webmethod import STREAM_SUFFIX, Operation

TITLE = "ayllu: the Llama Stack draft on a NATS bus and over a websocket"

_ID: Json = {"type": ["string", "number"], "description": "Chosen by the client, for each call."}
_COUNT: Json = {
    "type": "integer",
    "minimum": 0,
    "description": "How many data frames were sent so far.",
}
_REQUEST_HEADERS: Json = {
    "type": "object",
    "properties": {
        "Ayllu-Exchange": {
            "enum": ["1", "2"],
            "description": "Answer with the frames of the exchange, with 2 also in bundles; without it, a plain NATS "
            "request gets one reply, and a stream sends each event as one message and then an empty one.",
        },
        "Ayllu-Timeout": {"type": "string", "description": "The deadline, in seconds from now."},
        "Ayllu-Claim": {
            "const": "1",
            "description": "The payload is a reference to the request in the object store.",
        },
        "traceparent": {"type": "string", "description": "The W3C trace context."},
    },
}
_ERROR_HEADERS: Json = {
    "type": "object",
    "properties": {
        "Nats-Service-Error-Code": {"type": "string", "description": "The HTTP status."},
        "Nats-Service-Error": {"type": "string", "description": "The error's code."},
    },
    "required": ["Nats-Service-Error-Code", "Nats-Service-Error"],
}
_END_HEADERS: Json = {
    "type": "object",
    "properties": {"Ayllu-End": {"const": "1"}},
    "required": ["Ayllu-End"],
}


def asyncapi_document(operations: Mapping[str, Operation]) -> Json:
    """Return the AsyncAPI 3.0 document of a table of operations, as plain JSON values."""
    table = list(operations.values())
    outputs = [operation.output for operation in table if operation.output is not None]
    schemas = Schemas([*(operation.input for operation in table), *outputs, ErrorInfo])
    channels: Json = {"exchange": _exchange(), "control": _control()}
    described: Json = {
        "exchange": _action(
            "send", "exchange", ["accept", "data", "bundle", "claim", "heartbeat", "end"]
        ),
        "control": _action("receive", "control", ["cancel", "credit"]),
    }
    for operation in table:
        channels |= _bus_channels(operation, schemas)
        described[f"bus.{operation.name}"] = _bus_operation(operation)
    channels["websocket"] = _websocket(table, schemas)
    for operation in table:
        described[f"websocket.{operation.name}"] = _websocket_operation(operation)
    described["websocket.cancel"] = _action("receive", "websocket", ["cancel"])
    components = {"schemas": dict(sorted(schemas.components.items()))}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": TITLE,
            "version": VERSION,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0"},
            "tags": tags(table),
        },
        "defaultContentType": "application/json",
        "servers": _SERVERS,
        "channels": _without_discriminators(channels),
        "operations": described,
        "components": _without_discriminators(components),
    }


_SERVERS: Json = {
    "bus": {
        "host": "{address}",
        "protocol": "nats",
        "description": "The NATS server or cluster. Payloads are JSON.",
        "variables": {"address": {"default": "localhost:4222"}},
    },
    "gateway": {
        "host": "{address}",
        "pathname": "/ws",
        "protocol": "ws",
        "description": "JSON-RPC 2.0, one object a text frame; many calls may run at once.",
        "variables": {"address": {"default": "localhost"}},
    },
}


def _ref(*parts: str) -> Json:
    return {"$ref": "#/" + "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)}


def _object(properties: Json, optional: Iterable[str] = ()) -> Json:
    required = [name for name in properties if name not in set(optional)]
    return {"type": "object", "properties": properties, "required": required}


def _error_body() -> Json:
    return _object({"error": _ref("components", "schemas", "ErrorInfo")})


def _action(action: str, channel: str, messages: Iterable[str]) -> Json:
    return {
        "action": action,
        "channel": _ref("channels", channel),
        "messages": [_ref("channels", channel, "messages", name) for name in messages],
    }


def _reply(channel: str, messages: Iterable[str]) -> Json:
    described = _action("send", channel, messages)
    del described["action"]
    return described


def _exchange() -> Json:
    end = {
        "count": _COUNT,
        "error": _ref("components", "schemas", "ErrorInfo"),
        "result": {"description": "The whole reply of a stream that has one."},
        "claim": {"description": "A reference to that reply, where it is too large."},
    }
    control = {
        "type": "string",
        "description": "The subject on which the responder hears the caller.",
    }
    return {
        "address": "{inbox}.{kind}",
        "servers": [_ref("servers", "bus")],
        "description": "The frames that answer a request with the header `Ayllu-Exchange`: one accept, data frames (or "
        "claims in their place), a heartbeat every second, one end. Silence means that the responder died.",
        "parameters": {
            "inbox": {"description": "The reply subject of the request."},
            "kind": {
                "enum": ["a", "d", "c", "h", "e", "b"],
                "description": "Accept, data, claim, heartbeat, end, bundle.",
            },
        },
        "messages": {
            "accept": {
                "summary": "`a`: the call was taken.",
                "payload": _object({"control": control}),
            },
            "data": {"summary": "`d`: one event, item or reply.", "payload": {}},
            "bundle": {
                "summary": "`b`: data frames of several calls, one line each: the call's name, a space, the event. Its "
                "inbox ends in `.0`.",
                "payload": {"type": "string"},
            },
            "claim": {
                "summary": "`c`: a reference to an event that is too large for a message, in the object store.",
                "payload": {"type": "object"},
            },
            "heartbeat": {"summary": "`h`", "payload": _object({"count": _COUNT})},
            "end": {
                "summary": "`e`: the last frame; with an error, the call failed.",
                "payload": _object(end, optional=["error", "result", "claim"]),
            },
        },
    }


def _control() -> Json:
    received = {
        "type": "integer",
        "minimum": 0,
        "description": "How many data frames the caller has taken; at most 256 more are sent.",
    }
    return {
        "address": None,
        "servers": [_ref("servers", "bus")],
        "description": "What the caller tells the responder, on the subject of the accept frame.",
        "messages": {
            "cancel": {"payload": _object({"cancel": {"const": True}})},
            "credit": {"payload": _object({"received": received})},
        },
    }


def _bus_channels(operation: Operation, schemas: Schemas) -> Json:
    """Return the channel of an operation's requests, and that of its plain replies."""
    bus = [_ref("servers", "bus")]
    request: Json = {
        "address": operation.subject,
        "servers": bus,
        "messages": {
            "request": {"headers": _REQUEST_HEADERS, "payload": schemas.of(operation.input)}
        },
    }
    if operation.routed_by:
        request["address"] += ".{model}"
        request["parameters"] = {
            "model": {
                "description": f"The request's `{operation.routed_by}` as one token: letters, digits and `-` as they "
                "are, every other byte of its UTF-8 as `=XX`."
            }
        }
    messages: Json = {
        "reply": {"payload": _output(operation, schemas)},
        "error": {"headers": _ERROR_HEADERS, "payload": _error_body()},
    }
    if operation.kind != "unary":
        messages["end"] = {
            "summary": "The stream has ended; the payload is empty.",
            "headers": _END_HEADERS,
        }
    reply = {"address": None, "servers": bus, "messages": messages}
    return {operation.name: request, f"{operation.name}.reply": reply}


def _bus_operation(operation: Operation) -> Json:
    messages = ["reply", "error"] if operation.kind == "unary" else ["reply", "end", "error"]
    return {
        **_action("receive", operation.name, ["request"]),
        "summary": operation.summary,
        "tags": [{"name": operation.api}],
        "reply": _reply(f"{operation.name}.reply", messages),
    }


def _websocket(table: list[Operation], schemas: Schemas) -> Json:
    messages: Json = {
        "cancel": {
            "summary": "Cancel a call; it ends in the error `cancelled`.",
            "payload": _rpc({"method": {"const": "$/cancel"}, "params": _object({"id": _ID})}),
        },
        "error": {
            "summary": "A call failed, or a frame could not be understood (then `id` may be null).",
            "payload": _rpc({"id": {"type": ["string", "number", "null"]}, "error": _RPC_ERROR}),
        },
    }
    outputs = {operation.name: operation.output for operation in table}
    for operation in table:
        call = {
            "id": _ID,
            "method": {"const": operation.name},
            "params": schemas.of(operation.input),
            "timeout": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds."},
        }
        optional = ["params", "timeout"] if not operation.input.__struct_fields__ else ["timeout"]
        messages[f"{operation.name}.call"] = {"payload": _rpc(call, optional)}
        if operation.kind != "unary":
            messages[f"{operation.name}.event"] = {"payload": _event(operation, schemas)}
        result = _result(operation, outputs, schemas)
        messages[f"{operation.name}.result"] = {"payload": _rpc({"id": _ID, "result": result})}
    return {"address": "/", "servers": [_ref("servers", "gateway")], "messages": messages}


_RPC_ERROR = _object(
    {
        "code": {
            "enum": [-32700, -32600, -32601, -32602, -32000],
            "description": "JSON-RPC's own; -32000 is every other error, which `data` tells apart.",
        },
        "message": {"type": "string"},
        "data": _ref("components", "schemas", "ErrorInfo"),
    }
)


def _rpc(properties: Json, optional: Iterable[str] = ()) -> Json:
    return _object({"jsonrpc": {"const": "2.0"}, **properties}, optional)


def _event(operation: Operation, schemas: Schemas) -> Json:
    params = {
        "id": _ID,
        "index": {"type": "integer", "minimum": 0, "description": "That of the first event."},
        "events": {"type": "array", "items": _output(operation, schemas)},
    }
    return _rpc({"method": {"const": "event"}, "params": _object(params)})


def _result(operation: Operation, outputs: Mapping[str, Any], schemas: Schemas) -> Json:
    """Return the schema of what ends a call: the whole reply, or for lists and logs how many events there were."""
    whole = outputs.get(operation.base_name) if operation.name.endswith(STREAM_SUFFIX) else None
    if whole is not None:
        return schemas.of(whole)
    if operation.kind == "unary":
        return _output(operation, schemas)
    return _object({"count": {"type": "integer", "minimum": 0}})


def _websocket_operation(operation: Operation) -> Json:
    name = operation.name
    events = [] if operation.kind == "unary" else [f"{name}.event"]
    return {
        **_action("receive", "websocket", [f"{name}.call"]),
        "summary": operation.summary,
        "tags": [{"name": operation.api}],
        "reply": _reply("websocket", [*events, f"{name}.result", "error"]),
    }


def _output(operation: Operation, schemas: Schemas) -> Json:
    return {"type": "null"} if operation.output is None else schemas.of(operation.output)


def _without_discriminators(value: Any) -> Any:
    """Drop what OpenAPI and AsyncAPI spell differently; the tag of each variant says the same."""
    if isinstance(value, dict):
        return {
            key: _without_discriminators(item)
            for key, item in value.items()
            if not (key == "discriminator" and "mapping" in item)
        }
    if isinstance(value, list):
        return [_without_discriminators(item) for item in value]
    return value
