"""A reference page of an OpenAPI document: one file that needs no network and no script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

Json = dict[str, Any]

_CONSTRAINTS = {
    "minimum": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
    "minLength": "length ≥",
    "pattern": "matches",
    "contentEncoding": "encoded as",
    "format": "format",
}


def openapi_html(document: Json) -> str:
    """Return the reference page of an OpenAPI document as `openapi_document` makes it."""
    info = document["info"]
    title = escape(info["title"])
    style = files(__package__).joinpath("openapi.css").read_text(encoding="utf-8")
    schemas = document["components"]["schemas"]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<nav aria-label="Contents">
{_contents(document)}
</nav>
<main>
<h1>{title} <span class="soft">{escape(info["version"])}</span></h1>
{_text(info["description"])}
{_sections(document)}
<section>
<h2 id="errors">Errors</h2>
{_response(document["components"]["responses"]["Error"], schemas)}
</section>
<section>
<h2 id="schemas">Schemas</h2>
{_lines(_schema_article(name, schema, schemas) for name, schema in schemas.items())}
</section>
</main>
</body>
</html>
"""


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


def _inline(text: str) -> str:
    """Escape a text; what stands between backticks becomes code."""
    return re.sub(r"(``?)([^`]+)\1", r"<code>\2</code>", escape(text))


def _text(text: str) -> str:
    return f'<p class="text">{_inline(text)}</p>'


def _operations(document: Json, tag: str) -> list[tuple[str, str, Json]]:
    return [
        (verb, route, operation)
        for route, verbs in document["paths"].items()
        for verb, operation in verbs.items()
        if tag in operation["tags"]
    ]


def _verb(verb: str) -> str:
    return f'<span class="verb {escape(verb)}">{escape(verb.upper())}</span>'


def _anchor(verb: str, route: str) -> str:
    """The id of an operation: the draft's own operationIds are unique, those of others need not be."""
    return escape(f"{verb}{route}".replace("/", "-"))


def _contents(document: Json) -> str:
    parts = []
    for tag in document["tags"]:
        parts.append(
            f'<h2><a href="#api-{escape(tag["name"])}">{escape(tag["name"])}</a></h2>\n<ul>'
        )
        parts += [
            f'<li><a href="#{_anchor(verb, route)}"><code>{escape(route)}</code></a></li>'
            for verb, route, _ in _operations(document, tag["name"])
        ]
        parts.append("</ul>")
    parts.append(
        '<h2><a href="#errors">Errors</a></h2>\n<h2><a href="#schemas">Schemas</a></h2>\n<ul>'
    )
    parts += [f"<li>{_link(name)}</li>" for name in document["components"]["schemas"]]
    return _lines([*parts, "</ul>"])


def _sections(document: Json) -> str:
    schemas = document["components"]["schemas"]
    return _lines(
        f'<section>\n<h2 id="api-{escape(tag["name"])}">{escape(tag["name"])}</h2>\n{_text(tag["description"])}\n'
        + _lines(_operation(*found, schemas) for found in _operations(document, tag["name"]))
        + "\n</section>"
        for tag in document["tags"]
    )


def _operation(verb: str, route: str, operation: Json, schemas: Json) -> str:
    parts = [
        f'<article id="{_anchor(verb, route)}">',
        f"<h3>{_verb(verb)} <code>{escape(route)}</code></h3>",
        _text(operation["summary"]),
        f'<p class="soft">operationId <code>{escape(operation["operationId"])}</code></p>',
    ]
    if "parameters" in operation:
        rows = [
            (parameter["name"], parameter["required"], parameter["schema"])
            for parameter in operation["parameters"]
        ]
        parts.append(f"<h4>Query parameters</h4>\n{_table(rows)}")
    if "requestBody" in operation:
        body = _content(operation["requestBody"]["content"], schemas)
        parts.append(f"<h4>Request body</h4>\n{body}")
    parts.append(f"<h4>Response 200</h4>\n{_response(operation['responses']['200'], schemas)}")
    parts.append(
        '<p class="soft">Any other status: <a href="#errors">an error</a>.</p>\n</article>'
    )
    return _lines(parts)


def _response(response: Json, schemas: Json) -> str:
    return f"{_text(response['description'])}\n{_content(response['content'], schemas)}"


def _content(content: Json, schemas: Json) -> str:
    return _lines(_media(media, found["schema"], schemas) for media, found in content.items())


def _media(media: str, schema: Json, schemas: Json) -> str:
    line = f"<code>{escape(media)}</code> {_type(schema)}"
    fields = _fields(schema, schemas)
    if not fields:
        return f"<p>{line}</p>"
    return f"<details><summary>{line}</summary>\n{fields}</details>"


def _fields(schema: Json, schemas: Json) -> str:
    """Return the table of the fields of an object, of a component, or of an array's items."""
    if "$ref" in schema:
        return _fields(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "items" in schema:
        return _fields(schema["items"], schemas)
    required = schema.get("required", [])
    rows = [(key, key in required, field) for key, field in schema.get("properties", {}).items()]
    return _table(rows) if rows else ""


def _schema_article(name: str, schema: Json, schemas: Json) -> str:
    parts = [f'<article id="schema-{escape(name)}">', f"<h3><code>{escape(name)}</code></h3>"]
    if "description" in schema:
        parts.append(_text(schema["description"]))
    if "enum" in schema:
        parts.append(f"<p>One of {_type(schema)}</p>")
    if fields := _fields(schema, schemas):
        parts.append(f"<details open><summary>Fields</summary>\n{fields}</details>")
    return _lines([*parts, "</article>"])


def _table(rows: Iterable[tuple[str, bool, Json]]) -> str:
    head = "<tr><th>Name</th><th>Type</th><th>Meaning</th></tr>"
    return _lines(["<table>", head, *(_row(*row) for row in rows), "</table>"])


def _row(name: str, required: bool, schema: Json) -> str:
    # An optional field's description may stand at the variant that is not null.
    described = [schema, *schema.get("anyOf", [])]
    facts = [_inline(found["description"]) for found in described if "description" in found]
    if required:
        facts.append("<em>Required.</em>")
    elif schema.get("default") is not None:
        facts.append(f"Default: <code>{escape(json.dumps(schema['default']))}</code>.")
    facts += [
        f"{sign} <code>{escape(str(found[key]))}</code>"
        for found in described
        for key, sign in _CONSTRAINTS.items()
        if key in found
    ]
    return f"<tr><td><code>{escape(name)}</code></td><td>{_type(schema)}</td><td>{'<br>'.join(facts)}</td></tr>"


def _type(schema: Json) -> str:
    """Return a schema in one line, with links to the components that it refers to."""
    match schema:
        case {"$ref": str(ref)}:
            text = _link(ref.rpartition("/")[2])
        case {"anyOf": [*variants]}:
            text = " or ".join(map(_type, variants))
        case {"enum": [*values]}:
            text = ", ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
        case {"type": "array"}:
            text = f"array of ({_type(schema.get('items', {}))})"
        case {"additionalProperties": dict(values)}:
            text = f"map to ({_type(values)})"
        case {"properties": dict(fields)}:
            text = ", ".join(f"{escape(key)}: {_type(field)}" for key, field in fields.items())
            text = "{" + text + "}"
        case _:
            text = escape(schema.get("type", "any JSON value"))
    return text


def _link(name: str) -> str:
    return f'<a href="#schema-{escape(name)}">{escape(name)}</a>'
