"""The reward models of a deployment, and how their engines are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from ...bus.bus import Bus
from ...schemas import Unsupported
from ...schemas.wire import convert
from .combination import CombinationEngine
from .engine import RewardEngine
from .judge import JudgeEngine
from .programs import builtin
from .programs.code_tests import CodeTestsProgram
from .programs.engine import Program, ProgramEngine
from .programs.function import FunctionProgram
from .programs.operation import OperationProgram
from .programs.params import PARAMS, CodeTestsParams
from .specs import (
    AnyRewardSpec,
    ClassifierSpec,
    CombinationSpec,
    JudgeSpec,
    ProgramSpec,
    ranges_of,
)

CODE_TESTS = "code_tests"
_MEANINGS = MappingProxyType(
    {
        "exact_answer": "1 for an answer that is the reference, else 0",
        "json_schema": "1 for an answer that is JSON and fits the schema, else 0",
        "tool_call": "1 for an answer that is one tool call, that of the reference, else 0",
        CODE_TESTS: "the share of tests that the answer's code passes",
    }
)


def build_reward(spec: AnyRewardSpec, bus: Bus, specs: Sequence[AnyRewardSpec]) -> RewardEngine:
    """Return the engine of a reward model; it is made ready by ``async with``.

    Args:
        spec: the reward model.
        bus: where the others are.
        specs: all of the configuration, from whose ranges follows that of a combination.

    Raises:
        InvalidRequest: it is configured wrongly.
        Unsupported: a package is not installed; the message says how to install it.
    """
    if isinstance(spec, JudgeSpec):
        return _judge(spec, bus)
    if isinstance(spec, ProgramSpec):
        return _program(spec, bus)
    if isinstance(spec, CombinationSpec):
        return _combination(spec, bus, specs)
    return _classifier(spec)


def _judge(spec: JudgeSpec, bus: Bus) -> RewardEngine:
    worth = ", ".join(f"{word}: {value:g}" for word, value in spec.verdicts.items())
    return JudgeEngine(
        bus,
        spec.model,
        rubric=spec.rubric,
        verdicts=spec.verdicts,
        prefix=spec.prefix,
        at_once=spec.at_once,
        description=spec.description
        or f"the verdict of the language model {spec.model} ({worth}), weighted by the probabilities of all verdicts",
    )


def _program(spec: ProgramSpec, bus: Bus) -> RewardEngine:
    program: Program
    described = _MEANINGS.get(spec.function or "", f"what the function {spec.function} returns")
    if spec.operation is not None:
        described = f"what the operation {spec.operation} answers"
        program = OperationProgram(bus, spec.operation, timeout=spec.timeout, at_once=spec.at_once)
    elif spec.function == CODE_TESTS:
        params = convert(spec.params, CodeTestsParams)
        program = CodeTestsProgram(params, timeout=spec.timeout, at_once=spec.at_once)
    else:
        function = str(spec.function)
        if function in PARAMS:
            function = f"{builtin.__name__}:{function}"
        program = FunctionProgram(function, spec.params, timeout=spec.timeout, at_once=spec.at_once)
    return ProgramEngine(
        program,
        description=spec.description or described,
        lowest=spec.lowest,
        highest=spec.highest,
    )


def _combination(spec: CombinationSpec, bus: Bus, specs: Sequence[AnyRewardSpec]) -> RewardEngine:
    lowest, highest = ranges_of(specs).get(spec.name, (None, None))
    parts = ", ".join(f"{part} (weight {weight:g})" for part, weight in spec.weights.items())
    return CombinationEngine(
        bus,
        spec.weights,
        description=spec.description or f"the weighted mean of {parts}",
        lowest=lowest,
        highest=highest,
    )


def _classifier(spec: ClassifierSpec) -> RewardEngine:
    try:
        from .classifier.engine import ClassifierEngine
    except ImportError as error:
        raise Unsupported(
            f"the engine classifier needs a package ({error.name}); pip install 'ayllu[train]'"
        ) from error
    engine: RewardEngine = ClassifierEngine(
        Path(spec.weights).expanduser(),
        batch_size=spec.batch_size,
        device=spec.device,
        max_length=spec.max_length,
        lowest=spec.lowest,
        highest=spec.highest,
        description=spec.description,
    )
    return engine
