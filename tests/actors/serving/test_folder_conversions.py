"""Checkpoints on bases in Hugging Face's format, against what PEFT merges; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.checkpoints import checkpoint_of, trained
from support.small_folders import (
    Change,
    Q,
    configured,
    cut,
    no_number,
    numbers,
    on_another_module,
    small_adapter,
    small_base,
    with_tensor,
)

from ayllu.actors.serving.convert import Conversion, convert
from ayllu.actors.serving.tensors import Tensors, encoded
from ayllu.schemas import InvalidRequest, Unsupported

HALF_A_STEP = 2.0**-8
"""How far a weight in bfloat16 is from its value, as a share of it."""


def made(job: str, folder: Path, kind: Conversion) -> Tensors:
    """Convert the checkpoint of a job on SmolLM2, and return the weights."""
    assert convert(checkpoint_of(job), trained() / "base", folder, kind) == (kind != "adapter")
    return Tensors(sorted(folder.glob("*.safetensors")))


@pytest.mark.slow
@pytest.mark.requirement("vllm-merge")
@pytest.mark.parametrize("job", ["lora", "dora"])
def test_merged_weights_are_those_that_peft_merges(job: str, tmp_path: Path) -> None:
    folder, base = tmp_path / "merged", trained() / "base"
    merged = made(job, folder, "merge")
    peft = Tensors([trained() / f"{job}-merged" / "model.safetensors"])
    assert set(peft.names) - set(merged.names) == {"lm_head.weight"}  # which is tied
    for name in merged.names:
        assert merged.type(name) == "F32"  # as the base's
        wanted, found = peft.read(name), merged.read(name)
        np.testing.assert_allclose(found, wanted, rtol=HALF_A_STEP, atol=1e-6, err_msg=name)
    others = {path.name for path in base.iterdir()} - {"model.safetensors"}
    for name in others:
        assert (folder / name).read_bytes() == (base / name).read_bytes()
    assert {path.name for path in folder.iterdir()} == {*others, "model.safetensors"}


@pytest.mark.slow
@pytest.mark.requirement("vllm-merge")
def test_an_output_layer_gets_weights_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    merged = made("output", folder, "merge")
    base = Tensors([trained() / "base" / "model.safetensors"])
    assert set(merged.names) - set(base.names) == {"lm_head.weight"}
    for name in base.names:
        if not name.endswith("q_proj.weight"):
            np.testing.assert_array_equal(merged.raw(name), base.raw(name), err_msg=name)
    adapter = load_file(checkpoint_of("output") / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.lm_head.lora_{part}.weight"] for part in "AB")
    wanted = base.read("model.embed_tokens.weight") + 2 * (b @ a)
    np.testing.assert_allclose(merged.read("lm_head.weight"), wanted, atol=1e-5)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.slow
@pytest.mark.requirement("vllm-merge")
def test_whole_weights_stand_beside_the_base_s_tokenizer(tmp_path: Path) -> None:
    whole = made("whole", tmp_path / "whole", "model")
    wanted = Tensors([checkpoint_of("whole") / "model.safetensors"])
    assert set(wanted.names) - set(whole.names) == {"lm_head.weight"}
    assert whole.type("model.norm.weight") == "BF16"
    np.testing.assert_array_equal(whole.raw(f"{Q}.weight"), wanted.raw(f"{Q}.weight"))
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (trained() / "base" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.requirement("vllm-adapters")
def test_a_lora_is_kept_as_it_is(tmp_path: Path) -> None:
    made("lora", tmp_path / "kept", "adapter")
    files = sorted((tmp_path / "kept").iterdir())
    assert [one.name for one in files] == ["adapter_config.json", "adapter_model.safetensors"]
    for file in files:
        assert file.read_bytes() == (checkpoint_of("lora") / file.name).read_bytes()


@pytest.mark.requirement("vllm-merge")
def test_modules_that_came_with_an_adapter_take_the_place_of_the_base_s(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")
    output = numbers(16, 8, seed=1)
    adapter = small_adapter(
        tmp_path / "adapter", {"lm_head.weight": output}, modules_to_save=["lm_head"]
    )
    assert convert(adapter, base, tmp_path / "made", "merge")
    found = load_file(tmp_path / "made" / "model.safetensors")
    np.testing.assert_array_equal(found["lm_head.weight"], output)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"], numbers(16, 8))
    wanted = numbers(8, 8) + 2 * (numbers(8, 2) @ numbers(2, 8))
    np.testing.assert_allclose(found[f"{Q}.weight"], wanted, atol=1e-5)


@pytest.mark.requirement("vllm-merge")
def test_a_checkpoint_s_own_tokenizer_goes_with_it(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    (whole / "tokenizer.json").write_text('{"own": 1}')
    (whole / "tokenizer_config.json").write_text("{}")
    (base / "vocab.json").write_text("{}")
    convert(whole, base, tmp_path / "made", "model")
    assert (tmp_path / "made" / "tokenizer.json").read_text() == '{"own": 1}'
    assert (tmp_path / "made" / "chat_template.jinja").read_text() == "of the base"
    assert not (tmp_path / "made" / "vocab.json").exists()


def test_bfloat16_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.3e38, 1e-40, 0.1], np.float32)
    bits = encoded("x", values, "BF16").view(np.uint16).astype(np.uint32) << 16
    found = bits.view(np.float32)
    # Of two that are as near, the even one.
    assert found[:3].tolist() == [1.0, 1.0, 1.015625]
    np.testing.assert_allclose(found[3:], values[3:], rtol=HALF_A_STEP, atol=1e-40)
    with pytest.raises(InvalidRequest, match="x"):
        encoded("x", np.array([3.4e38], np.float32), "BF16")
    with pytest.raises(InvalidRequest, match="x"):
        encoded("x", np.array([1e5], np.float32), "F16")


HOSTILE: list[tuple[Change, type[Exception]]] = [
    (lambda folder: (folder / "adapter_config.json").unlink(), InvalidRequest),
    (lambda folder: (folder / "adapter_model.safetensors").unlink(), InvalidRequest),
    (cut, InvalidRequest),
    (on_another_module, InvalidRequest),
    (with_tensor("lora_A", lambda values: values[:, :4].copy()), InvalidRequest),
    (with_tensor("lora_B", lambda values: values[:4].copy()), InvalidRequest),
    (with_tensor("lora_B", no_number), InvalidRequest),
    (with_tensor("lora_B", lambda values: values.astype(np.int8)), Unsupported),
    (configured(r=1 << 40), InvalidRequest),
    (configured(r=10**30), InvalidRequest),
    (configured(lora_alpha="much"), InvalidRequest),
    (configured(peft_type="LOHA"), Unsupported),
    (configured(rank_pattern={"q_proj": 1}), Unsupported),
    (configured(init_lora_weights="pissa"), Unsupported),
]


@pytest.mark.requirement("vllm-bad-adapters")
@pytest.mark.parametrize("kind", ["adapter", "merge"])
@pytest.mark.parametrize(("change", "error"), HOSTILE)
def test_an_adapter_that_cannot_be_served_is_refused(
    change: Change, error: type[Exception], kind: Conversion, tmp_path: Path
) -> None:
    base, adapter = small_base(tmp_path / "base"), small_adapter(tmp_path / "adapter")
    change(adapter)
    with pytest.raises(error) as caught:
        convert(adapter, base, tmp_path / "made", kind)
    assert caught.type is error
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.requirement("vllm-bad-adapters")
def test_what_no_adapter_may_have_and_no_merge_can_take_is_refused(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")

    def refused(error: type[Exception], adapter: Path, kind: Conversion, said: str) -> None:
        with pytest.raises(error, match=said) as caught:
            convert(adapter, base, tmp_path / f"made-{adapter.name}", kind)
        assert caught.type is error

    whole = small_adapter(tmp_path / "whole", {"lm_head.weight": numbers(16, 8)})
    refused(InvalidRequest, whole, "adapter", "no part of a LoRA")
    wrong = small_adapter(tmp_path / "wrong", {"lm_head.weight": numbers(16, 4)})
    refused(InvalidRequest, wrong, "merge", "came with the adapter")
    parts = {"lora_A.weight": numbers(2, 8), "lora_B.weight": numbers(16, 2)}
    on_embeddings = {f"model.embed_tokens.{name}": value for name, value in parts.items()}
    refused(Unsupported, small_adapter(tmp_path / "e", on_embeddings), "adapter", "embeddings")
    huge = small_adapter(tmp_path / "huge", lora_alpha=1e300)
    refused(InvalidRequest, huge, "merge", "no numbers")


@pytest.mark.requirement("vllm-bad-adapters")
def test_nothing_is_merged_into_quantised_weights(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", quantization_config={"quant_method": "awq"})
    weights = load_file(base / "model.safetensors")
    weights[f"{Q}.qweight"] = weights.pop(f"{Q}.weight").astype(np.int32)
    save_file(weights, base / "model.safetensors")
    adapter = small_adapter(tmp_path / "adapter")
    for kind in ("merge", "model"):
        with pytest.raises(Unsupported, match="quantised"):
            convert(adapter, base, tmp_path / "made", kind)
    assert not convert(adapter, base, tmp_path / "made", "adapter")
    on_another_module(adapter)
    with pytest.raises(InvalidRequest, match="router"):
        convert(adapter, base, tmp_path / "other", "adapter")


@pytest.mark.requirement("vllm-bad-adapters")
@pytest.mark.parametrize(
    ("weights", "config", "error"),
    [
        ({}, {"num_attention_heads": 4}, Unsupported),
        ({}, {"model_type": "llama"}, Unsupported),
        ({"model.embed_tokens.weight": numbers(17, 8)}, {}, InvalidRequest),
        ({"model.more.weight": numbers(8, 8)}, {}, InvalidRequest),
        ({f"{Q}.weight": None}, {}, InvalidRequest),
        ({f"{Q}.weight": np.full((8, 8), np.inf, np.float32)}, {}, InvalidRequest),
    ],
)
def test_whole_weights_that_are_not_the_base_s_kind_are_refused(
    weights: dict[str, Any], config: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    base = small_base(tmp_path / "base")
    whole = small_base(tmp_path / "whole", **config)
    found = load_file(whole / "model.safetensors") | weights
    save_file(
        {name: value for name, value in found.items() if value is not None},
        whole / "model.safetensors",
    )
    with pytest.raises(error) as caught:
        convert(whole, base, tmp_path / "made", "model")
    assert caught.type is error
