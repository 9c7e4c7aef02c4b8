"""The reward models of a configuration, and what can be wrong with them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Annotated, Any

from msgspec import Meta, field

from ...schemas import InvalidRequest, ModelName, Wire
from ...schemas.wire import convert
from ..registry import default_models
from .combination import weighted_mean
from .judge import PREFIX, RUBRIC, VERDICTS
from .programs.params import PARAMS

DEFAULT_NAME = "judge"
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

Range = tuple[float | None, float | None]

Seconds = Annotated[float, Meta(gt=0, le=3600)]
AtOnce = Annotated[int, Meta(ge=1, le=256)]
Weight = Annotated[float, Meta(gt=0)]


class RewardSpec(Wire, frozen=True, tag_field="engine"):
    """What all reward models of the configuration, ``[[rewards]]``, have.

    Attributes:
        name: what requests call it.
        aliases: other names for it.
        description: what its scores mean, for people; by default what the engine knows of it.
    """

    name: ModelName
    aliases: list[ModelName] = []
    description: str = ""


class JudgeSpec(RewardSpec, frozen=True, kw_only=True, tag="judge"):
    """A served language model that reads answers and says its verdict, see `JudgeEngine`.

    Attributes:
        model: the name of the language model.
        rubric: what is a good answer, and what to say of which.
        verdicts: the words that the model may say, each one token of it, and what they are worth.
        prefix: the beginning of its answer; empty for models that cannot continue one.
        at_once: how many answers it is asked about at once. More are faster where the model runs on a GPU, and get scores
            that are rounded differently from time to time.
    """

    model: ModelName
    rubric: Annotated[str, Meta(min_length=1)] = RUBRIC
    verdicts: dict[str, float] = field(default_factory=lambda: dict(VERDICTS))
    prefix: str = PREFIX
    at_once: AtOnce = 1


class ProgramSpec(RewardSpec, frozen=True, kw_only=True, tag="program"):
    """A program that scores answers: one that comes along, a Python function, or an operation on the bus.

    Attributes:
        function: ``exact_answer``, ``json_schema``, ``tool_call``, ``code_tests``, or ``package.module:name``.
        params: what a function gets beside answers.
        operation: the name of an operation, instead of a function.
        timeout: how long it may take for an answer, of ``code_tests`` for a test, in seconds.
        at_once: how many answers are scored at once; functions have a process for each.
        lowest: the least score there is.
        highest: the largest one.
    """

    function: str | None = None
    params: dict[str, Any] = {}
    operation: Annotated[str, Meta(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)*$")] | None = None
    timeout: Seconds = 10.0
    at_once: AtOnce = 2
    lowest: float = 0.0
    highest: float = 1.0


class CombinationSpec(RewardSpec, frozen=True, kw_only=True, tag="combination"):
    """The mean of other reward models' scores by their weights.

    Attributes:
        weights: by the names of the reward models, which may be served anywhere.
    """

    weights: Annotated[dict[ModelName, Weight], Meta(min_length=1)]


class ClassifierSpec(RewardSpec, frozen=True, kw_only=True, tag="classifier"):
    """A sequence-classification model in the format of Hugging Face.

    Attributes:
        weights: its folder.
        batch_size: how many answers are scored together.
        device: what it runs on, as torch calls it.
        max_length: the longest dialog and answer together, in tokens; 0 for what the model can.
        lowest: the least score there is, if that is known.
        highest: the largest one.
    """

    weights: Annotated[str, Meta(min_length=1)]
    batch_size: Annotated[int, Meta(ge=1, le=4096)] = 16
    device: str = "cpu"
    max_length: Annotated[int, Meta(ge=0)] = 0
    lowest: float | None = None
    highest: float | None = None


AnyRewardSpec = JudgeSpec | ProgramSpec | CombinationSpec | ClassifierSpec


def default_rewards(models: Sequence[str]) -> list[AnyRewardSpec]:
    """Return what is served where nothing is configured: the first language model as a judge.

    Args:
        models: the names of the language models; a model of the judge's name leaves no room for it.
    """
    if DEFAULT_NAME in models:
        return []
    description = f"how probable it is to {models[0]} that an answer is good, from 0 to 1"
    if models[0] == default_models()[0].name:
        description += (
            "; so small a model shows how a judge works, and judges no better than a coin"
        )
    return [JudgeSpec(name=DEFAULT_NAME, model=models[0], description=description)]


def check_rewards(specs: Sequence[AnyRewardSpec], models: Collection[str]) -> None:
    """Check what can be wrong with the reward models of a configuration on any host, whether or not it runs them.

    Args:
        specs: the reward models.
        models: the names that other models have.

    Raises:
        InvalidRequest: a name is taken, or an entry cannot be; the message names the entry.
    """
    owners = dict.fromkeys(models, "a model")
    for spec in specs:
        for name in (spec.name, *spec.aliases):
            if name in owners:
                raise InvalidRequest(
                    f"{_where(spec)}: the name {name!r} is taken by {owners[name]}"
                )
            owners[name] = _where(spec)
        try:
            _check(spec)
        except InvalidRequest as error:
            raise InvalidRequest(f"{_where(spec)}: {error.message}") from error
    ranges_of(specs)  # It follows all combinations.


def _where(spec: AnyRewardSpec) -> str:
    return f"reward model {spec.name!r}"


def _check(spec: AnyRewardSpec) -> None:
    if isinstance(spec, JudgeSpec):
        _check_verdicts(spec.verdicts)
    elif isinstance(spec, ProgramSpec):
        if (spec.function is None) == (spec.operation is None):
            raise InvalidRequest("it has either a function or an operation")
        if spec.operation is not None and spec.params:
            raise InvalidRequest("an operation takes no params")
        _check_function(spec)
    elif isinstance(spec, CombinationSpec) and not all(map(isfinite, spec.weights.values())):
        raise InvalidRequest("weights are finite")
    if isinstance(spec, ProgramSpec | ClassifierSpec):
        known = [bound for bound in (spec.lowest, spec.highest) if bound is not None]
        if not all(map(isfinite, known)) or known != sorted(known):
            raise InvalidRequest("lowest is not above highest, and both are finite")


def _check_verdicts(verdicts: Mapping[str, float]) -> None:
    words = sorted(word.casefold() for word in verdicts)
    if not words or any(not word or word != word.strip() for word in words):
        raise InvalidRequest("verdicts are words, with no space around them")
    for word, following in pairwise(words):
        if following.startswith(word):
            raise InvalidRequest(
                f"the verdict {following!r} begins with the verdict {word!r}: the first token would not tell them apart"
            )
    if not all(map(isfinite, verdicts.values())):
        raise InvalidRequest("what a verdict is worth is finite")


def _check_function(spec: ProgramSpec) -> None:
    if spec.function is None:
        return
    if spec.function in PARAMS:
        convert(spec.params, PARAMS[spec.function]).check()
    elif not _FUNCTION.fullmatch(spec.function):
        known = ", ".join(PARAMS)
        raise InvalidRequest(
            f"there is no function {spec.function!r}: {known}, or package.module:name"
        )


def ranges_of(specs: Sequence[AnyRewardSpec]) -> dict[str, Range]:
    """Return the range of each reward model, by its names; that of a combination follows from its parts.

    Raises:
        InvalidRequest: a combination is a part of itself.
    """
    named = {name: spec for spec in specs for name in (spec.name, *spec.aliases)}
    known: dict[str, Range] = {}

    def of(name: str, within: tuple[str, ...]) -> Range:
        spec = named.get(name)
        if spec is None:  # It is served elsewhere.
            return None, None
        if spec.name in within:
            way = " -> ".join((*within[within.index(spec.name) :], spec.name))
            raise InvalidRequest(f"reward model {spec.name!r}: it is a part of itself: {way}")
        if spec.name not in known:
            if isinstance(spec, CombinationSpec):
                parts = {part: of(part, (*within, spec.name)) for part in spec.weights}
                known[spec.name] = _mean_range(spec.weights, parts)
            elif isinstance(spec, JudgeSpec):
                known[spec.name] = min(spec.verdicts.values()), max(spec.verdicts.values())
            else:
                known[spec.name] = spec.lowest, spec.highest
        return known[spec.name]

    return {name: of(name, ()) for name in named}


def _mean_range(weights: Mapping[str, float], parts: Mapping[str, Range]) -> Range:
    def mean(bounds: Mapping[str, float | None]) -> float | None:
        if any(bound is None for bound in bounds.values()):
            return None
        return weighted_mean(weights, {part: bound or 0.0 for part, bound in bounds.items()})

    return (
        mean({part: lowest for part, (lowest, _) in parts.items()}),
        mean({part: highest for part, (_, highest) in parts.items()}),
    )
