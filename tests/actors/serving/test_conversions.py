"""Checkpoints as GGUF files, against what torch and PEFT make of them; and what is refused."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import checkpoint_of, foreign_copy, said, trained
from support.engines import GREEDY, answer, user

from ayllu.actors.engines.engine import Generation
from ayllu.actors.engines.llama_cpp import LlamaCppEngine
from ayllu.actors.files import locate
from ayllu.actors.registry import default_models
from ayllu.actors.serving.conversions import convert_adapter, convert_whole
from ayllu.actors.serving.convert import convert
from ayllu.actors.serving.gguf_files import BaseFile
from ayllu.actors.serving.llama import gguf_name
from ayllu.actors.serving.sources import look_at
from ayllu.actors.serving.tensors import Tensors
from ayllu.schemas import InvalidRequest, Unsupported

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BASE = locate(default_models()[0].source)
QUANTIZED = 0.008
"""How far a weight in Q8_0 is from its value, as a share of the largest: half a step of 1/127, and bfloat16's own."""
Change = Callable[[Path], None]


@functools.cache
def base_file() -> BaseFile:
    """Return the base, read once: its vocabulary takes two seconds."""
    return BaseFile(BASE)


def made(job: str, target: Path, *, merge: bool = False) -> Path:
    if job == "whole":
        convert_whole(checkpoint_of(job), base_file(), target)
    else:
        convert_adapter(checkpoint_of(job), base_file(), target, merge=merge)
    return target


@pytest.mark.requirement("serving-rows-permuted")
def test_rows_are_ordered_as_those_who_read_gguf_expect_them() -> None:
    # The reference is what transformers reads of the same file, which undoes the order.
    base = base_file()
    weights = Tensors([trained() / "base" / "model.safetensors"])
    for name in weights.names:
        place = gguf_name(name.removesuffix(".weight"))
        ordered = base.heads.ordered(place, weights.read(name))
        np.testing.assert_array_equal(ordered, base.read(place), err_msg=place)


@pytest.mark.requirement("serving-merge")
@pytest.mark.parametrize("job", ["lora", "dora"])
def test_merged_weights_are_those_that_peft_merges(job: str, tmp_path: Path) -> None:
    merged = BaseFile(made(job, tmp_path / "merged.gguf", merge=True))
    weights = Tensors([trained() / f"{job}-merged" / "model.safetensors"])
    assert len(merged.names) == len(base_file().names)
    for name in weights.names:
        place = gguf_name(name.removesuffix(".weight"))
        if place in merged.names:  # Not the output layer, which is tied.
            wanted = merged.heads.ordered(place, weights.read(name))
            distance = np.abs(merged.read(place) - wanted).max() / np.abs(wanted).max()
            assert distance < QUANTIZED, place


@pytest.mark.requirement("serving-merge")
def test_weights_that_an_adapter_leaves_alone_stay_as_they_are(tmp_path: Path) -> None:
    base, merged = base_file(), BaseFile(made("output", tmp_path / "merged.gguf"))
    # The embeddings were tied to the output layer: it has weights of its own now, and they are as before.
    assert set(merged.names) - set(base.names) == {"output.weight"}
    for name in base.names:
        if not name.endswith("attn_q.weight"):
            np.testing.assert_array_equal(merged.raw(name)[0], base.raw(name)[0], err_msg=name)
    assert np.abs(merged.read("output.weight") - base.read("token_embd.weight")).max() > 0.01


@pytest.mark.asyncio
@pytest.mark.parametrize("job", ["base", "lora", "other", "dora", "output", "whole"])
@pytest.mark.requirement("serving-lora", "serving-merge")
async def test_llama_cpp_says_what_torch_says(job: str, tmp_path: Path) -> None:
    model, adapter = BASE, None
    if job in ("lora", "other"):
        adapter = made(job, tmp_path / "adapter.gguf")
    elif job != "base":
        model = made(job, tmp_path / "model.gguf")
    torch = said()["lora" if job == "whole" else job]
    async with LlamaCppEngine(model, context=256, slots=1, adapter=adapter) as engine:
        generation = Generation(GREEDY, max_tokens=8, logprobs=True)
        found = await answer(engine, user("What is the password?"), generation)
    assert found.text == torch["text"]
    first = {one["token"]: one["logprob"] for one in found.logprobs[0]["top_logprobs"]}
    token = max(torch["first"], key=torch["first"].__getitem__)
    # 4 bits and the quantized activations of llama.cpp; a wrong order of rows is off by far more.
    assert first[token] == pytest.approx(torch["first"][token], abs=0.25)


