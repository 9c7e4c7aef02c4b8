"""All that touches vLLM's own interfaces, of version 0.32: what another version changes is changed here.

Importing this module takes seconds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .lifeline import VARIABLE

# What vLLM reads when it is imported: it tells nobody what it does, asks nobody for models, and leaves stdout alone, on which a
# worker says that it is ready.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    VARIABLE: "1",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

from vllm import AsyncEngineArgs, SamplingParams  # noqa: E402
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402
from vllm.exceptions import VLLMClientError  # noqa: E402
from vllm.inputs.engine import tokens_input  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams  # noqa: E402
from vllm.tool_parsers import ToolParserManager  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402
from vllm.v1.engine.exceptions import EngineDeadError  # noqa: E402

from ....schemas import (  # noqa: E402
    AylluError,
    EngineDead,
    EngineError,
    InvalidRequest,
    SamplingStrategy,
    StopReason,
)
from ..engine import TOP_LOGPROBS, Delta, Generation  # noqa: E402
from ..grammar import grammar_of  # noqa: E402
from ..settings import VllmSettings  # noqa: E402

log = logging.getLogger(__name__)

GIB = 1 << 30
_ADAPTER_IDS = count(1)
_REASONS = MappingProxyType({"stop": StopReason.finished_ok, "length": StopReason.max_tokens})


def engine_arguments(model: Path, context: int, slots: int, settings: VllmSettings) -> Any:
    """Return vLLM's arguments."""
    arguments: dict[str, Any] = {
        "model": str(model),
        "max_model_len": context,
        "max_num_seqs": slots,
        "dtype": settings.dtype,
        "quantization": settings.quantization,
        "tensor_parallel_size": settings.tensor_parallel,
        "data_parallel_size": settings.data_parallel,
        "gpu_memory_utilization": settings.gpu_memory,
        "enforce_eager": settings.eager,
        "trust_remote_code": False,
        "load_format": "safetensors",  # never a pickle
        "disable_log_stats": True,
    }
    if settings.cache_gib is not None:
        arguments["kv_cache_memory_bytes"] = settings.cache_gib * GIB
    if settings.adapters:
        arguments |= {
            "enable_lora": True,
            "max_loras": settings.adapters,
            "max_lora_rank": settings.max_lora_rank,
        }
    made: Any = AsyncEngineArgs(**arguments)
    # A small model would fill its answer with blanks, where the grammar lets it.
    made.structured_outputs_config.backend = "xgrammar"
    made.structured_outputs_config.disable_any_whitespace = True
    return made


