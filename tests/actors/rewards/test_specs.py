"""Reward models of the configuration: what is refused, and what is served without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import (
    AnyRewardSpec,
    ClassifierSpec,
    JudgeSpec,
    ProgramSpec,
    check_rewards,
    default_rewards,
)
from ayllu.bus import local_bus
from ayllu.runtime.arguments import KINDS as NAMED
from ayllu.runtime.config import load_config
from ayllu.runtime.worker import KINDS
from ayllu.schemas import InvalidRequest
from ayllu.schemas.wire import convert

pytestmark = pytest.mark.requirement("reward-configuration")

P = {"engine": "program", "function": "exact_answer"}
J = {"engine": "judge", "model": "lm"}
C = {"engine": "combination"}


def specs_of(*values: dict[str, Any]) -> list[AnyRewardSpec]:
    return convert(
        [{"name": f"r{number}", **value} for number, value in enumerate(values)],
        list[AnyRewardSpec],
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([P | {"name": "m"}], "'m' is taken by a model"),
        ([P | {"name": "x"}, J | {"name": "x"}], "'x' is taken by reward model 'x'"),
        ([P, J | {"aliases": ["r0"]}], "'r0' is taken"),
        ([{"engine": "program"}], "either a function or an operation"),
        ([P | {"operation": "x"}], "either a function or an operation"),
        ([{"engine": "program", "operation": "x", "params": {"a": 1}}], "no params"),
        ([{"engine": "program", "operation": "a b"}], "operation"),
        ([P | {"function": "exact"}], "no function 'exact'"),
        ([P | {"function": "os:system; x"}], "no function"),
        ([P | {"params": {"pattern": "("}}], "no regular expression"),
        ([P | {"params": {"pattern": "x"}}], "0 groups"),
        ([P | {"params": {"patern": "(x)"}}], "patern"),
        ([P | {"function": "json_schema", "params": {"schema": {"type": 1}}}], "no JSON schema"),
        ([P | {"function": "tool_call", "params": {"x": 1}}], "x"),
        ([P | {"function": "code_tests", "params": {"tests": []}}], "length"),
        ([P | {"lowest": 2.0}], "lowest"),
        ([P | {"highest": float("inf")}], "finite"),
        ([P | {"timeout": 0}], "timeout"),
        ([P | {"timeout": float("inf")}], "timeout"),
        ([J | {"verdicts": {}}], "verdicts"),
        ([J | {"verdicts": {" yes": 1}}], "verdicts"),
        ([J | {"verdicts": {"1": 1, "10": 10}}], "'10' begins with the verdict '1'"),
        ([J | {"verdicts": {"Yes": 1, "yes": 0}}], "begins with"),
        ([J | {"verdicts": {"yes": float("nan"), "no": 0}}], "finite"),
        ([C | {"weights": {}}], "length"),
        ([C | {"weights": {"x": 0.0}}], "weights"),
        ([C | {"weights": {"x": -1.0}}], "weights"),
        ([C | {"weights": {"x": float("inf")}}], "finite"),
        ([C | {"weights": {"r0": 1.0}}], "r0 -> r0"),
        (
            [C | {"weights": {"b": 1.0}}, C | {"weights": {"r0": 1.0}, "aliases": ["b"]}],
            "r0 -> r1 -> r0",
        ),
        ([{"engine": "nonsense"}], "nonsense"),
        ([P | {"model": "lm"}], "model"),
    ],
)
def test_what_cannot_be_is_refused(values: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check_rewards(specs_of(*values), ["m"])


def test_parts_may_be_shared_and_served_elsewhere() -> None:
    weights = {"r0": 1.0, "elsewhere": 1.0}
    check_rewards(specs_of(P, C | {"weights": weights}, C | {"weights": {"r1": 1, **weights}}), [])


def test_without_a_configuration_the_first_model_judges() -> None:
    config = load_config(None)
    [spec] = config.served_rewards
    assert isinstance(spec, JudgeSpec)
    assert (spec.name, spec.model) == ("judge", "smollm2-135m-instruct")
    assert "coin" in spec.description
    [other] = default_rewards(["big"])
    assert "coin" not in other.description
    assert default_rewards(["lm", "judge"]) == []


def test_the_configuration_names_the_file_and_the_entry(tmp_path: Path) -> None:
    file = tmp_path / "ayllu.toml"
    file.write_text('[[rewards]]\nname = "smollm2"\nengine = "judge"\nmodel = "smollm2"\n')
    with pytest.raises(InvalidRequest, match=r"ayllu.toml.*'smollm2': the name 'smollm2' is taken"):
        load_config(file)
    file.write_text('[[rewards]]\nname = "e"\nengine = "program"\nfunction = "exact_answer"\n')
    [spec] = load_config(file).served_rewards
    assert isinstance(spec, ProgramSpec)


@pytest.mark.asyncio
@pytest.mark.requirement("reward-described")
async def test_each_tells_its_range_and_meaning() -> None:
    specs = specs_of(
        P,
        J | {"verdicts": {"1": 1, "5": 5}},
        {"engine": "program", "operation": "a.b", "lowest": -1.0},
        {"engine": "program", "function": "a.b:c"},
        C | {"weights": {"r0": 1, "r1": 2}},
        P | {"description": "mine"},
    )
    async with local_bus() as bus:
        told = [build_reward(spec, bus, specs) for spec in specs]
    assert [(engine.lowest, engine.highest) for engine in told] == [
        (0, 1),
        (1, 5),
        (-1, 1),
        (0, 1),
        (pytest.approx(2 / 3), pytest.approx(11 / 3)),
        (0, 1),
    ]
    for engine, word in zip(told, ("reference", "lm", "a.b", "a.b:c", "r1", "mine"), strict=True):
        assert word in engine.description


@pytest.mark.asyncio
async def test_a_classifier_is_built_by_its_own_package(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    spec = ClassifierSpec(name="c", weights=str(tmp_path), lowest=-1.0, description="mine")
    async with local_bus() as bus:
        engine = build_reward(spec, bus, [spec])
    assert (engine.name, engine.lowest, engine.description) == ("classifier", -1.0, "mine")


def test_the_command_line_names_all_kinds_of_workers() -> None:
    assert sorted(NAMED) == sorted(KINDS)
