"""Which classes ``--import`` finds, what it refuses, and what becomes of actors that crash."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import anyio
import pytest

from ayllu.actors.supervision import Backoff, supervise
from ayllu.bus import Bus, client, local_bus
from ayllu.bus.service import Drain
from ayllu.runtime.importing import OwnActor, import_actors, own_start
from ayllu.schemas import AylluError, EngineDead, InvalidRequest, webmethod

HEAD = """
from typing import Protocol
from ayllu.schemas import webmethod

class Bells(Protocol):
    @webmethod(route="/bells/ring")
    async def ring(self) -> str: ...

class BellsActor(Bells):
    async def ring(self) -> str:
        return "ding"
"""
MODULES = {
    "bells": HEAD
    + """
import abc
class _Private(Bells): ...
class Abstract(Bells, abc.ABC):
    @abc.abstractmethod
    def tone(self) -> str: ...
class Unrelated: ...
""",
    "others": "from bells import Bells, BellsActor\\n".replace("\\n", "\n"),
    "second": "from bells import Bells\nclass Copy(Bells):\n    async def ring(self): return 'dong'\n",
    "nothing": "x = 1\n",
    "broken": "1 / 0\n",
    "syntax": "def\n",
    "leaves": "raise SystemExit(0)\n",
    "needs": "import no_such_module\n",
    "missing": HEAD + "class Half(Bells): ...\n",
    "needy": HEAD + "class Needy(BellsActor):\n    def __init__(self, path): ...\n",
    "named": HEAD + "class Named(BellsActor):\n    service_name = 'no name'\n",
    "ours": HEAD.replace("/bells/ring", "/models/ring"),
    "shadow": "from ayllu.schemas import Models\nclass Mine(Models):\n    def models(self): ...\n",
    "api": HEAD.replace("Bells", "Inference"),
    "wrong": HEAD.replace("/bells/ring", "/bells/wring"),
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.requirement("own-actor-import")
def test_the_actors_of_a_module() -> None:
    """Those that it defines; others by their names. Nothing is served twice."""
    assert [actor.name for actor in import_actors(["bells"])] == ["BellsActor"]
    [one] = import_actors(["bells", "others:BellsActor", "bells:BellsActor"])
    assert one.type is sys.modules["bells"].BellsActor


@pytest.mark.requirement("own-actor-import")
@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (["no_such"], "no module no_such"),
        (["no_such.below"], "no module"),
        (["bells.below"], "no module bells.below"),
        ([""], "no module"),
        ([".relative"], "no module"),
        (["needs"], "cannot be imported: ModuleNotFoundError"),
        (["broken"], "cannot be imported: ZeroDivisionError"),
        (["syntax"], "cannot be imported: SyntaxError"),
        (["leaves"], "cannot be imported: SystemExit"),
        (["nothing"], "defines no actor"),
        (["others"], "defines no actor"),
        (["bells:Nobody"], "no class Nobody"),
        (["nothing:x"], "no class x"),
        (["bells:Unrelated"], "no Protocol with @webmethod"),
        (["missing"], "Half does not implement ring"),
        (["needy:Needy"], r"Needy\(\) needs path"),
        (["named:Named"], "service_name"),
        (["ours"], "begins with /models"),
        (["shadow"], "operation of ayllu's own"),
        (["api"], "called Inference"),
        (["wrong"], "is called wring"),
        (["bells", "second"], "BellsActor and Copy both have bells.ring"),
    ],
)
def test_what_cannot_be_served(specs: list[str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        import_actors(specs)
    assert f"--import {specs[-1]}: " in caught.value.message


class Fragile(Protocol):
    """Breaks."""

    @webmethod(route="/fragile/life")
    async def life(self) -> int: ...

    @webmethod(route="/fragile/die")
    async def die(self) -> None: ...


class FragileActor(Fragile):
    lives = 0

    def __init__(self, bus: Bus) -> None:
        assert isinstance(bus, Bus)
        type(self).lives += 1

    async def life(self) -> int:
        return self.lives

    async def die(self) -> None:
        raise EngineDead("it broke")


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-import")
async def test_one_that_crashes_is_made_anew() -> None:
    FragileActor.lives = 0
    with anyio.fail_after(10):
        async with local_bus() as bus, anyio.create_task_group() as tasks:
            start = own_start(OwnActor("fragile", FragileActor), bus, Drain())
            run = anyio.Event()

            async def supervised(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                backoff = Backoff(first=0.01)
                await supervise("fragile", start, backoff=backoff, task_status=task_status)

            await tasks.start(supervised)
            fragile = client(Fragile, bus)
            assert await fragile.life() == 1
            with pytest.raises(EngineDead):
                await fragile.die()
            while not run.is_set():
                try:
                    assert await fragile.life() == 2
                    run.set()
                except AylluError as error:
                    assert error.info.retryable
            tasks.cancel_scope.cancel()
