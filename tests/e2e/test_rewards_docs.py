"""What docs/rewards.md shows is what happens: its configuration is served, and its examples are run."""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import anyio
import msgspec
import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, running_up
from support.rewards import prompt, request, texts_of

from ayllu.actors.rewards.judge import PATIENCE
from ayllu.actors.rewards.programs.params import PARAMS
from ayllu.actors.rewards.specs import ClassifierSpec, check_rewards
from ayllu.client import connect
from ayllu.runtime.config import Config
from ayllu.schemas.wire import convert

pytestmark = pytest.mark.requirement("examples-run")

PAGE = page("rewards.md")
BLOCKS = blocks(PAGE)
TOML = [text for kind, text in BLOCKS if kind == "toml"]
FUNCTION, ACTOR = [text for kind, text in BLOCKS if kind == "python"]


def module_of(name: str, source: str, folder: Path) -> ModuleType:
    """Return a module of the page."""
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # Annotations are looked up there.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "own_rewards.py").write_text(FUNCTION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with running_up(folder / "data", config=TOML[0]) as running:
            yield running
            assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_in_their_order(up: Up, tmp_path: Path) -> None:
    said: list[str] = []
    for kind, text in BLOCKS:
        if kind == "":
            assert said[-1].endswith(text)
        if kind == "sh":
            source = text.replace(GATEWAY, up.url).replace(
                "ayllu rewards", f"ayllu rewards --url {up.url}"
            )
            said.append(run_block("sh", source, tmp_path))
    assert [line.split("\t")[0] for line in said[0].splitlines()[:-2]] == sorted(
        entry["name"] for entry in tomllib.loads(TOML[0])["rewards"]
    )
    [scored] = msgspec.json.decode(said[1])["scored_generations"]
    assert [one["score"] for one in scored["k_scored_generations"]] == [1.0]


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_function_the_actor_and_the_combination(up: Up, tmp_path: Path) -> None:
    actor = module_of("own_actor", ACTOR, tmp_path)
    with anyio.fail_after(60):
        async with connect(up.url) as stack, anyio.create_task_group() as tasks:
            tasks.start_soon(actor.main, up.bus_url)

            async def scores(model: str, *texts: str) -> list[tuple[str, float]]:
                asked = request(prompt(*texts, reference=1), model=model)
                [scored] = (await stack.reward_scoring.score(asked)).scored_generations
                assert not scored.unscored
                return texts_of(scored)

            assert await scores("brief", "word " * 40, "1") == [("1", 1.0), ("word " * 40, 0.5)]
            assert await scores("polite", "do", "please do") == [("please do", 1.0), ("do", 0.0)]
            assert await scores("mixed", "word " * 40, "1") == [("1", 1.0), ("word " * 40, 0.125)]
            [(_, grade)] = await scores("judge", "1")
            assert 0 <= grade <= 1
            tasks.cancel_scope.cancel()


def test_the_configurations() -> None:
    assert len(TOML) == 2
    [classifier] = convert(tomllib.loads(TOML[1]), Config).rewards
    assert isinstance(classifier, ClassifierSpec)
    assert classifier == ClassifierSpec(name="quality", weights="/models/reward")
    [whole] = [text for kind, text in blocks(page("configuration.md")) if kind == "toml"]
    config = convert(tomllib.loads(whole), Config)
    assert [spec.name for spec in config.rewards] == ["judge"]
    check_rewards(config.rewards, ())


def test_all_programs_and_numbers() -> None:
    for name in PARAMS:
        assert f"| `{name}` |" in PAGE
    assert f"less than {PATIENCE:g} seconds" in PAGE
