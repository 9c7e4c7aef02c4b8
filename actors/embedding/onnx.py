"""Sentence-embedding models in ONNX format, run by onnxruntime on the CPU.

Any folder as sentence-transformers exports it: a graph that returns a vector for each token (they are pooled here) or for
each text, and its ``tokenizer.json``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import anyio
import numpy as np
import onnxruntime
from anyio import CapacityLimiter
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ...schemas import EngineError, InvalidRequest

Pooling = Literal["mean", "cls"]
BATCH_TOKENS = 2048
"""How many tokens, padding included, go through the model at once: more gain nothing on a CPU, and others wait longer."""
MAX_CHARACTERS = 1 << 15
"""Longer texts are not even counted: that would take long, and hold up everything."""
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """Where a model is, and what its files do not tell.

    Attributes:
        graph: the ONNX file.
        tokenizer: the ``tokenizer.json``.
        max_tokens: the longest input, the model's own tokens (such as [CLS]) included.
        pooling: how vectors of tokens become one of the text.
    """

    graph: Path
    tokenizer: Path
    max_tokens: int
    pooling: Pooling = "mean"


class OnnxEmbedder:
    """An `Embedder` on onnxruntime.

    Args:
        name: what requests call it.
        model: its files.
    """

    def __init__(self, name: str, model: OnnxModel) -> None:
        self.name = name
        self._model = model
        self._limiter = CapacityLimiter(1)
        self._session: Any = None
        self._tokenizer: Tokenizer | None = None
        self._inputs: tuple[str, ...] = ()
        self._own_tokens = 0
        self._dimension = 0

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        return self._dimension

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens."""
        return self._model.max_tokens - self._own_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """Splits texts into tokens."""
        if self._tokenizer is None:
            raise EngineError(f"the embedding model {self.name} is not loaded")
        return self._tokenizer

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens texts have; see `Embedder.count_tokens`."""
        found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding) for encoding in found]

    async def __aenter__(self) -> Self:
        """Load the model.

        Raises:
            InvalidRequest: its files are not those of a sentence-embedding model.
        """
        await anyio.to_thread.run_sync(self._load, limiter=self._limiter)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let it go."""
        self._session = None

    def _load(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        # Threads that wait actively take the processor from everything else.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            tokenizer = Tokenizer.from_file(str(self._model.tokenizer))
            session = onnxruntime.InferenceSession(
                str(self._model.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InvalidRequest(
                f"the embedding model {self.name} cannot be loaded: {str(error)[:300]}"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._inputs = tuple(one.name for one in session.get_inputs())
        if not {"input_ids"} <= set(self._inputs) <= INPUTS:
            raise InvalidRequest(
                f"the embedding model {self.name} wants {', '.join(self._inputs)}: it is none for texts"
            )
        self._session, self._tokenizer = session, tokenizer
        self._own_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
        self._dimension = self._run([tokenizer.encode("x")]).shape[1]

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts; see `Embedder.embed`."""
        found = np.empty((len(texts), self.dimension), np.float32)
        if not texts:
            return found
        encodings = await anyio.to_thread.run_sync(self._encode, list(texts), limiter=self._limiter)
        # Short ones with short ones, so that little is padded.
        order = sorted(range(len(texts)), key=lambda number: len(encodings[number]))
        for batch in _batches(order, encodings):
            rows = [encodings[number] for number in batch]
            # One at a time, in turn with other callers.
            found[batch] = await anyio.to_thread.run_sync(self._run, rows, limiter=self._limiter)
        return found

    def _encode(self, texts: list[str]) -> list[Encoding]:
        for number, text in enumerate(texts):
            if len(text) > MAX_CHARACTERS:
                raise InvalidRequest(
                    f"text {number} has {len(text)} characters, more than {self.max_tokens} tokens "
                    f"that the embedding model {self.name} reads: split it"
                )
        encodings = self.tokenizer.encode_batch(texts)
        for number, encoding in enumerate(encodings):
            if len(encoding) > self._model.max_tokens:
                raise InvalidRequest(
                    f"text {number} has {len(encoding) - self._own_tokens} tokens, more than the "
                    f"{self.max_tokens} that the embedding model {self.name} reads: split it"
                )
        return encodings

    def _run(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        width = max(map(len, encodings))
        ids = np.zeros((len(encodings), width), np.int64)
        mask = np.zeros_like(ids)
        for number, encoding in enumerate(encodings):
            ids[number, : len(encoding)] = encoding.ids
            mask[number, : len(encoding)] = 1
        values = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
        }
        try:
            output = self._session.run(None, {name: values[name] for name in self._inputs})[0]
        except Exception as error:
            raise EngineError(f"the embedding model {self.name} failed") from error
        return _normalised(self._pooled(output, mask))

    def _pooled(self, output: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        if output.ndim == 2:  # The graph pools.
            return output
        if self._model.pooling == "cls":
            return output[:, 0]
        weights = mask[:, :, None].astype(np.float32)
        mean: NDArray[np.float32] = (output * weights).sum(axis=1) / weights.sum(axis=1)
        return mean


def _normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return found


def _batches(order: Sequence[int], encodings: Sequence[Encoding]) -> Iterator[list[int]]:
    batch: list[int] = []
    for number in order:
        # In the order of their lengths, each is as wide as the batch with it.
        if batch and (len(batch) + 1) * len(encodings[number]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
