"""Models for the engine vllm: SmolLM2 in Hugging Face's format, small and soon started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ayllu.actors.engines.settings import VllmSettings
from ayllu.actors.engines.vllm.engine import VllmEngine

from .checkpoints import trained
from .engines import CONTEXT, SLOTS

SETTINGS: dict[str, Any] = {"dtype": "float32", "eager": True, "cache_gib": 1}
"""What suits two cores and a test: nothing is compiled."""


def model_folder() -> Path:
    """Return the folder of SmolLM2, with its tokenizer and chat template."""
    return trained() / "base"


def vllm_engine(*, context: int = CONTEXT, slots: int = SLOTS, **settings: Any) -> VllmEngine:
    """Return an engine that is not started; starting takes half a minute."""
    made = VllmSettings(**{**SETTINGS, **settings})
    return VllmEngine(model_folder(), context=context, slots=slots, settings=made)
