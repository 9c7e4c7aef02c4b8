"""What only vLLM can show: its parsers of tool calls, and starts that fail or are given up."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path

import anyio
import pytest
from support.processes import descendants
from support.vllm_models import model_folder, vllm_engine
from transformers import AutoTokenizer

from ayllu.actors.engines.settings import VllmSettings
from ayllu.actors.engines.vllm.calls import Calls
from ayllu.actors.engines.vllm.dialogs import described
from ayllu.actors.engines.vllm.engine import VllmEngine
from ayllu.schemas import EngineError, ToolCall, ToolDefinition

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

WEATHER = ToolDefinition(tool_name="get_weather", parameters={"city": "Its name."})
CUSCO = ToolCall(tool_name="get_weather", arguments={"city": "Cusco"})
LIMA = ToolCall(tool_name="get_weather", arguments={"city": "Lima"})
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
LLAMA = '{"name": "get_weather", "parameters": {"city": "%s"}}'


def found(parser: str, text: str, chance: random.Random) -> tuple[str, list[ToolCall]]:
    """Return the text and the calls of an answer that comes in pieces."""
    from ayllu.actors.engines.vllm.contact import CallParser

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|python_tag|>"]})
    calls = Calls(CallParser(parser, tokenizer), [described(WEATHER)])
    given = ""
    atoms = re.findall(r"<\|\w+\|>|.", text, re.DOTALL)  # a control token is one token
    while atoms:
        cut = chance.randint(1, 6)
        piece = "".join(atoms[:cut])
        given += calls.feed(piece, tokenizer.encode(piece))
        atoms = atoms[cut:]
    rest, made = calls.finish()
    return given + rest, made


@pytest.mark.requirement("vllm-calls")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("parser", "text", "expected"),
    [
        ("hermes", "No call.", ("No call.", [])),
        ("hermes", HERMES % "Cusco", ("", [CUSCO])),
        ("hermes", "I ask. " + HERMES % "Cusco", ("I ask. ", [CUSCO])),
        ("hermes", HERMES % "Cusco" + "\n" + HERMES % "Lima", ("", [CUSCO, LIMA])),
        ("llama3_json", "No call.", ("No call.", [])),
        ("llama3_json", LLAMA % "Cusco", ("", [CUSCO])),
        ("llama3_json", "<|python_tag|>" + LLAMA % "Cusco", ("", [CUSCO])),
        ("llama3_json", f"{LLAMA % 'Cusco'}; {LLAMA % 'Lima'}", ("", [CUSCO, LIMA])),
        ("llama3_json", '{"no": "call"}', ('{"no": "call"}', [])),
    ],
)
def test_calls_are_found_however_the_answer_is_cut(
    parser: str, text: str, expected: tuple[str, list[ToolCall]], seed: int
) -> None:
    assert found(parser, text, random.Random(seed)) == expected


@pytest.mark.requirement("vllm-settings")
def test_settings_reach_vllm() -> None:
    from ayllu.actors.engines.vllm.contact import engine_arguments

    settings = VllmSettings(
        dtype="bfloat16",
        quantization="fp8",
        tensor_parallel=2,
        data_parallel=3,
        gpu_memory=0.5,
        cache_gib=2,
        eager=True,
        adapters=4,
        max_lora_rank=32,
    )
    made = engine_arguments(model_folder(), 1024, 16, settings)
    assert (made.max_model_len, made.max_num_seqs) == (1024, 16)
    assert (made.dtype, made.quantization) == ("bfloat16", "fp8")
    assert (made.tensor_parallel_size, made.data_parallel_size) == (2, 3)
    assert (made.gpu_memory_utilization, made.kv_cache_memory_bytes) == (0.5, 2 << 30)
    assert made.enforce_eager
    assert (made.enable_lora, made.max_loras, made.max_lora_rank) == (True, 4, 32)
    assert not made.trust_remote_code
    plain = engine_arguments(model_folder(), 1024, 16, VllmSettings())
    assert plain.kv_cache_memory_bytes is None
    assert not plain.enable_lora


@pytest.mark.requirement("vllm-calls", "vllm-load-fails")
def test_parsers_that_do_not_suit_are_named() -> None:
    from ayllu.actors.engines.vllm.contact import CallParser

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    with pytest.raises(EngineError, match="nonsense"):
        CallParser("nonsense", tokenizer)
    with pytest.raises(EngineError, match="llama3_json does not suit"):
        CallParser("llama3_json", tokenizer)


def processes_below() -> set[int]:
    """Return the processes of vLLM below this one."""
    return {pid for pid, command in descendants(os.getpid()).items() if "EngineCore" in command}


@pytest.mark.asyncio
@pytest.mark.requirement("vllm-load-fails")
async def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    engine = VllmEngine(folder, context=128, slots=1, settings=VllmSettings(dtype="float32"))
    with pytest.raises(EngineError, match="cannot load model"):
        async with engine:
            pass
    assert not processes_below()


@pytest.mark.asyncio
@pytest.mark.requirement("vllm-load-fails")
async def test_a_start_that_takes_too_long_or_is_cancelled_leaves_nothing() -> None:
    with pytest.raises(EngineError, match="did not start within 6 s"):
        async with vllm_engine(start_seconds=6.0):
            pass
    assert not processes_below()
    with anyio.fail_after(60), anyio.move_on_after(6):
        async with vllm_engine():
            pass
    assert not processes_below()
