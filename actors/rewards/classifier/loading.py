"""Classification models from folders: checked, loaded in float32, an adapter merged into its base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from ....schemas import EngineError, InvalidRequest, Unsupported
from ...training.checkpoints import MANIFEST, refuse_pickles, verify
from ...training.child.weights import prepare
from ...training.protocol import BaseModel
from .protocol import Load

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load(wanted: Load) -> tuple[Any, PreTrainedTokenizerBase]:
    """Return a model that is ready to score, and its tokenizer.

    Raises:
        InvalidRequest: the folder has no such model, is damaged, or may hold code.
        Unsupported: the model has more than one output, or no chat template.
        EngineError: the device is not there.
    """
    folder = Path(wanted.weights)
    if wanted.device == "cuda" and not torch.cuda.is_available():
        raise EngineError("there is no such device: torch finds no CUDA here")
    _check(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        model, tokenizer = _merged(folder, wanted.base)
    else:
        if not (folder / "config.json").is_file():
            raise InvalidRequest("the folder has no config.json: there is no model in it")
        model, missing = _from_weights(folder)
        if missing:
            raise InvalidRequest(
                f"the weights have no {', '.join(missing)}: they are no reward model"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL)
    if not tokenizer.chat_template:
        raise Unsupported(
            "the model has no chat template, without which nobody can tell how it reads a dialog: put the one that it was "
            "trained with into its folder, as chat_template.jinja"
        )
    return model.eval().to(wanted.device), tokenizer


def context_of(model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Return how many tokens a dialog with its answer may have; 0 where nothing limits it."""
    made_for = getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0
    # Where positions are counted from behind the padding's, only the tokenizer knows; one that does not has a huge number.
    limits = [limit for limit in (max_length, made_for, tokenizer.model_max_length) if limit > 0]
    least = min(limits, default=0)
    return int(least) if least < sys.maxsize else 0


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise InvalidRequest("there is no folder of these weights")
    if (folder / MANIFEST).is_file():
        if not verify(folder).reward:
            raise InvalidRequest("the checkpoint is no reward model")
    else:
        refuse_pickles(folder)


def _from_weights(folder: Path) -> tuple[Any, list[str]]:
    """Return a model of one output, and what of it the weights do not have."""
    model, found = AutoModelForSequenceClassification.from_pretrained(
        folder,
        config=_config(folder),
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **_LOCAL,
    )
    return model, sorted(found["missing_keys"])


def _config(folder: Path) -> Any:
    config = AutoConfig.from_pretrained(folder, **_LOCAL)
    classifies = any("Classification" in name for name in config.architectures or ())
    if classifies and config.num_labels != 1:
        raise Unsupported(
            f"the model has {config.num_labels} outputs; a reward model has one, the score"
        )
    config.num_labels = 1
    return config


def _merged(folder: Path, base: BaseModel | None) -> tuple[Any, PreTrainedTokenizerBase]:
    from peft import PeftModel

    if base is None:
        raise InvalidRequest("the folder has an adapter, whose base is not known")
    prepare(base, print)
    model, missing = _from_weights(Path(base.weights))
    with safetensors.safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        there = {name.removeprefix(_PREFIX) for name in file.keys()}  # noqa: SIM118  (no mapping)
    if lacking := [name for name in missing if name not in there]:
        raise InvalidRequest(f"the adapter has no {', '.join(lacking)}: it is no reward model")
    # The tokenizer that the adapter was trained with says what pads, and so which token is the last one.
    own = (folder / "tokenizer_config.json").is_file()
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder if own else base.weights, **_LOCAL
    )
    if tokenizer.pad_token_id is not None:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    adapted: Any = PeftModel.from_pretrained(model, str(folder))
    return adapted.merge_and_unload(), tokenizer
