"""The arithmetic of a run: how many iterations, and after which of them something is done."""

from __future__ import annotations

from dataclasses import dataclass

from ....schemas import InvalidRequest
from ..protocol import RunSpec

_CHECKPOINTS = 10
"""How many checkpoints a run makes where nobody says when."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When what is done.

    Attributes:
        total: the iterations of the whole run.
        batch: the examples that each process takes in one.
        epochs: how often all examples are seen.
        log_every: iterations between metrics.
        checkpoint_every: iterations between checkpoints.
        evaluate_every: iterations between validations; 0 validates with each checkpoint.
    """

    total: int
    batch: int
    epochs: float
    log_every: int
    checkpoint_every: int
    evaluate_every: int

    def logs_at(self, iteration: int) -> bool:
        """Whether metrics are told after an iteration."""
        return iteration == self.total or iteration % self.log_every == 0

    def saves_at(self, iteration: int) -> bool:
        """Whether a checkpoint is made after an iteration."""
        return iteration == self.total or iteration % self.checkpoint_every == 0

    def evaluates_at(self, iteration: int) -> bool:
        """Whether the model is validated after an iteration."""
        if self.evaluate_every == 0:
            return self.saves_at(iteration)
        return iteration == self.total or iteration % self.evaluate_every == 0


def make_plan(spec: RunSpec, examples: int) -> Plan:
    """Return the plan of a run over a number of examples.

    Raises:
        InvalidRequest: it would never end, or the examples of an iteration cannot be shared evenly.
    """
    training = spec.training
    check_limits(spec)
    in_epoch = -(-examples // training.batch_size)
    limits = [training.n_epochs * in_epoch, training.n_iters]
    total = min(limit for limit in limits if limit)
    return Plan(
        total=total,
        batch=training.batch_size // spec.processes,
        epochs=total / in_epoch,
        log_every=spec.logger.log_every,
        checkpoint_every=training.checkpoint_every or -(-total // _CHECKPOINTS),
        evaluate_every=training.evaluate_every,
    )


def check_limits(spec: RunSpec) -> None:
    """Check what can be checked before anything is loaded.

    Raises:
        InvalidRequest: the run would never end, its learning rate would grow, its examples cannot be shared evenly, or
            what its method needs is missing.
    """
    training, optimizer = spec.training, spec.optimizer
    if not training.n_epochs and not training.n_iters:
        raise InvalidRequest("n_epochs and n_iters are both 0: the job would never end")
    if training.batch_size % spec.processes:
        raise InvalidRequest(
            f"batch_size {training.batch_size} cannot be shared evenly by {spec.processes} processes"
        )
    if optimizer.lr_min > optimizer.lr:
        raise InvalidRequest(f"lr_min {optimizer.lr_min:g} is larger than lr {optimizer.lr:g}")
    if spec.method == "dpo" and spec.alignment is None:
        raise InvalidRequest("preference optimisation needs its configuration")
    if spec.method != "dpo" and spec.algorithm != "full" and spec.adapter is None:
        raise InvalidRequest(f"{spec.algorithm} needs the configuration of its adapters")
