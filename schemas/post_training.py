"""The PostTraining API: requests for fine-tuning jobs. What is told of jobs stands in `training_jobs`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from .content import URL, ModelName
from .datasets import Dataset
from .webmethod import webmethod
from .wire import Wire

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1, le=1 << 31)]
CountOrZero = Annotated[int, Meta(ge=0, le=1 << 31)]
JobId = Annotated[str, Meta(min_length=1, max_length=160)]


class OptimizerType(StrEnum):
    """The optimizers."""

    adam = "adam"
    adamw = "adamw"
    sgd = "sgd"


class OptimizerConfig(Wire, frozen=True):
    """The optimizer and its learning rate, which falls from ``lr`` to ``lr_min``."""

    optimizer_type: OptimizerType
    lr: Positive
    lr_min: NotNegative
    weight_decay: NotNegative


class TrainingConfig(Wire, frozen=True):
    """How long and how to train. What stands behind the draft's fields is an extension."""

    n_epochs: Annotated[
        int,
        Meta(ge=0, description="Passes over the dataset; 0 is no limit, `n_iters` then is one."),
    ]
    batch_size: Annotated[
        int, Meta(ge=1, le=1 << 20, description="Examples of one iteration, over all processes.")
    ]
    shuffle: bool
    n_iters: Annotated[
        int, Meta(ge=0, description="Iterations at most (steps of the optimizer); 0 is no limit.")
    ]
    enable_activation_checkpointing: bool
    memory_efficient_fsdp_wrap: bool
    fsdp_cpu_offload: bool
    checkpoint_every: Annotated[
        CountOrZero, Meta(description="Iterations between checkpoints; 0 makes about ten in all.")
    ] = 0
    keep_checkpoints: Annotated[
        int, Meta(ge=1, le=1000, description="How many checkpoints are kept, the newest ones.")
    ] = 2
    evaluate_every: Annotated[
        CountOrZero,
        Meta(description="Iterations between validations; 0 validates with each checkpoint."),
    ] = 0
    max_length: Annotated[
        CountOrZero,
        Meta(
            description="Tokens of the longest example; 0 is the model's context. Longer ones are refused."
        ),
    ] = 0
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    num_processes: Annotated[
        int, Meta(ge=0, le=1024, description="Processes; 0 is what the deployment configures.")
    ] = 0


class FinetuningAlgorithm(StrEnum):
    """The ways to fine-tune."""

    full = "full"
    lora = "lora"
    qlora = "qlora"
    dora = "dora"


class LoraFinetuningConfig(Wire, frozen=True):
    """Which modules get adapters, and of what rank."""

    lora_attn_modules: list[str]
    apply_lora_to_mlp: bool
    apply_lora_to_output: bool
    rank: Annotated[int, Meta(ge=1, le=4096)]
    alpha: Annotated[int, Meta(ge=1, le=1 << 16)]


class QLoraFinetuningConfig(LoraFinetuningConfig, frozen=True):
    """As LoraFinetuningConfig, over a base model in 4 bits."""


class DoraFinetuningConfig(LoraFinetuningConfig, frozen=True):
    """As LoraFinetuningConfig, with weight decomposition."""


class RLHFAlgorithm(StrEnum):
    """The ways of preference optimisation."""

    dpo = "dpo"


class DPOAlignmentConfig(Wire, frozen=True):
    """The parameters of direct preference optimisation (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290).

    With the implicit rewards ``r = reward_scale * (log pi(y|x) - log pi_ref(y|x))``, each clipped to
    ``[-reward_clip, reward_clip]``, and ``m = r(chosen) - r(rejected) - gamma``, the loss of a pair is
    ``-(1 - epsilon) * log sigmoid(m) - epsilon * log sigmoid(-m)``.
    """

    reward_scale: Annotated[
        float, Meta(gt=0, description="Beta: how much leaving the reference model costs.")
    ]
    reward_clip: Annotated[
        float, Meta(ge=0, description="The limit of each implicit reward; 0 is none.")
    ]
    epsilon: Annotated[
        float, Meta(ge=0, lt=0.5, description="The share of pairs that are labelled the wrong way.")
    ]
    gamma: Annotated[
        float,
        Meta(ge=0, description="The margin by which the chosen answer's reward must be larger."),
    ]


class SearchParameter(Wire, frozen=True):
    """Values of one parameter: some ``choices``, or all from ``low`` to ``high``."""

    choices: list[bool | int | float | str] = []
    low: float | None = None
    high: float | None = None
    log: Annotated[bool, Meta(description="Whether the order of magnitude is what counts.")] = False
    integer: bool = False


class HyperparameterSearch(Wire, frozen=True):
    """The draft's ``hyperparam_search_config``: without parameters, nothing is searched for.

    Each trial is a job of its own, ``<job>/trial-<number>``; the one with the lowest validation loss is the best.
    """

    parameters: Annotated[
        dict[str, SearchParameter],
        Meta(description="By path, such as `optimizer_config.lr` or `algorithm_config.rank`."),
    ] = {}
    n_trials: Annotated[int, Meta(ge=1, le=1000)] = 10
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Annotated[
        Literal["none", "median"],
        Meta(description="`median` ends trials that are worse than half of the others were."),
    ] = "median"
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0


class LoggerConfig(Wire, frozen=True):
    """The draft's ``logger_config``."""

    log_every: Annotated[int, Meta(ge=1, description="Iterations between metrics.")] = 1
    tensorboard: Annotated[bool, Meta(description="Whether TensorBoard files are written.")] = True


class _FineTuning(Wire, frozen=True):
    job_uuid: JobId
    model: ModelName
    dataset: Dataset
    validation_dataset: Dataset
    algorithm: FinetuningAlgorithm
    # The draft's union of three types with the same fields; ``algorithm`` says which one is meant.
    algorithm_config: Annotated[
        LoraFinetuningConfig,
        Meta(description="A LoRA, QLoRA or DoRA configuration, as `algorithm` says."),
    ]
    optimizer_config: OptimizerConfig
    training_config: TrainingConfig
    hyperparam_search_config: HyperparameterSearch
    logger_config: LoggerConfig


class PostTrainingSFTRequest(_FineTuning, frozen=True):
    """Request to finetune a model."""


class PostTrainingRewardRequest(_FineTuning, frozen=True):
    """Extension: request to make a reward model of a model, from pairs of a chosen and a rejected answer."""


class PostTrainingRLHFRequest(Wire, frozen=True):
    """Request to finetune a model."""

    job_uuid: JobId
    finetuned_model: URL
    dataset: Dataset
    validation_dataset: Dataset
    algorithm: RLHFAlgorithm
    algorithm_config: DPOAlignmentConfig
    optimizer_config: OptimizerConfig
    training_config: TrainingConfig
    hyperparam_search_config: HyperparameterSearch
    logger_config: LoggerConfig


class PostTraining(Protocol):
    """Start fine-tuning jobs."""

    @webmethod(
        route="/post_training/supervised_fine_tune/", operation_id="post_supervised_fine_tune"
    )
    async def supervised_fine_tune(self, request: PostTrainingSFTRequest) -> None:
        """Start a job of supervised fine-tuning; the same request again is the same job."""
        ...

    @webmethod(route="/post_training/preference_optimize/", operation_id="post_preference_optimize")
    async def preference_optimize(self, request: PostTrainingRLHFRequest) -> None:
        """Start a job of preference optimisation; the same request again is the same job."""
        ...

    @webmethod(route="/post_training/reward_model")
    async def reward_model(self, request: PostTrainingRewardRequest) -> None:
        """Start a job that trains a reward model; the same request again is the same job."""
        ...
