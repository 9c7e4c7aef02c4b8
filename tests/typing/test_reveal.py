"""What users' type checkers see: the types of typed clients, under mypy and pyright."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
from ayllu.bus import Bus, client
from ayllu.client import Stack
from ayllu.schemas import ChatCompletionRequest, Datasets, Inference

async def over_the_bus(bus: Bus, request: ChatCompletionRequest) -> None:
    inference = client(Inference, bus)
    reveal_type(await inference.chat_completion(request))
    async for event in inference.stream_chat_completion(request):
        reveal_type(event)
    reveal_type(await client(Datasets, bus).get(dataset_id="x"))

async def over_the_websocket(stack: Stack, request: ChatCompletionRequest) -> None:
    reveal_type(await stack.chat_completion(request))
    reveal_type(await stack.post_training.job.status(job_uuid="x"))
    async for document in stack.memory_bank.get(bank_uuid="b", document_uuids=["d"]):
        reveal_type(document)
    async for model in stack.models():
        reveal_type(model)
    reveal_type(await stack.models.rollback(name="m"))
    async with stack.agent("a").turn("Hello") as turn:
        async for told in turn:
            reveal_type(told)
        reveal_type(turn.result)
    async with stack.agent("a").follow("t", epoch=1, index=7) as followed:
        reveal_type(await followed.cancel())
"""

REVEALED = [
    "ChatCompletionResponse",
    "ChatCompletionResponseStreamChunk",
    "Dataset",
    "ChatCompletionResponse",
    "PostTrainingJobStatusResponse",
    "MemoryBankDocument",
    "Model",
    "RegisteredModel",
    "TurnEvent",
    "Turn",
    "Turn",
]

WRONG = """
from ayllu.bus import Bus, client
from ayllu.schemas import Inference

async def wrong(bus: Bus) -> None:
    await client(Inference, bus).chat_completion("hello")
"""


def check(tool: list[str], tmp_path: Path, program: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "program.py"
    file.write_text(program)
    return subprocess.run(
        [sys.executable, "-m", *tool, str(file)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.slow
@pytest.mark.requirement("public-types")
def test_mypy(tmp_path: Path) -> None:
    right = check(["mypy", "--strict"], tmp_path, PROGRAM)
    revealed = [line for line in right.stdout.splitlines() if "Revealed type" in line]
    assert [line.rpartition(".")[2].rstrip('"') for line in revealed] == REVEALED, right.stdout
    assert right.returncode == 0
    assert "arg-type" in check(["mypy", "--strict"], tmp_path, WRONG).stdout


@pytest.mark.slow
@pytest.mark.requirement("public-types")
def test_pyright(tmp_path: Path) -> None:
    config = {"extraPaths": [str(ROOT / ".typing")], "include": ["program.py"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    tool = ["pyright", "--outputjson", "--project", str(tmp_path / "pyrightconfig.json")]
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", *tool],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    assert [item["severity"] for item in found] == ["information"] * len(REVEALED), found
    assert [item["message"].split('"')[-2] for item in found] == REVEALED
