"""What workers start."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from ayllu.actors.rewards.specs import ProgramSpec
from ayllu.bus import local_bus
from ayllu.runtime.config import Config
from ayllu.runtime.worker import KINDS, Setting
from ayllu.schemas import InvalidRequest


@pytest.mark.asyncio
@pytest.mark.requirement("reward-configuration")
async def test_a_reward_model_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    config = Config(rewards=[ProgramSpec(name="brief", function="nowhere:brief")])
    async with local_bus() as bus:
        start = KINDS["rewards"](Setting(bus, config, tmp_path, None))["reward model brief"]
        with pytest.raises(InvalidRequest, match="reward model 'brief': the module nowhere"):
            await start(task_status=anyio.TASK_STATUS_IGNORED)
