"""The rules of ``prompt_guard``: signs of attacks on a model's instructions, each with a weight. Heuristic, and linear in time."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .prompt_text import HIDDEN_TEXT, Spelling, disguises, hidden, readings, shown
from .prompt_words import UNSPACED, VOCABULARY, phrases_in

WINDOW, OVERLAP = 2000, 400
"""Characters that are judged together: signs that are far apart have nothing to do with each other."""
DISGUISED = 0.35
"""What it adds that something is only said in disguise."""
HIDDEN = 0.6
"""What it weighs that there is a text that nobody sees, whatever it says."""
SHOTS = ((16, 0.6), (8, 0.4), (4, 0.3))
"""So many lines of a made-up dialog, and what they weigh."""

_SPELLING = Spelling(VOCABULARY)
_PATTERNS: Sequence[tuple[re.Pattern[str], str, float]] = (
    (re.compile(r"<\|[a-z0-9_]{2,40}\|>", re.IGNORECASE), "delimiter", 0.65),
    (re.compile(r"\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"), "delimiter", 0.65),
    (
        re.compile(
            r"</?(?:system|instructions?|user_input|user|assistant|tool_(?:call|response|output)s?|document|context)>",
            re.IGNORECASE,
        ),
        "delimiter",
        0.55,
    ),
    (
        re.compile(
            r"^[ \t>#*\[]{0,8}(?:system|admin|developer)(?:[ \t](?:message|prompt|override|note|instruction))?\]?[ \t]?:",
            re.IGNORECASE | re.MULTILINE,
        ),
        "delimiter",
        0.55,
    ),
    (re.compile(r"^[^\w\n]{0,8}end of (?:the )?(?:document|prompt|input|context|instructions)[^\w\n]{0,8}$", re.IGNORECASE | re.MULTILINE), "delimiter", 0.4),
    (re.compile(r"^[ \t]{0,8}assistant:", re.IGNORECASE | re.MULTILINE), "delimiter", 0.35),
    (re.compile(r"\"role\"\s{0,8}:\s{0,8}\"(?:system|assistant)\"", re.IGNORECASE), "delimiter", 0.2),
    *((re.compile(pattern), name, weight) for pattern, (name, weight) in UNSPACED.items()),
)  # fmt: skip
_IMAGE = re.compile(r"!\[[^\]\n]{0,100}\]\(\s{0,8}https?://([^\s)]{1,1000})", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"[{<\[]|=[A-Z]{3,}_[A-Z_]{3,}|%s|\$\w")
_COMMENT = re.compile(r"<!--([^>]{1,1000})")
_ADDRESSED = re.compile(
    r"\b(?:assistants?|ai|llms?|language models?|ignore|instructions?)\b", re.IGNORECASE
)
_SPEAKER = re.compile(
    r"^[ \t>*#]{0,8}(?:user|human|question|q|assistant|ai|bot|answer|a|agent)[ \t*]{0,4}:",
    re.IGNORECASE | re.MULTILINE,
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){12,}")
_BASE32 = re.compile(r"[A-Z2-7]{32,}={0,6}")


@dataclass(frozen=True, slots=True)
class Assessment:
    """What the rules say of a text.

    Attributes:
        score: from 0 to 1; no probability, only an order.
        signs: of what signs were found, the surest first.
    """

    score: float
    signs: Sequence[str]


NOTHING = Assessment(0.0, ())


def assess(text: str) -> Assessment:
    """Return what the rules say of a text: that of its window with the highest score."""
    best = _worst_window(text)
    whole = dict(_of_the_whole(text))
    if whole:
        best = _together(dict.fromkeys(best.signs, 0.0) | whole, best.score)
    return best


def _worst_window(text: str) -> Assessment:
    found = map(_assessed, windows(text, WINDOW, OVERLAP))
    return max(found, key=lambda one: one.score)


def windows(text: str, size: int, overlap: int) -> Iterator[str]:
    """Yield all of a text, in parts that overlap."""
    start = 0
    while True:
        yield text[start : start + size]
        if start + size >= len(text):
            return
        start += size - overlap


def _of_the_whole(text: str) -> Iterator[tuple[str, float]]:
    """Yield the signs that are spread over a text, or that hide a text in it."""
    lines = sum(1 for _ in _SPEAKER.finditer(text))
    for least, weight in SHOTS:
        if lines >= least:
            yield "made-up dialog", weight
            break
    inner = map(_worst_window, filter(None, (*_decoded(text), hidden(text))))
    worst = max(inner, key=lambda one: one.score, default=NOTHING)
    if worst.score:
        yield "encoded", worst.score
        for sign in worst.signs:
            yield sign, 0.0  # They are what the score is made of.


def _assessed(text: str) -> Assessment:
    signs: dict[str, float] = {}

    def found(name: str, weight: float) -> None:
        signs[name] = max(signs.get(name, 0.0), weight)

    seen = shown(text)
    disguised = set(disguises(text))
    for reading in readings(seen, _SPELLING):
        for name, weight in phrases_in(reading.words):
            if not reading.plain and name not in signs:
                disguised.add("disguised words")
            found(name, weight)
    for pattern, name, weight in _PATTERNS:
        if pattern.search(seen):
            found(name, weight)
    for name, weight in _links(seen):
        found(name, weight)
    for name in disguised:
        found(name, HIDDEN if name == HIDDEN_TEXT else DISGUISED)
    return _together(signs)


def _links(text: str) -> Iterator[tuple[str, float]]:
    for image in _IMAGE.finditer(text):
        _, asks, query = image[1].partition("?")
        if asks and _PLACEHOLDER.search(query):
            yield "exfiltration", 0.65
    for comment in _COMMENT.finditer(text):
        if len(_ADDRESSED.findall(comment[1])) > 1:
            yield "to models", 0.5


def _together(signs: Mapping[str, float], score: float = 0.0) -> Assessment:
    """Return what signs say that have nothing to do with each other."""
    innocent = 1.0 - score
    for weight in signs.values():
        innocent *= 1.0 - weight
    return Assessment(
        round(1.0 - innocent, 4), sorted(signs, key=lambda name: (-signs[name], name))
    )


def _decoded(text: str) -> Iterator[str]:
    """Yield the texts that are encoded in a text; what is decoded is not decoded again."""
    for pattern, decode in _DECODERS:
        for run in pattern.finditer(text):
            try:
                found = str(decode(run[0]), "utf-8")
            except (binascii.Error, ValueError):
                continue  # It is no such code, or none of a text.
            if found.isprintable() or "\n" in found:
                yield found


def _base64(run: str) -> bytes:
    body = run.rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(body[: len(body) // 4 * 4] or body)


def _base32(run: str) -> bytes:
    body = run.rstrip("=")
    return base64.b32decode(body[: len(body) // 8 * 8])


_DECODERS: Sequence[tuple[re.Pattern[str], Callable[[str], bytes]]] = (
    (_BASE64, _base64),
    (_BASE32, _base32),
    (_HEX, bytes.fromhex),
)
