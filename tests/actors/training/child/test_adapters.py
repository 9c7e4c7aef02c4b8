from __future__ import annotations

import pytest

from ayllu.actors.training.child.adapters import target_modules
from ayllu.schemas import InvalidRequest

LINEAR = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.self_attn.v_proj",
    "model.layers.0.mlp.up_proj",
    "lm_head",
]


@pytest.mark.requirement("child-adapters")
def test_modules_are_named_by_the_ends_of_their_paths() -> None:
    found = target_modules(
        LINEAR, "lm_head", ["q_proj", "self_attn.v_proj"], mlp=False, output=False
    )
    assert found == LINEAR[:2]


@pytest.mark.requirement("child-adapters")
def test_the_linear_layers_outside_of_the_attention_and_the_output_layer_are_added() -> None:
    assert target_modules(LINEAR, "lm_head", ["q_proj"], mlp=True, output=True) == [
        LINEAR[0],
        LINEAR[2],
        "lm_head",
    ]


@pytest.mark.requirement("child-adapters")
@pytest.mark.parametrize("name", ["wq", "proj", "lm_head", ""])
def test_a_module_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(InvalidRequest, match="it has q_proj, up_proj, v_proj"):
        target_modules(LINEAR, "lm_head", [name], mlp=False, output=False)


@pytest.mark.requirement("child-adapters")
def test_an_output_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no linear output layer"):
        target_modules(LINEAR[:3], None, ["q_proj"], mlp=False, output=True)


@pytest.mark.requirement("child-adapters")
def test_training_nothing_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing would be trained"):
        target_modules(LINEAR, "lm_head", [], mlp=False, output=False)
