"""Scores of a classification model by a plain loop over transformers: what a person would write.

python -m benchmarks.scores_by_hand make FOLDER [tiny]     a model with a random head, on the default model's tokenizer
python -m benchmarks.scores_by_hand loop FOLDER DIALOGS    a helper: the seconds for all dialogs, in batches as asked
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import anyio
import msgspec

from ayllu.actors.files import locate
from ayllu.actors.registry import default_models

from .child import answer_lines, run


class Asked(msgspec.Struct):
    """How many dialogs go through the model at once."""

    batch_size: int


class Took(msgspec.Struct):
    """The seconds for all dialogs, and their scores."""

    seconds: float
    scores: list[float]


def make(folder: str, *, tiny: bool) -> None:
    """Make the model that is measured."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    gguf = locate(default_models()[0].source)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    torch.manual_seed(0)
    if tiny:
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=2048,
        )  # fmt: skip
        weights = None
    else:
        base: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        config, weights = base.config, base.model.state_dict()
        config.quantization_config = None
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    model = LlamaForSequenceClassification(config)
    if weights is not None:
        model.model.load_state_dict(weights)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


async def loop(folder: str, file: str) -> None:
    """Score, as often as asked."""
    dialogs = json.loads(await anyio.Path(file).read_text())
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.eval()

    async def answer(line: bytes) -> Took:
        size = msgspec.json.decode(line, type=Asked).batch_size
        scores: list[float] = []
        begun = time.perf_counter()
        for start in range(0, len(dialogs), size):
            batch = tokenizer.apply_chat_template(
                dialogs[start : start + size],
                padding=True,
                padding_side="right",
                return_tensors="pt",
                return_dict=True,
            )
            with torch.inference_mode():
                scores += model(**batch).logits[:, 0].tolist()
        return Took(time.perf_counter() - begun, scores)

    await answer_lines(answer)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], tiny="tiny" in sys.argv[3:])
    else:
        run(loop, *sys.argv[2:])
