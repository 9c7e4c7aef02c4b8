"""Shields for tests: what they are asked, a model that says verdicts, and a tiny classifier in ONNX that knows some words."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from ayllu.actors.engines.engine import Delta, Generation, Prompt
from ayllu.actors.engines.scripted import ScriptedEngine, Step
from ayllu.actors.inference import InferenceActor
from ayllu.actors.shields.shield import Shield
from ayllu.bus import Bus
from ayllu.bus.service import serve
from ayllu.schemas import (
    Message,
    Role,
    SafetyViolation,
    ShieldRequest,
    ShieldStage,
    ToolCall,
    ToolResponse,
)


def user(text: Any) -> Message:
    return Message(Role.user, text)


def said(text: str, *calls: ToolCall) -> Message:
    return Message(Role.assistant, text, tool_calls=list(calls))


def answered(text: str) -> Message:
    return Message(Role.tool, "", tool_responses=[ToolResponse("search", text)])


async def looked(
    shield: Shield,
    *messages: Message | str,
    stage: ShieldStage = ShieldStage.input,
    **params: Any,
) -> SafetyViolation | None:
    """Let a shield look, within a deadline that suits a busy machine."""
    dialog = [user(one) if isinstance(one, str) else one for one in messages]
    with anyio.fail_after(60):
        return await shield.check(ShieldRequest(shield.name, stage, dialog, params))


def token(text: str, probability: float = 1.0, **others: float) -> Delta:
    """Return a token; the names of its alternatives may begin with `_` for a blank, and `N` is two line ends."""
    likely = [_logprob(text, probability)]
    likely += [
        _logprob(name.replace("_", " ").replace("N", "\n\n"), p) for name, p in others.items()
    ]
    likely.sort(key=lambda one: -one["logprob"])
    return Delta(text, [{**_logprob(text, probability), "top_logprobs": likely[:5]}])


def _logprob(text: str, probability: float) -> dict[str, Any]:
    logprob = math.log(probability) if probability else -1e9
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


@asynccontextmanager
async def guard_model(
    bus: Bus, answers: Sequence[Sequence[Step]], **values: Any
) -> AsyncIterator[ScriptedEngine]:
    """Serve a scripted model ``lm`` that gives answers in their order, whatever it is asked."""
    left = iter(answers)

    def script(prompt: Prompt, generation: Generation) -> Sequence[Step]:
        return next(left)

    async with ScriptedEngine(script, **values) as engine, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, InferenceActor(engine, "lm"))
        yield engine
        tasks.cancel_scope.cancel()


def write_classifier(
    folder: Path,
    words: Mapping[str, Sequence[float]],
    labels: Sequence[str] = ("BENIGN", "INJECTION"),
) -> Path:
    """Write a classifier whose logits are, label by label, the highest that any word of the text has; others have the first's."""
    folder.mkdir()
    rows = [[5.0] + [-5.0] * (len(labels) - 1), *words.values()]
    vocabulary = {"[UNK]": 0} | {word: number for number, word in enumerate(words, 1)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"id2label": dict(enumerate(labels))}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.onnx").write_bytes(_graph(rows))
    return folder


def _graph(table: Sequence[Sequence[float]]) -> bytes:
    """Return ``logits = ReduceMax(Gather(table, input_ids), axis 1)`` as ONNX, written by hand: protobuf's wire format."""
    width = len(table[0])
    numbers = [number for row in table for number in row]
    weights = (
        _number(1, len(table)) + _number(1, width) + _number(2, 1) + _bytes(8, b"table")
        + _bytes(9, struct.pack(f"<{len(numbers)}f", *numbers))
    )  # fmt: skip
    gather = (
        _bytes(1, b"table") + _bytes(1, b"input_ids") + _bytes(2, b"rows") + _bytes(4, b"Gather")
    )
    axes = _bytes(1, b"axes") + _number(8, 1) + _number(20, 7)
    keep = _bytes(1, b"keepdims") + _number(3, 0) + _number(20, 2)
    reduce = (
        _bytes(1, b"rows") + _bytes(2, b"logits") + _bytes(4, b"ReduceMax") + _bytes(5, axes)
        + _bytes(5, keep)
    )  # fmt: skip
    graph = (
        _bytes(1, gather) + _bytes(1, reduce) + _bytes(2, b"g") + _bytes(5, weights)
        + _bytes(11, _value(b"input_ids", 7, (b"batch", b"length")))
        + _bytes(12, _value(b"logits", 1, (b"batch", width)))
    )  # fmt: skip
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, 13))


def _value(name: bytes, kind: int, shape: Sequence[bytes | int]) -> bytes:
    sizes = [
        _bytes(1, _number(1, one) if isinstance(one, int) else _bytes(2, one)) for one in shape
    ]
    tensor = _number(1, kind) + _bytes(2, b"".join(sizes))
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
