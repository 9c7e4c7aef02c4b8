"""How the engine `openai` is made of a model entry."""

from __future__ import annotations

from typing import Any

import pytest

from ayllu.actors.engines.settings import OpenAISettings
from ayllu.actors.registry import ModelSpec, build_engine
from ayllu.schemas import InvalidRequest

VARIABLE = "AYLLU_TEST_KEY"


def spec(source: str = "http://h.example:8000/v1", **values: Any) -> ModelSpec:
    return ModelSpec(name="a", engine="openai", source=source, openai=OpenAISettings(**values))


@pytest.mark.requirement("upstream-capabilities")
def test_settings_reach_the_engine() -> None:
    engine = build_engine(ModelSpec("a", "openai", "https://h.example/v1/", context=99, slots=2))
    assert (engine.name, engine.context, engine.slots) == ("openai", 99, 2)
    assert engine.capabilities == {"json_schema", "logprobs", "tools"}
    engine = build_engine(spec(tools=False, logprobs=False, continuation="vllm"))
    assert engine.capabilities == {"json_schema", "continuation"}


@pytest.mark.requirement("models-checked")
@pytest.mark.parametrize(
    "source",
    [
        "models/a.gguf",
        "ftp://h.example/v1",
        "http://",
        "http://user:secret@h.example/v1",
        "http://h.example/v1?key=secret",
        "http://h.example/v1#x",
        "http://h.example:99999/v1",
        "http://h .example/v1",
    ],
)
def test_a_wrong_address_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest, match="model 'a'") as caught:
        build_engine(spec(source))
    assert "secret" not in caught.value.message


@pytest.mark.requirement("upstream-key")
def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InvalidRequest, match=VARIABLE):
        build_engine(spec(key_variable=VARIABLE))
    monkeypatch.setenv(VARIABLE, " sk-1\n")
    assert "sk-1" not in repr(vars(build_engine(spec(key_variable=VARIABLE))))
    for wrong in ("", "sk 1", "sk-1\r\nX: y", "sk-ñ"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(InvalidRequest, match=VARIABLE) as caught:
            build_engine(spec(key_variable=VARIABLE))
        assert not wrong or wrong not in caught.value.message