def load_adapter(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None
    tensors: dict[str, Any] = {one.name: one.data for one in reader.tensors}
    rank = next(value for name, value in tensors.items() if name.endswith("lora_a")).shape[0]
    return {"scale": alpha.contents() / rank, **tensors}


def test_rank_stabilised_adapters_have_their_own_scale(tmp_path: Path) -> None:
    folder = foreign_copy("other", tmp_path / "checkpoint")
    configure(use_rslora=True)(folder)
    convert_adapter(folder, base_file(), tmp_path / "adapter.gguf", merge=False)
    assert load_adapter(tmp_path / "adapter.gguf")["scale"] == pytest.approx(16 / 8**0.5)


def configure(**values: Any) -> Change:
    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def with_tensors(change: Callable[[dict[str, Any]], None]) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return apply


def first(tensors: dict[str, Any], part: str) -> str:
    return next(name for name in sorted(tensors) if part in name)


def wrong_shape(tensors: dict[str, Any]) -> None:
    name = first(tensors, "lora_A")
    tensors[name] = tensors[name][:, :-32].copy()


def no_number(tensors: dict[str, Any]) -> None:
    tensors[first(tensors, "lora_B")][0, 0] = np.nan


def half_a_module(tensors: dict[str, Any]) -> None:
    del tensors[first(tensors, "lora_B")]


def foreign_module(tensors: dict[str, Any]) -> None:
    name = first(tensors, "lora_A")
    tensors[name.replace("q_proj", "router").replace("k_proj", "router")] = tensors.pop(name)


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (configure(peft_type="LOHA"), Unsupported),
        (configure(modules_to_save=["lm_head"]), Unsupported),
        (configure(rank_pattern={"q_proj": 4}), Unsupported),
        (configure(bias="all"), Unsupported),
        (configure(r=4), InvalidRequest),
        (configure(r=0), InvalidRequest),
        (configure(r="eight"), InvalidRequest),
        (configure(use_dora=True), InvalidRequest),
        (with_tensors(wrong_shape), InvalidRequest),
        (with_tensors(no_number), InvalidRequest),
        (with_tensors(half_a_module), InvalidRequest),
        (with_tensors(foreign_module), Unsupported),
        (with_tensors(dict.clear), InvalidRequest),
        (cut, InvalidRequest),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), InvalidRequest),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), InvalidRequest),
    ],
)
@pytest.mark.requirement("serving-bad-checkpoints")
def test_an_adapter_that_cannot_be_served_is_refused(
    change: Change, error: type[Exception], tmp_path: Path
) -> None:
    folder = foreign_copy("other", tmp_path / "checkpoint")
    change(folder)
    with pytest.raises(error) as caught:
        convert_adapter(folder, base_file(), tmp_path / "adapter.gguf", merge=False)
    assert caught.type is error


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"model_type": "gpt2"}, Unsupported),
        ({"num_attention_heads": 18}, InvalidRequest),
        ({"num_key_value_heads": None}, InvalidRequest),
    ],
)
@pytest.mark.requirement("serving-bad-checkpoints")
def test_whole_weights_of_another_kind_are_refused(
    values: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    checkpoint = checkpoint_of("whole")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").hardlink_to(checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error) as caught:
        convert_whole(folder, base_file(), tmp_path / "model.gguf")
    assert caught.type is error


@pytest.mark.requirement("serving-bad-checkpoints")
def test_whole_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    shutil.copy(checkpoint_of("whole") / "config.json", tmp_path)
    half = np.zeros((49152, 288), np.float16)
    save_file({"model.embed_tokens.weight": half}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidRequest, match="token_embd"):
        convert_whole(tmp_path, base_file(), tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "modeling.py", "x/a.pkl"])
@pytest.mark.requirement("serving-no-pickles")
def test_what_may_hold_code_is_refused(name: str, tmp_path: Path) -> None:
    folder = foreign_copy("other", tmp_path / "checkpoint")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(InvalidRequest, match=Path(name).name):
        look_at(folder, "smollm2")


@pytest.mark.requirement("serving-bad-checkpoints")
def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_of("other"), folder)
    assert look_at(folder, None).base == "smollm2"
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidRequest, match="adapter_model"):
        look_at(folder, None)


def test_a_base_that_is_no_llama_is_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    file = tmp_path / "base.gguf"
    writer = GGUFWriter(file, "gpt2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(Unsupported, match="gpt2"):
        convert(checkpoint_of("other"), file, tmp_path / "adapter.gguf", "adapter")
    file.write_bytes(b"GGUF, not really")
    with pytest.raises(InvalidRequest):
        convert(checkpoint_of("other"), file, tmp_path / "adapter.gguf", "adapter")
