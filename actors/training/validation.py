"""What can be wrong with a request for a job, as far as it can be told before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ...schemas import (
    Dataset,
    FinetuningAlgorithm,
    HyperparameterSearch,
    InvalidRequest,
    JobKind,
    OptimizerConfig,
    PostTrainingRewardRequest,
    PostTrainingRLHFRequest,
    PostTrainingSFTRequest,
    SearchParameter,
    TrainingConfig,
    encode,
)
from ...schemas.wire import convert
from ..datasets.content import ContentStore
from ..datasets.examples import Method, training_form
from ..jobs.records import ParameterValue, TrainingRequest
from .settings import TrainingSettings

SECTIONS = ("optimizer_config", "algorithm_config", "training_config")
"""What a search may change of a request."""


METHODS: Mapping[type[TrainingRequest], Method] = {
    PostTrainingSFTRequest: "sft",
    PostTrainingRLHFRequest: "dpo",
    PostTrainingRewardRequest: "reward",
}
"""What requests ask for."""


def method_of(request: TrainingRequest) -> Method:
    """Return what a request asks for."""
    return METHODS[type(request)]


def request_type(kind: JobKind) -> type[TrainingRequest]:
    """Return the type of the requests for a kind of training jobs."""
    return next(type_ for type_, method in METHODS.items() if method == kind)


def check_request(
    request: TrainingRequest, content: ContentStore, settings: TrainingSettings
) -> None:
    """Refuse a request that cannot end well.

    Raises:
        InvalidRequest: something is wrong; the message names the field.
        PermissionDenied: a dataset is where nobody may read.
    """
    check_datasets(request, content)
    check_optimizer(request.optimizer_config)
    check_training(request.training_config, settings)
    if not isinstance(request, PostTrainingRLHFRequest):
        check_adapter(request)
    check_search(request)


def check_datasets(request: TrainingRequest, content: ContentStore) -> None:
    """Refuse datasets that cannot be trained on; their content is not looked at."""
    method = method_of(request)
    datasets: dict[str, Dataset] = {
        "dataset": request.dataset,
        "validation_dataset": request.validation_dataset,
    }
    for field, dataset in datasets.items():
        try:
            training_form(dataset.columns, method)
            content.check(dataset.content_url)
        except InvalidRequest as error:
            raise type(error)(f"{field}: {error.message}", details=error.details) from error


def check_optimizer(optimizer: OptimizerConfig) -> None:
    """Refuse a learning rate that would grow."""
    if optimizer.lr_min > optimizer.lr:
        raise InvalidRequest("optimizer_config.lr_min is above lr, from which it falls")


def check_training(training: TrainingConfig, settings: TrainingSettings) -> None:
    """Refuse training without an end, or that cannot be shared by its processes."""
    if training.n_epochs == 0 and training.n_iters == 0:
        raise InvalidRequest("training_config: n_epochs and n_iters are both 0: it would never end")
    processes = training.num_processes or settings.processes
    if training.batch_size % processes:
        raise InvalidRequest(
            f"training_config.batch_size is {training.batch_size}, which {processes} processes cannot share"
        )


def check_adapter(request: PostTrainingSFTRequest | PostTrainingRewardRequest) -> None:
    """Refuse adapters on nothing."""
    config = request.algorithm_config
    if request.algorithm is FinetuningAlgorithm.full:
        return
    # A reward model has no output layer; its head is trained whole.
    on_output = config.apply_lora_to_output and isinstance(request, PostTrainingSFTRequest)
    if not (config.lora_attn_modules or config.apply_lora_to_mlp or on_output):
        raise InvalidRequest(
            "algorithm_config: no module gets an adapter: name some in lora_attn_modules, such as q_proj and v_proj"
        )
    if "" in config.lora_attn_modules:
        raise InvalidRequest("algorithm_config.lora_attn_modules: a name is empty")


def check_search(request: TrainingRequest) -> None:
    """Refuse a search that has nothing to try, or tries what no request may have."""
    search = request.hyperparam_search_config
    for path, parameter in search.parameters.items():
        where = f"hyperparam_search_config.parameters[{path!r}]"
        for value in _extremes(parameter, where):
            try:
                tried = with_parameters(request, {path: value})
                check_optimizer(tried.optimizer_config)
            except InvalidRequest as error:
                raise InvalidRequest(
                    f"{where}: {value!r} cannot be tried: {error.message}"
                ) from error


def _extremes(parameter: SearchParameter, where: str) -> list[ParameterValue]:
    """Return the values of a parameter that are most likely to be wrong."""
    low, high = parameter.low, parameter.high
    if parameter.choices:
        if low is not None or high is not None or parameter.log or parameter.integer:
            raise InvalidRequest(f"{where}: choices stand alone")
        return list(parameter.choices)
    if low is None or high is None or low >= high:
        raise InvalidRequest(f"{where}: give choices, or low and a larger high")
    if parameter.log and low <= 0:
        raise InvalidRequest(f"{where}: low is above 0 where the order of magnitude counts")
    if parameter.integer:
        if low != int(low) or high != int(high):
            raise InvalidRequest(f"{where}: low and high of an integer are integers")
        return [int(low), int(high)]
    return [low, high]


def with_parameters(
    request: TrainingRequest, parameters: dict[str, ParameterValue]
) -> TrainingRequest:
    """Return a request with other values at some paths, such as ``optimizer_config.lr``, and nothing to search for.

    Raises:
        InvalidRequest: there is no such path, or it cannot have the value.
    """
    values: dict[str, Any] = msgspec.json.decode(encode(request))
    for path, value in parameters.items():
        section, _, field = path.partition(".")
        known = getattr(request, section).__struct_fields__ if section in SECTIONS else ()
        if field not in known:
            raise InvalidRequest(
                f"a path is one of {', '.join(SECTIONS)}, a dot, and a field of it; {path!r} is none"
            )
        values[section][field] = value
    values["hyperparam_search_config"] = {}
    return convert(values, type(request))


def is_search(search: HyperparameterSearch) -> bool:
    """Tell whether there is anything to search for."""
    return bool(search.parameters)
