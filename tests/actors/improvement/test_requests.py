"""Requests for loops that cannot end well: refused before anything is spent on them."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from support.improvement import NAME, improve_request, messages, running_improvement
from support.synthetic import DoubleRewards

from ayllu.bus import local_bus
from ayllu.bus.service import serve
from ayllu.schemas import (
    AylluError,
    Conflict,
    FilteringFunction,
    ImprovementEvaluation,
    ImprovementGeneration,
    InvalidRequest,
    Message,
    Model,
    ModelNotFound,
    NotFound,
    PromptSet,
    RewardScoringConfig,
    Role,
    encode,
)
from ayllu.schemas.tasks import background_tasks

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("improvement-refused")]
TRAINING = improve_request().training
SYSTEM = Message(Role.system, "Be brief.")


def training(section: str, **fields: Any) -> Any:
    return replace(TRAINING, **{section: replace(getattr(TRAINING, section), **fields)})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"job_uuid": "j" * 150}, "job_uuid"),
    ({"name": "tiny"}, "name: 'tiny' is the base"),
    (
        {"training_prompts": PromptSet(messages("a", "b"), ["1"])},
        "training_prompts.references: 1 for 2",
    ),
    (
        {"held_out_prompts": PromptSet(messages("a"), [1, 2])},
        "held_out_prompts.references: 2 for 1",
    ),
    ({"training_prompts": PromptSet([*messages("a"), SYSTEM])}, "training_prompts.prompts[1].role"),
    ({"held_out_prompts": PromptSet(messages("a", "1 + 2?"))}, "held_out_prompts.prompts[1]"),
    ({"context": [*messages("a"), SYSTEM]}, "context[1].role"),
    ({"help": [*messages("a"), SYSTEM]}, "help[1].role"),
    ({"evaluation": ImprovementEvaluation(num_candidates=2)}, "evaluation.num_candidates"),
    ({"generation": ImprovementGeneration(k=None)}, "generation.k"),
    (
        {"generation": ImprovementGeneration(filtering_function=FilteringFunction.top_p, k=None)},
        "generation.p",
    ),
    ({"training": training("optimizer_config", lr_min=1.0)}, "training.optimizer_config.lr_min"),
    ({"training": training("training_config", n_epochs=0)}, "training.training_config"),
    ({"training": training("algorithm_config", lora_attn_modules=[])}, "training.algorithm_config"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
async def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    async with local_bus() as bus, running_improvement(bus, runners=0) as improving:
        with pytest.raises(InvalidRequest) as raised:
            await improving.loops.start(improve_request(**changes))
        assert raised.value.message.startswith(said)
        with pytest.raises(NotFound):
            await improving.told.status("loop")


async def test_a_filter_and_an_evaluation_that_fit_are_taken() -> None:
    generation = ImprovementGeneration(filtering_function=FilteringFunction.none, k=None)
    evaluation = ImprovementEvaluation(num_candidates=3, temperature=0.7)
    async with local_bus() as bus, running_improvement(bus) as improving:
        request = improve_request(generation=generation, evaluation=evaluation, context=[SYSTEM])
        await improving.loops.start(request)
        await improving.ended()
        asked = improving.stages.asked["loop/baseline"].request
        assert (asked.num_candidates, asked.temperature) == (3, 0.7)


class Served(DoubleRewards):
    """A double of a model under the name that the loop would register."""

    service_metadata = {"models": encode([Model(NAME, engine="double", context=0)]).decode()}


@pytest.mark.parametrize(
    ("actor", "changes", "error", "said"),
    [
        (
            None,
            {"model": "gpt-99"},
            ModelNotFound,
            "model: 'gpt-99' cannot be trained here; tiny can",
        ),
        (Served, {}, Conflict, f"name: '{NAME}'"),
        (DoubleRewards, {}, ModelNotFound, "reward_scoring.model"),
    ],
)
async def test_models_are_looked_for(
    actor: type[DoubleRewards] | None, changes: dict[str, Any], error: type[AylluError], said: str
) -> None:
    async with local_bus() as bus, running_improvement(bus, runners=0) as improving:
        async with background_tasks() as tasks:
            if actor is not None:
                await tasks.start(serve, bus, actor())
            with pytest.raises(error) as raised:
                await improving.loops.start(improve_request(**changes))
            assert raised.value.message.startswith(said)
            known = improve_request(reward_scoring=RewardScoringConfig("double"))
            if actor is DoubleRewards:
                await improving.loops.start(known)
