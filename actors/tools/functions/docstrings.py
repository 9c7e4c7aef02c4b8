"""What docstrings in Google's style say of a function and its parameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

_SECTION = re.compile(r"^(Args|Arguments|Parameters):\s*$")
_PARAMETER = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def summary_of(function: Callable[..., Any]) -> str:
    """Return the first paragraph of a function's docstring as one line; empty where there is none."""
    lines = (inspect.getdoc(function) or "").strip().splitlines()
    end = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
    return " ".join(line.strip() for line in lines[:end])


def parameters_of(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the section ``Args:`` of a function's docstring says of each parameter."""
    lines = (inspect.getdoc(function) or "").splitlines()
    starts = [number for number, line in enumerate(lines) if _SECTION.match(line)]
    return _read(lines[starts[0] + 1 :]) if starts else {}


def _read(lines: Sequence[str]) -> dict[str, str]:
    """Return the entries of a section: what is indented more than their first lines continues them."""
    found: dict[str, list[str]] = {}
    depth: int | None = None
    name: str | None = None
    for line in lines:
        text = line.strip()
        if not text:
            continue
        indent = len(line) - len(line.lstrip())
        if indent == 0:
            break
        depth = indent if depth is None else depth
        match = _PARAMETER.match(text) if indent <= depth else None
        if match is not None:
            name = match[1]
            found[name] = [match[2]]
        elif name is not None:
            found[name].append(text)
    return {name: " ".join(filter(None, parts)) for name, parts in found.items()}
