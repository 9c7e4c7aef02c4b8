"""The shields of a deployment, by what is supervised on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyio.abc import TaskStatus

from ...bus.bus import Bus
from ...bus.service import serve
from ..supervision import Start
from .settings import ShieldsConfig
from .shield import Shield


def shield_starts(bus: Bus, config: ShieldsConfig, default_model: str) -> Mapping[str, Start]:
    """Return what to supervise, by name.

    Args:
        bus: the bus.
        config: how they are set.
        default_model: the model that `llama_guard` asks where nothing else is said.
    """

    async def start(*, task_status: TaskStatus[Any]) -> None:
        # Only these workers need what these modules import.
        from .actor import ShieldsActor
        from .code_guard import CodeGuard
        from .llama_guard import LlamaGuard
        from .prompt_guard import open_prompt_guard

        async with open_prompt_guard(config.prompt_guard) as prompt_guard:
            shields: list[Shield] = [
                LlamaGuard(bus, default_model, config.llama_guard),
                prompt_guard,
                CodeGuard(config.code_guard),
            ]
            await serve(bus, ShieldsActor(shields), task_status=task_status)

    return {"shields": start}
