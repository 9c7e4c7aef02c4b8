"""What can be wrong with a request for a loop, as far as it can be told before hours were spent on it."""

from __future__ import annotations

from collections.abc import Sequence

from ...schemas import (
    Dataset,
    DatasetColumnType,
    ImproveRequest,
    InvalidRequest,
    Message,
    PromptSet,
    Role,
    SyntheticDataGenerationRequest,
    encode,
)
from ..synthetic.filters import check_filter
from ..training.settings import TrainingSettings
from ..training.validation import check_adapter, check_optimizer, check_training
from .plan import Evaluate, Generate, Train, evaluation_job
from .stages import evaluation_request, generation_request, training_request

LONGEST_JOB = 160
"""Characters of a job's id; those of the stages are longer than the loop's."""


def check_request(request: ImproveRequest, settings: TrainingSettings) -> None:
    """Refuse a request that cannot end well.

    Args:
        request: what is asked for.
        settings: how trainers are configured.

    Raises:
        InvalidRequest: something is wrong; the message names the field.
    """
    longest = LONGEST_JOB - len(evaluation_job("", request.rounds))
    if len(request.job_uuid) > longest:
        raise InvalidRequest(
            f"job_uuid is longer than the {longest} characters that a loop's may be"
        )
    if request.name == request.model:
        raise InvalidRequest(f"name: {request.name!r} is the base, which is not replaced")
    if request.evaluation.temperature == 0 and request.evaluation.num_candidates > 1:
        raise InvalidRequest(
            "evaluation.num_candidates: with a temperature of 0 all answers to a prompt are the same one"
        )
    _check_prompts("training_prompts", request.training_prompts)
    _check_prompts("held_out_prompts", request.held_out_prompts)
    _check_held_out(request)
    _check_context("context", request.context)
    _check_context("help", request.help)
    _check_stages(request, settings)


def _check_prompts(field: str, prompts: PromptSet) -> None:
    for place, prompt in enumerate(prompts.prompts):
        if prompt.role is not Role.user:
            raise InvalidRequest(
                f"{field}.prompts[{place}].role is {prompt.role.value}: what is answered is what a user says"
            )
    if prompts.references and len(prompts.references) != len(prompts.prompts):
        raise InvalidRequest(
            f"{field}.references: {len(prompts.references)} for {len(prompts.prompts)} prompts; there is one for each, or none"
        )


def _check_held_out(request: ImproveRequest) -> None:
    """Refuse to judge a model by what it was trained on."""
    training = {encode(prompt) for prompt in request.training_prompts.prompts}
    for place, prompt in enumerate(request.held_out_prompts.prompts):
        if encode(prompt) in training:
            raise InvalidRequest(
                f"held_out_prompts.prompts[{place}] is a training prompt too: it is not held out"
            )


def _check_context(field: str, messages: Sequence[Message]) -> None:
    for place, message in enumerate(messages):
        if message.role is Role.system and place:
            raise InvalidRequest(f"{field}[{place}].role: a system message is the first one")


def _check_stages(request: ImproveRequest, settings: TrainingSettings) -> None:
    """Refuse what a stage would refuse when its turn came."""
    generate = Generate("data", "dataset", request.model, bool(request.help), 1)
    _check_filter("generation", generation_request(request, generate).request)
    evaluate = Evaluate("evaluation", request.model)
    _check_filter("evaluation", evaluation_request(request, evaluate).request)
    dataset = Dataset({"dialog": DatasetColumnType.dialog}, "data:,")
    training = training_request(request, Train("training", "dataset", 1), dataset)
    try:
        check_optimizer(training.optimizer_config)
        check_adapter(training)
        check_training(training.training_config, settings)
    except InvalidRequest as error:
        raise InvalidRequest(f"training.{error.message}") from error


def _check_filter(field: str, request: SyntheticDataGenerationRequest) -> None:
    try:
        check_filter(request)
    except InvalidRequest as error:
        raise InvalidRequest(f"{field}.{error.message}") from error
