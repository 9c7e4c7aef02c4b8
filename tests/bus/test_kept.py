"""A model that is away and comes back: callers are told that they may try again. Over a bus in the process and over NATS."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from support.buses import buses
from support.engines import scripted
from support.serving import chat

from ayllu.actors.inference import InferenceActor
from ayllu.bus import client
from ayllu.bus.kept import KEEPER_SERVICE, is_kept, keeping
from ayllu.bus.service import serve
from ayllu.bus.transport import ServiceInfo
from ayllu.schemas import Inference, ModelNotFound, Unavailable

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@pytest.mark.parametrize("kind", ["local", "nats"])
@pytest.mark.requirement("model-kept")
async def test_a_model_that_comes_back_is_unavailable_not_unknown(
    kind: str, tmp_path: Path
) -> None:
    async with (
        buses(kind, tmp_path) as bus,
        scripted() as engine,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(serve, bus, InferenceActor(engine, "echo"))
        inference = client(Inference, bus)
        async with keeping(bus, ["inca", "echo"]):
            with pytest.raises(Unavailable, match="'inca' is not ready") as away:
                await inference.chat_completion(chat("inca"))
            assert away.value.retryable
            assert not await is_kept(bus, "inca", "reward")
            with pytest.raises(ModelNotFound):
                await inference.chat_completion(chat("mita"))
        with pytest.raises(ModelNotFound):
            await inference.chat_completion(chat("inca"))
        tasks.cancel_scope.cancel()


async def test_what_others_tell_wrongly_is_passed_over(tmp_path: Path) -> None:
    async with buses("local", tmp_path) as bus:
        for told in ("{", "3", '{"inca": 1}'):
            service = ServiceInfo(KEEPER_SERVICE, "1.0.0", metadata={"language": told})
            async with bus.transport.announce(service, lambda _: None), keeping(bus, ["mita"]):
                assert not await is_kept(bus, "inca", "language")
                assert await is_kept(bus, "mita", "language")
