"""The search APIs that ``web_search`` knows: how each is asked, and where its results stand. No I/O.

Brave: https://api-dashboard.search.brave.com/app/documentation/web-search; Tavily:
https://docs.tavily.com/documentation/api-reference/endpoint/search; SearXNG: https://docs.searxng.org/dev/search_api.html.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import msgspec

from ...schemas import encode
from .web_api import Question

MAX_TITLE = 200
MAX_URL = 500
MAX_SNIPPET = 700
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")


@dataclass(frozen=True, slots=True)
class Result:
    """A result of a search, as plain text."""

    title: str
    url: str
    snippet: str


@dataclass(frozen=True, slots=True)
class Provider:
    """A search API.

    Attributes:
        url: where it is; None where everybody has an own one.
        key_header: the header with the key.
        key_prefix: what stands before the key.
        question: makes the request for a query, and a number of results.
        results: finds the results in a decoded answer.
        advice: what else may be wrong than the key, if it does not let us in.
        denied: what its answer has if it does not, and its status does not say so.
    """

    url: str | None
    key_header: str
    key_prefix: str
    question: Callable[[str, int], Question]
    results: Callable[[Any], list[Result]]
    advice: str = ""
    denied: bytes = b""

    def headers(self, key: str | None) -> Mapping[str, str]:
        """Return the header with the key, if there is one."""
        return {} if key is None else {self.key_header: self.key_prefix + key}


def read_results(provider: Provider, body: bytes) -> list[Result]:
    """Return the results in an answer.

    Raises:
        ValueError: it is no answer of this API.
    """
    try:
        return provider.results(msgspec.json.decode(body))
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError("it is no JSON") from error


def _ask_brave(query: str, results: int) -> Question:
    # Without decorations, words are not set in bold; tags may come nevertheless.
    fields = {"q": query, "count": results, "text_decorations": "false", "result_filter": "web"}
    return Question("GET", f"/web/search?{urlencode(fields)}")


def _read_brave(answer: Any) -> list[Result]:
    if not isinstance(answer, dict):
        raise ValueError("it has no results")
    web = answer.get("web")
    if web is None and answer.get("type") == "search":
        return []  # Nothing was found.
    return _read(web, "description", clean=_without_tags)


def _ask_tavily(query: str, results: int) -> Question:
    return Question(
        "POST",
        "/search",
        encode({"query": query, "max_results": results, "search_depth": "basic"}),
    )


def _ask_searxng(query: str, results: int) -> Question:  # noqa: ARG001 - it cannot be asked for a number
    return Question("GET", f"/search?{urlencode({'q': query, 'format': 'json'})}")


def _read_plain(answer: Any) -> list[Result]:
    return _read(answer, "content", clean=str)


def _read(answer: Any, snippet: str, clean: Callable[[str], str]) -> list[Result]:
    found = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise ValueError("it has no results")
    results: list[Result] = []
    for one in found:
        url = one.get("url") if isinstance(one, dict) else None
        if isinstance(url, str) and _is_address(url):
            title = _line(one.get("title"), MAX_TITLE, clean)
            results.append(Result(title or url, url, _line(one.get(snippet), MAX_SNIPPET, clean)))
    return results


def _is_address(url: str) -> bool:
    # A part of an address is none: what is too long is left out.
    plain = url.isprintable() and " " not in url and len(url) <= MAX_URL
    return plain and url.startswith(("http://", "https://"))


def _without_tags(text: str) -> str:
    return html.unescape(_TAG.sub("", text))


def _line(text: object, most: int, clean: Callable[[str], str]) -> str:
    """Return a text on one line, without what cannot be seen: it may be meant to be read by nobody but the model."""
    if not isinstance(text, str):
        return ""
    words = " ".join(clean(text[: 4 * most]).split())
    seen = "".join(letter for letter in words if letter.isprintable())
    return seen if len(seen) <= most else f"{seen[:most]}..."


PROVIDERS: Mapping[str, Provider] = {
    "brave": Provider(
        "https://api.search.brave.com/res/v1",
        "X-Subscription-Token",
        "",
        _ask_brave,
        _read_brave,
        denied=b"SUBSCRIPTION_TOKEN_INVALID",
    ),
    "tavily": Provider(
        "https://api.tavily.com", "Authorization", "Bearer ", _ask_tavily, _read_plain
    ),
    "searxng": Provider(
        None,
        "Authorization",
        "Bearer ",
        _ask_searxng,
        _read_plain,
        "its settings.yml must have json among search.formats",
    ),
}
