"""How requests of OpenAI's clients are read: which fields they may have, and what those of all endpoints mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ...schemas import InvalidRequest, SamplingParams, encode
from ...schemas.content import SamplingStrategy
from ...schemas.wire import decode
from .errors import PARAM, refusal
from .types import HINTS, NEUTRAL, WITHOUT_EFFECT, GenerationAsked

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r"at `\$\.(\w+)")
_MISSING = re.compile(r"field `(\w+)`")


def read(body: bytes, type_: type[T]) -> T:
    """Read the body of a request; ``null`` counts as absent.

    Raises:
        InvalidRequest: it is not JSON, has a field that is not known or a value that is not served, or does not fit the type;
            its details name the field.
    """
    given = decode(body, dict[str, msgspec.Raw])
    kept: dict[str, msgspec.Raw] = {}
    for name, value in given.items():
        if bytes(value) == b"null" or name in WITHOUT_EFFECT:
            continue
        if name in type_.__struct_fields__:
            kept[name] = value
        elif name in NEUTRAL:
            _check_neutral(name, decode(bytes(value), object))
        else:
            raise refusal(name, "there is no such field")
    try:
        return decode(encode(kept), type_)
    except InvalidRequest as error:
        found = _PLACE.search(error.message) or _MISSING.search(error.message)
        details = {PARAM: found[1]} if found else {}
        raise InvalidRequest(error.message, details=details) from error


def _check_neutral(name: str, value: object) -> None:
    for neutral in NEUTRAL[name]:
        # In Python, True is 1; in JSON it is not.
        if value == neutral and isinstance(value, bool) == isinstance(neutral, bool):
            return
    allowed = " or ".join(encode(neutral).decode() for neutral in NEUTRAL[name])
    only = f"only {allowed} is served here" if allowed else "this is not served here"
    hint = f"; {HINTS[name]}" if name in HINTS else ""
    raise refusal(name, only + hint)


def sampling_of(asked: GenerationAsked) -> SamplingParams:
    """Return how the model chooses its tokens.

    Raises:
        InvalidRequest: both ``top_p`` and ``top_k`` are limited.
    """
    strategy = SamplingStrategy.top_p
    if asked.temperature == 0:
        strategy = SamplingStrategy.greedy
    elif asked.top_k is not None:
        if asked.top_p != 1:
            raise refusal("top_k", "it cannot be used together with `top_p`")
        strategy = SamplingStrategy.top_k
    return SamplingParams(
        temperature=asked.temperature,
        strategy=strategy,
        top_p=asked.top_p,
        top_k=asked.top_k or 0,
        seed=asked.seed,
        stop=[asked.stop] if isinstance(asked.stop, str) else asked.stop,
    )


def wants_usage(asked: GenerationAsked) -> bool:
    """Tell whether a stream shall tell its usage.

    Raises:
        InvalidRequest: there are options of a stream but no stream, or one that is not served.
    """
    if asked.stream_options is None:
        return False
    if not asked.stream:
        raise refusal("stream_options", "they are for streams only")
    if asked.stream_options.include_obfuscation:
        raise refusal("stream_options", "include_obfuscation is not served here")
    return bool(asked.stream_options.include_usage)


def texts_of(value: str | Sequence[Any], param: str) -> list[str]:
    """Return the texts that a prompt or an input is: one, or a list of them.

    Raises:
        InvalidRequest: there are none, or they are token ids.
    """
    if isinstance(value, str):
        return [value]
    if not value:
        raise refusal(param, "the list is empty")
    texts = [one for one in value if isinstance(one, str)]
    if len(texts) < len(value):
        raise refusal(param, "text or a list of texts is taken, no token ids")
    return texts
