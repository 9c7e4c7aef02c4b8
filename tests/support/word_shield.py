"""A shield for tests of what is around shields: a double, whose verdicts are sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from ayllu.actors.shields.shield import text_to_check
from ayllu.schemas import EngineError, SafetyViolation, ShieldConfig, ShieldRequest


class WordShield:
    """Knows the words it does not like; ``broken``: cannot tell; ``held``: tells when its gate is set."""

    description = "Finds words."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"words": {"type": "array", "items": {"type": "string"}}},
        "additionalProperties": False,
    }

    def __init__(self, name: str = "words", *, broken: bool = False, held: bool = False) -> None:
        self.name = name
        self.seen: list[ShieldRequest] = []
        self.gate = anyio.Event()
        self.asked = anyio.Event()
        self._broken = broken
        if not held:
            self.gate.set()

    async def check(self, request: ShieldRequest) -> SafetyViolation | None:
        self.seen.append(request)
        self.asked.set()
        await self.gate.wait()
        if self._broken:
            raise EngineError("the verdict cannot be read")
        text = text_to_check(request.messages[-1])
        found = [word for word in request.params.get("words", []) if word in text]
        return SafetyViolation("word", f"it has {found[0]}", score=0.9) if found else None


def shield(*found: str, **params: Any) -> ShieldConfig:
    """Return the configuration of the shield that does not like some words."""
    return ShieldConfig("words", {"words": list(found), **params})
