"""Which events a trigger is for: the subjects that people write, made whole and checked; no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

import msgspec

from ...bus.subjects import ROOT, encode_token
from ...schemas import (
    DocumentsChanged,
    InvalidRequest,
    JobEnded,
    ScheduleDue,
    TurnEnded,
    TurnStatus,
)
from ...schemas.training_jobs import JobKind

PREFIX = f"{ROOT}.event."
KNOWN: Mapping[str, type[msgspec.Struct]] = {
    "turn": TurnEnded,
    "job": JobEnded,
    "document": DocumentsChanged,
    "schedule": ScheduleDue,
}
"""The events of ayllu itself, by the first token of their subjects."""
WHAT: Mapping[str, tuple[str, ...]] = {
    "turn": (TurnStatus.completed, TurnStatus.cancelled, TurnStatus.failed),
    "job": ("completed", "failed", "cancelled"),
    "document": ("inserted", "updated", "deleted"),
    "schedule": ("due",),
}
"""What the last token of their subjects may be."""
WILD = ("*", ">")
_ENCODED = re.compile(r"(?:[A-Za-z0-9-]|=[0-9A-F]{2})+")
_TOKEN = re.compile(r"[^\s*>.\x00-\x1f\x7f]+")


def whole_pattern(subject: str) -> str:
    """Return the pattern of subjects that somebody has written, with ``ayllu.v1.event.`` before it, and names encoded.

    Raises:
        InvalidRequest: nothing can ever stand there.
    """
    tokens = subject.removeprefix(PREFIX).split(".")
    if subject.startswith(f"{ROOT}.") and not subject.startswith(PREFIX):
        raise InvalidRequest(f"subject: events stand under {PREFIX}, not under {subject!r}")
    kind = tokens[0]
    if kind in KNOWN and len(tokens) > 1 and tokens[1] not in WILD:
        tokens[1] = tokens[1] if _ENCODED.fullmatch(tokens[1]) else encode_token(tokens[1])
    for place, token in enumerate(tokens):
        if token == "*" or (token == ">" and place == len(tokens) - 1):
            continue
        if not _TOKEN.fullmatch(token):
            raise InvalidRequest(
                f"subject: {token!r} is no token of a subject: `*` is any one, `>` at the end any that follow"
            )
    if kind in KNOWN:
        _check_known(kind, tokens)
    return PREFIX + ".".join(tokens)


def kind_of(subject: str) -> type[msgspec.Struct] | None:
    """Return the type of the events on a subject, or under a pattern, where it is known."""
    return KNOWN.get(subject.removeprefix(PREFIX).partition(".")[0])


def _check_known(kind: str, tokens: list[str]) -> None:
    last, whole = tokens[-1], len(tokens) == 3
    if not whole and not (last == ">" and len(tokens) < 3):
        raise InvalidRequest(
            f"subject: events of this kind stand on {kind}.NAME.WHAT, such as {kind}.*.{WHAT[kind][0]}; names with dots are "
            "written as `ayllu triggers create --help` says"
        )
    if whole and last not in WILD and last not in WHAT[kind]:
        raise InvalidRequest(
            f"subject: what happens to a {kind} is {', '.join(WHAT[kind])}, not {last!r}"
        )
    names = get_args(JobKind)
    if whole and kind == "job" and tokens[1] not in ("*", *map(encode_token, names)):
        raise InvalidRequest(f"subject: jobs are {', '.join(names)}, not {tokens[1]!r}")
