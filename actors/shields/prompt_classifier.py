"""Text classifiers in ONNX format as finders of attacks: folders as Hugging Face's Optimum exports them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import anyio.to_thread
import numpy as np
import onnxruntime
from anyio import CapacityLimiter
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ...schemas import EngineError, InvalidRequest
from .prompt_rules import Assessment
from .prompt_text import hidden, shown

GRAPHS = ("model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx")
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
BENIGN = frozenset({"benign", "safe", "legit", "legitimate", "normal", "harmless", "clean"})
"""The labels that are known to mean no attack."""
BATCH_TOKENS = 2048
"""How many tokens go through the model at once."""
OVERLAP = 4
"""Windows share the fourth part of their tokens, so that an attack lies whole in one."""


class PromptClassifier:
    """An `Assessor` on a classifier: its windows see all of a text, and the worst one counts.

    Args:
        folder: a graph, ``tokenizer.json``, and ``config.json`` with ``id2label``.
        attacks: the labels that are attacks; all but the benign ones, if none are named.
        max_tokens: the longest window, the model's own tokens included.
    """

    def __init__(self, folder: Path, attacks: Sequence[str], max_tokens: int) -> None:
        self.description = f"Asks the classifier {folder.name} whether a text attacks the model's instructions. It is as good as that classifier."
        self._folder = folder
        self._named = attacks
        self._max_tokens = max_tokens
        self._limiter = CapacityLimiter(1)
        self._session: Any = None
        self._tokenizer: Any = None
        self._inputs: Sequence[str] = ()
        self._labels: Sequence[str] = ()
        self._attacks: Sequence[int] = ()

    async def __aenter__(self) -> Self:
        """Load it.

        Raises:
            InvalidRequest: the folder holds no such classifier, or nobody knows which of its labels are attacks.
        """
        await anyio.to_thread.run_sync(self._load, limiter=self._limiter)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Let it go."""
        self._session = None

    def _load(self) -> None:
        name = self._folder.name
        graph = next((path for file in GRAPHS if (path := self._folder / file).is_file()), None)
        if graph is None:
            raise InvalidRequest(
                f"shields.prompt_guard.folder: {name} has none of {', '.join(GRAPHS)}"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        # Threads that wait actively take the processor from everything else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            config = json.loads((self._folder / "config.json").read_bytes())
            labels = {int(number): str(label) for number, label in config["id2label"].items()}
            self._labels = [labels[number] for number in range(len(labels))]
            tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            session = onnxruntime.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InvalidRequest(
                f"shields.prompt_guard.folder: {name} cannot be loaded: {str(error)[:300]}"
            ) from error
        self._inputs = [one.name for one in session.get_inputs()]
        if not {"input_ids"} <= set(self._inputs) <= INPUTS:
            raise InvalidRequest(
                f"shields.prompt_guard.folder: {name} wants {', '.join(self._inputs)}: it is no classifier of texts"
            )
        tokenizer.no_padding()
        own = tokenizer.num_special_tokens_to_add(is_pair=False)
        tokenizer.enable_truncation(self._max_tokens, stride=(self._max_tokens - own) // OVERLAP)
        self._session, self._tokenizer = session, tokenizer
        self._attacks = self._which()
        self._score([tokenizer.encode("x")])  # It has as many outputs as labels.

    def _which(self) -> list[int]:
        """Return which labels are attacks."""
        told = ", ".join(self._labels)
        unknown = set(self._named) - set(self._labels)
        if unknown:
            raise InvalidRequest(
                f"shields.prompt_guard.attacks: {', '.join(sorted(unknown))} is none of {told}"
            )
        attacks = set(self._named) or {
            label for label in self._labels if label.casefold() not in BENIGN
        }
        if not attacks or (len(attacks) == len(self._labels) and not self._named):
            raise InvalidRequest(f"shields.prompt_guard.attacks: say which of {told} are attacks")
        return [number for number, label in enumerate(self._labels) if label in attacks]

    async def assess(self, text: str) -> Assessment:
        """Let the model look at all windows of a text, as it is and as it is seen.

        Raises:
            EngineError: the model fails.
        """
        texts = dict.fromkeys((text, "\n".join(filter(None, (shown(text), hidden(text))))))
        worst = Assessment(0.0, ())
        for one in texts:
            rows = await anyio.to_thread.run_sync(self._windows, one, limiter=self._limiter)
            for batch in _batches(rows):
                # One at a time, in turn with other texts.
                found = await anyio.to_thread.run_sync(self._score, batch, limiter=self._limiter)
                worst = max(worst, found, key=lambda assessment: assessment.score)
        return worst

    def _windows(self, text: str) -> list[Encoding]:
        first = self._tokenizer.encode(text)
        return [first, *first.overflowing]

    def _score(self, rows: Sequence[Encoding]) -> Assessment:
        width = max(1, *(len(row) for row in rows))
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row.ids
            mask[number, : len(row)] = 1
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        try:
            logits = self._session.run(None, {name: values[name] for name in self._inputs})[0]
            odds = _probabilities(np.asarray(logits, np.float64))
        except Exception as error:
            raise EngineError("prompt_guard: the classifier failed") from error
        if odds.shape != (len(rows), len(self._labels)) or not np.isfinite(odds).all():
            raise EngineError("prompt_guard: what the classifier says are not its labels' scores")
        scores = odds[:, self._attacks]
        worst = int(scores.sum(axis=1).argmax())
        label = self._labels[self._attacks[int(scores[worst].argmax())]]
        total = min(1.0, float(scores[worst].sum()))
        return Assessment(round(total, 4), [f"{self._folder.name}: {label}"])


def _probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return found


def _batches(rows: Sequence[Encoding]) -> Iterator[Sequence[Encoding]]:
    most = max(1, BATCH_TOKENS // max(1, *(len(row) for row in rows)))
    for start in range(0, len(rows), most):
        yield rows[start : start + most]
