"""What a loop does next, whatever comes of its steps: properties of the plan and the state, without a bus."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.improvement import improve_request

from ayllu.actors.improvement.plan import (
    Evaluate,
    Generate,
    LookUp,
    Register,
    Settle,
    Step,
    Train,
    next_step,
    phase_of,
)
from ayllu.actors.improvement.state import (
    LoopState,
    best_of,
    broken_off,
    evaluated,
    evaluated_base,
    generated,
    looked_up,
    registered,
    settled,
    stages_done,
    stages_of,
    trained,
)
from ayllu.schemas import Evaluation, ImproveRequest, Message, Role, decode, encode

requests = st.builds(
    lambda rounds, helped, gain: improve_request(
        rounds=rounds, help=[Message(Role.system, "Think.")] if helped else [], min_gain=gain
    ),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([0.0, 0.1]),
)


def evaluation_of(model: str, mean: float) -> Evaluation:
    return Evaluation(model, "job", mean, mean, mean, "bootstrap", 1)


def after(request: ImproveRequest, state: LoopState, step: Step, data: st.DataObject) -> LoopState:
    """Return the state after a step of which anything may come."""
    match step:
        case LookUp():
            state = looked_up(state, None)
        case Generate():
            state = generated(request, state, data.draw(st.integers(0, 2)))
        case Train():
            state = trained(state)
        case Register():
            state = registered(state, step.round, 0.5)
        case Settle():
            state = settled(request, state)
        case Evaluate():
            mean = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
            found = evaluation_of(step.model, mean)
            if step.round:
                state = evaluated(request, state, found)
            else:
                state = evaluated_base(request, state, found, helped=step.helped)
    return state


@given(request=requests, data=st.data())
@pytest.mark.requirement("improvement-plan")
def test_every_loop_comes_to_its_end_by_steps_that_are_taken_once(
    request: ImproveRequest, data: st.DataObject
) -> None:
    state, taken, done = LoopState(), list[Step](), 0
    while (step := next_step(request, state)) is not None:
        # What is to be done follows from what is kept alone, however it was kept.
        assert next_step(request, decode(encode(state), LoopState)) == step
        assert step not in taken
        taken.append(step)
        assert phase_of(step)
        state = after(request, state, step, data)
        assert done <= stages_done(state) <= stages_of(request)
        done = stages_done(state)
    assert done == stages_of(request)
    assert len(state.rounds) == request.rounds
    assert all(one.kept is not None for one in state.rounds)
    jobs = [step.job for step in taken if isinstance(step, Generate | Train | Evaluate)]
    assert len(jobs) == len(set(jobs))
    check_best(request, state)


def check_best(request: ImproveRequest, state: LoopState) -> None:
    """Check that a round is kept exactly if it is better than all before it that were kept, and the base."""
    assert state.baseline is not None
    best, model = state.baseline.mean, request.model
    for one in state.rounds:
        assert one.generator == model
        if one.evaluation is None:
            assert (one.kept, one.accepted) == (False, 0)
            continue
        assert one.gain is not None
        assert one.gain == one.evaluation.mean - best
        assert one.kept == (one.gain > request.min_gain)
        assert bool(one.note) != one.kept
        if one.kept:
            best, model = one.evaluation.mean, request.name
    found = best_of(request, state)
    assert found is not None
    assert (found.model, found.evaluation.mean) == (model, best)


@pytest.mark.requirement("improvement-plan")
def test_a_round_that_is_broken_off_is_over() -> None:
    request = improve_request(rounds=1)
    state = looked_up(LoopState(), None)
    assert best_of(request, state) is None
    state = evaluated_base(request, state, evaluation_of("tiny", 0.5), helped=False)
    state = broken_off(registered(trained(generated(request, state, 3)), 1, 0.0))
    assert state.rounds[0].kept is False
    assert next_step(request, state) is None
