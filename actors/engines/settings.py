"""What some engines are told beside what all are told: tables of ``[[models]]``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from ...schemas import Wire

Seconds = Annotated[float, Meta(gt=0)]


class VllmSettings(Wire, frozen=True):
    """How vLLM runs a model; each value is vLLM's own setting of a like name.

    Attributes:
        dtype: of weights and activations; ``auto`` is what the model says.
        quantization: how weights are quantised, for example ``fp8``; by default what the model says.
        tensor_parallel: over how many devices each layer is spread.
        data_parallel: how many copies of the model share the requests.
        gpu_memory: the part of each GPU's memory that it takes, from 0 to 1.
        cache_gib: memory for the key-value cache on each device, in GiB; by default what ``gpu_memory`` leaves, which on a CPU
            is a part of all memory: say it there.
        eager: whether it runs without compiled graphs: starts sooner, answers slower.
        chat_template: ``llama3``, or the path of a Jinja file; by default the model's own.
        tool_parser: the name of vLLM's parser of the model's tool calls, for example ``llama3_json`` or ``hermes``. Without
            one, tools stand in the system message, in a format of ours.
        adapters: how many LoRA adapters requests may use at once; 0 for none.
        max_lora_rank: the highest rank of an adapter.
        start_seconds: how long loading may take.
    """

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Annotated[str, Meta(min_length=1)] | None = None
    tensor_parallel: Annotated[int, Meta(ge=1, le=1024)] = 1
    data_parallel: Annotated[int, Meta(ge=1, le=1024)] = 1
    gpu_memory: Annotated[float, Meta(gt=0, le=1)] = 0.9
    cache_gib: Annotated[int, Meta(ge=1, le=4096)] | None = None
    eager: bool = False
    chat_template: Annotated[str, Meta(min_length=1)] | None = None
    tool_parser: Annotated[str, Meta(min_length=1)] | None = None
    adapters: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 16
    start_seconds: Seconds = 1800.0


class OpenAISettings(Wire, frozen=True):
    """How a server is asked that speaks OpenAI's protocol.

    Attributes:
        model: what the server calls the model; by default the name that it has here.
        key_variable: the environment variable that holds the key.
        tools: whether the server takes ``tools``; else they stand in the system message, in a format of ours.
        json_schema: whether it takes ``response_format`` with a JSON schema.
        logprobs: whether it gives log probabilities.
        images: whether its model takes images.
        continuation: how it goes on with a partial answer: ``none``, it cannot; ``vllm``, when it is told to by vLLM's request
            fields; ``trailing``, whenever the dialog ends in the assistant's message, as llama.cpp's server does.
        extra: further fields of each request, for example ``{min_p = 0}`` where the server has defaults of its own; what
            ayllu itself sends goes before them.
        connect_seconds: how long a connection may take.
        first_token_seconds: how long it may take until an answer begins, all tries together.
        idle_seconds: how long it may be silent within an answer.
        retries: how often a request is repeated that failed before its answer began.
    """

    model: Annotated[str, Meta(min_length=1)] | None = None
    key_variable: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    tools: bool = True
    json_schema: bool = True
    logprobs: bool = True
    images: bool = False
    continuation: Literal["none", "vllm", "trailing"] = "none"
    extra: dict[str, Any] = {}
    connect_seconds: Seconds = 10.0
    first_token_seconds: Seconds = 300.0
    idle_seconds: Seconds = 60.0
    retries: Annotated[int, Meta(ge=0, le=10)] = 2