def translated(error: Exception) -> AylluError:
    """Return what an error of vLLM means: `EngineDead`, `InvalidRequest`, or `EngineError` for all else, which the log has."""
    if isinstance(error, AylluError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineDead("vLLM's engine core died")
    if isinstance(error, VLLMClientError | ValueError | TypeError):
        return InvalidRequest(f"vLLM refused the request: {error}")
    log.error("vLLM failed", exc_info=error)
    return EngineError("vLLM failed; its log says why")


def sampling_params(generation: Generation, max_tokens: int, *, shows_control: bool) -> Any:
    """Return how to sample; see `Generation`.

    Args:
        generation: what was asked for.
        max_tokens: the most new tokens.
        shows_control: whether control tokens are part of the text, for a parser of tool calls.
    """
    sampling = generation.sampling
    values: dict[str, Any] = {"temperature": sampling.temperature, "seed": sampling.seed}
    if sampling.strategy is SamplingStrategy.greedy:
        values["temperature"] = 0.0
    else:
        values[sampling.strategy.value] = getattr(sampling, sampling.strategy.value)
    if generation.json_schema is not None:
        values["structured_outputs"] = StructuredOutputsParams(json=generation.json_schema)
    elif generation.answer_choices is not None:
        grammar = grammar_of(generation.answer_choices)
        values["structured_outputs"] = StructuredOutputsParams(grammar=grammar)
    if generation.logprobs:
        values["logprobs"] = TOP_LOGPROBS
    return SamplingParams(
        max_tokens=max_tokens,
        stop=list(sampling.stop),
        skip_special_tokens=not shows_control,
        output_kind=RequestOutputKind.DELTA,
        **values,
    )


class Run:
    """One generation in vLLM."""

    def __init__(self, llm: Any, collector: Any) -> None:
        self._llm = llm
        self._collector = collector
        self._completion_tokens = 0
        self._ended = False

    async def take(self) -> tuple[Delta, Sequence[int]]:
        """Return what is new, and its tokens; the last one has a stop reason. Cancel-safe.

        Raises:
            AylluError: it failed.
        """
        try:
            output = self._collector.get_nowait() or await self._collector.get()
        except Exception as error:
            raise translated(error) from error
        piece = output.outputs[0]
        self._completion_tokens += len(piece.token_ids)
        logprobs = None if piece.logprobs is None else _logprobs(piece)
        if not output.finished:
            return Delta(piece.text, logprobs), piece.token_ids
        self._ended = True
        reason = _REASONS.get(piece.finish_reason)
        if reason is None:
            raise EngineError(f"vLLM ended the answer: {piece.finish_reason}")
        last = Delta(
            piece.text,
            logprobs,
            stop_reason=reason,
            prompt_tokens=len(output.prompt_token_ids),
            completion_tokens=self._completion_tokens,
        )
        return last, piece.token_ids

    def fail(self, error: AylluError) -> None:
        """Let whoever takes, or waits for something to take, get an error."""
        self._collector.put(error)

    async def abort(self) -> None:
        """Let vLLM end it, if it has not ended."""
        if self._ended:
            return
        try:
            await self._llm.abort(self._collector.request_id, internal=True)
        except Exception as error:
            log.info("a generation was not aborted: %s", error)


def _logprobs(piece: Any) -> list[dict[str, Any]]:
    found = []
    tokens = list(zip(piece.token_ids, piece.logprobs, strict=False))
    if piece.finish_reason == "stop" and not isinstance(piece.stop_reason, str):
        tokens = tokens[:-1]  # the one that ends the answer is no part of its text
    for token, alternatives in tokens:
        ranked = sorted(alternatives.values(), key=lambda one: -one.logprob)[:TOP_LOGPROBS]
        top = [_logprob(one) for one in ranked]
        found.append({**_logprob(alternatives[token]), "top_logprobs": top})
    return found


def _logprob(one: Any) -> dict[str, Any]:
    text = one.decoded_token or ""
    return {"token": text, "logprob": min(one.logprob, 0.0), "bytes": list(text.encode())}


class Core:
    """A vLLM engine and its processes. Making it loads the model, and blocks for that long."""

    def __init__(self, model: Path, context: int, slots: int, settings: VllmSettings) -> None:
        self._llm: Any = AsyncLLM.from_engine_args(
            engine_arguments(model, context, slots, settings)
        )
        self._requests = count()
        self.tokenizer: Any = self._llm.get_tokenizer()

    @property
    def dead(self) -> bool:
        """Whether its processes are known to be no more."""
        return bool(self._llm.errored)

    async def begin(self, tokens: Sequence[int], params: Any, adapter: Any = None) -> Run:
        """Begin a generation.

        Raises:
            AylluError: it cannot be.
        """
        try:
            collector = await self._llm.add_request(
                f"r{next(self._requests)}",
                tokens_input(list(tokens)),
                params,
                lora_request=adapter,
            )
        except Exception as error:
            raise translated(error) from error
        return Run(self._llm, collector)

    async def add_adapter(self, name: str, folder: Path) -> Any:
        """Load a LoRA, unmerged, while requests run; what is returned goes to `begin`.

        Raises:
            EngineError: vLLM cannot load it.
        """
        adapter = LoRARequest(name, next(_ADAPTER_IDS), str(folder))
        try:
            loaded = await self._llm.add_lora(adapter)
        except EngineDeadError as error:
            raise EngineDead("vLLM's engine core died") from error
        except Exception as error:
            raise EngineError(f"vLLM cannot load the adapter {name}: {error}") from error
        if not loaded:
            raise EngineError(f"vLLM cannot load the adapter {name}")
        return adapter

    async def remove_adapter(self, adapter: Any) -> None:
        """Unload a LoRA; requests on it have ended."""
        try:
            await self._llm.remove_lora(adapter.lora_int_id)
        except Exception as error:
            raise translated(error) from error

    def close(self) -> None:
        """End its processes; blocks for some seconds."""
        self._llm.shutdown()


class CallParser:
    """vLLM's parser of a model's tool calls.

    Args:
        name: its name in vLLM.
        tokenizer: the model's.

    Raises:
        EngineError: there is no such parser, or it does not suit the model.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        try:
            self._class: Any = ToolParserManager.get_tool_parser(name)
            self._class(tokenizer)
        except KeyError as error:
            raise EngineError(f"tool_parser: vLLM knows no parser {name!r}") from error
        except Exception as error:
            raise EngineError(f"tool_parser: {name} does not suit the model: {error}") from error
        self._tokenizer = tokenizer

    def start(self, tools: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
        """Return a parser for one answer, and the request that its methods want to see."""
        request: Any = ChatCompletionRequest(
            model="", messages=[{"role": "user", "content": ""}], tools=list(tools)
        )
        return self._class(self._tokenizer, request.tools), request
