"""Base models as torch weights: made from GGUF files once, or taken from folders that hold no code."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....schemas import InvalidRequest
from ..checkpoints import refuse_pickles, verify
from ..protocol import BaseModel
from .saving import storage_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD = "score"
"""The module of a reward model that makes a number of what the others make of its last token."""


def prepare(base: BaseModel, log: Callable[[str], None]) -> None:
    """See to it that the weights are there and hold no code, and that a checkpoint to go on with is whole.

    Args:
        base: the weights.
        log: tells people what takes long.

    Raises:
        InvalidRequest: they are not there, may hold code, or the checkpoint is damaged.
    """
    folder = Path(base.weights)
    if base.gguf is not None:
        if not folder.is_dir():
            _make_once(Path(base.gguf), folder, base.name, log)
    elif not (folder / "config.json").is_file():
        raise InvalidRequest(f"there are no weights of {base.name} in Hugging Face's format")
    else:
        refuse_pickles(folder)
    if base.checkpoint is not None:
        verify(Path(base.checkpoint))


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with a token to pad with.

    Raises:
        InvalidRequest: it cannot tell where its tokens stand in a text, or has no end token.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        base.weights, local_files_only=True, trust_remote_code=False
    )
    if not tokenizer.is_fast:
        raise InvalidRequest(f"{base.name} has no fast tokenizer, which training needs")
    if tokenizer.eos_token is None:
        raise InvalidRequest(f"the tokenizer of {base.name} has no end token, which training needs")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    folder: Path,
    device: torch.device,
    *,
    scoring: bool = False,
    in_4_bits: bool = False,
    several: bool = False,
) -> PreTrainedModel:
    """Return a model from a folder of ours or one that holds no code, in float32.

    Args:
        folder: where it is.
        device: what it shall be trained on.
        scoring: whether it shall score, with a head that is random where the weights have none, rather than speak.
        in_4_bits: whether its linear layers are kept as NF4 (https://arxiv.org/abs/2305.14314).
        several: whether several processes train it, each of which then moves its own.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        BitsAndBytesConfig,
    )

    options: dict[str, object] = {"num_labels": 1} if scoring else {}
    if in_4_bits:
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if half else torch.float32,
            llm_int8_skip_modules=[HEAD] if scoring else None,
        )
        options["device_map"] = {"": device}
    kind: Any = AutoModelForSequenceClassification if scoring else AutoModelForCausalLM
    model: Any = kind.from_pretrained(
        folder,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        **options,
    )
    if in_4_bits:
        _keep_trainable(model)
    elif not several:
        model.to(device)
    loaded: PreTrainedModel = model
    return loaded


def _keep_trainable(model: PreTrainedModel) -> None:
    """Let no validation on a CPU repack the weights for bitsandbytes' fast kernel, through which no gradient passes.

    It would leave them so (until they are saved, which unpacks them): all gradients of later iterations were zero.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def context_of(folder: Path) -> int:
    """Return how many tokens the model in a folder was made for; 0 where it does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or 0)


def _make_once(gguf: Path, folder: Path, name: str, log: Callable[[str], None]) -> None:
    """Make weights, or wait until another job has made them.

    Raises:
        InvalidRequest: there is no such file.
        StorageFailed: they cannot be written.
    """
    if not gguf.is_file():
        raise InvalidRequest(f"there is no GGUF file {gguf.name}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            log(f"making torch weights of {name} from its GGUF file, once for all jobs")
            # What those left who were killed.
            for left in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            with storage_errors(f"the weights of {name}"):
                _make_from_gguf(gguf, folder)


def _make_from_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        ).save_pretrained(made)
        for path in made.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
