"""The shield ``prompt_guard``: finds what wants to give a model other instructions than those of who runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio.to_thread
from anyio import CapacityLimiter

from ...schemas import SafetyViolation, ShieldRequest, TooLarge
from .prompt_rules import Assessment, assess
from .prompt_text import shown
from .settings import PromptGuardSettings
from .shield import strings_of

MAX_CHARACTERS = 400_000
"""Of a message, as it is and as it is seen; longer ones are refused, since nothing is left out of what is looked at."""


class Assessor(Protocol):
    """What finds attacks in texts.

    Attributes:
        description: what it is, and how far it can be trusted.
    """

    description: str

    async def assess(self, text: str) -> Assessment:
        """Return how much a text looks like an attack.

        Raises:
            AylluError: it cannot tell.
        """
        ...


class Rules:
    """An `Assessor` that needs no model."""

    description = (
        "Looks for attempts to give the model other instructions. Heuristic: normalises the text and applies rules, mostly for "
        "English; it stops what is known and clumsy, and no attacker who tries twice. Texts about such attacks may be taken for them."
    )

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(1)

    async def assess(self, text: str) -> Assessment:
        """Apply the rules, in a thread."""
        found = await anyio.to_thread.run_sync(assess, text, limiter=self._limiter)
        return Assessment(found.score, [f"heuristic: {', '.join(found.signs)}"])


class PromptGuard:
    """A `Shield` against attacks on a model's instructions.

    Args:
        assessor: what finds them.
        threshold: from which score on something is a violation, where params do not say.
    """

    name = "prompt_guard"

    def __init__(self, assessor: Assessor, threshold: float) -> None:
        self.description = assessor.description
        self.parameters: Mapping[str, Any] = {
            "type": "object",
            "properties": {
                "threshold": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 1,
                    "description": f"from which score on it is a violation; {threshold:g} by default",
                }
            },
            "additionalProperties": False,
        }
        self._assessor = assessor
        self._limiter = CapacityLimiter(1)
        self._threshold = threshold

    async def check(self, request: ShieldRequest) -> SafetyViolation | None:
        """Look at the last message; see `Shield.check`.

        Raises:
            TooLarge: it is too long.
        """
        text = "\n".join(strings_of(request.messages[-1]))
        if not text.strip():
            return None
        found = await self.assess(text)
        if found.score < request.params.get("threshold", self._threshold):
            return None
        return SafetyViolation("prompt_injection", "; ".join(found.signs), score=found.score)

    async def assess(self, text: str) -> Assessment:
        """Return how much a text looks like an attack.

        Raises:
            TooLarge: it is too long.
        """
        # Some characters stand for eighteen others.
        if len(text) > MAX_CHARACTERS or (
            await anyio.to_thread.run_sync(_length, text, limiter=self._limiter) > MAX_CHARACTERS
        ):
            raise TooLarge(f"prompt_guard: more than {MAX_CHARACTERS} characters are not looked at")
        return await self._assessor.assess(text)


def _length(text: str) -> int:
    return len(shown(text))


@asynccontextmanager
async def open_prompt_guard(settings: PromptGuardSettings) -> AsyncIterator[PromptGuard]:
    """Open the shield: with the classifier that is configured, or with rules.

    Raises:
        InvalidRequest: what is configured is no classifier of texts.
    """
    if settings.folder is None:
        yield PromptGuard(Rules(), settings.threshold)
        return
    # Rules need nothing of what this imports.
    from .prompt_classifier import PromptClassifier

    folder = Path(settings.folder)
    async with PromptClassifier(folder, settings.attacks, settings.max_tokens) as classifier:
        yield PromptGuard(classifier, settings.threshold)
