"""What the training loop tells, and when it logs, validates and saves."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ....schemas import JobMetrics
from ..protocol import TENSORBOARD, Measured, Started
from .plan import Plan
from .session import Session

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_OTHER = ("rewards/", "logps/")
_RENAMED = {
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "mean_reward": "rewards/mean",
    "min_reward": "rewards/min",
    "max_reward": "rewards/max",
}
"""What TRL's trainer of reward models calls otherwise than the one of preference optimisation."""


class Telling(TrainerCallback):
    """Tells the trainer of each step what it is to know, and says when the loop logs, validates and saves.

    Args:
        session: whom it tells.
        plan: when what is done.
        resources: what the run has.
        folder: where TensorBoard's files go; None writes none.
    """

    def __init__(
        self,
        session: Session,
        plan: Plan,
        resources: dict[str, str | int | float],
        folder: Path | None,
    ) -> None:
        self._session = session
        self._plan = plan
        self._resources = resources
        self._folder = folder if session.leading else None
        self._writer: SummaryWriter | None = None
        self._since = 0.0
        self._tokens = 0
        self.validation_loss: float | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Tell that training begins, or goes on."""
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            # What an attempt that died wrote behind its last checkpoint is hidden.
            self._writer = SummaryWriter(
                str(self._folder / TENSORBOARD), purge_step=state.global_step + 1
            )
        self._session.tell(Started(self._plan.total, state.global_step, self._resources))
        self._session.phase("training")
        self._tokens = state.num_input_tokens_seen
        self._since = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Say what is done after this iteration."""
        self.validation_loss = None
        control.should_log = self._plan.logs_at(state.global_step)
        control.should_evaluate = self._plan.evaluates_at(state.global_step)
        control.should_save = self._plan.saves_at(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Tell figures."""
        # Kept by the trainer, who was told; here they would only grow, in each checkpoint.
        state.log_history.clear()
        logs = logs or {}
        if "eval_loss" in logs:
            self.validation_loss = float(logs["eval_loss"])
            self._measured(state, _others(logs, "eval_"), validation_loss=self.validation_loss)
        elif "loss" in logs:
            now, seen = time.monotonic(), state.num_input_tokens_seen
            self._measured(
                state,
                _others(logs, ""),
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                gradient_norm=float(logs["grad_norm"]),
                tokens_per_second=(seen - self._tokens) / max(now - self._since, 1e-9),
            )
            self._tokens, self._since = seen, now

    def on_train_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Close TensorBoard's files."""
        if self._writer is not None:
            self._writer.close()

    def pause(self, seconds: float) -> None:
        """Leave the time of a validation or a checkpoint out of the speed of training."""
        self._since += seconds

    def _measured(self, state: TrainerState, other: dict[str, float], **figures: float) -> None:
        metrics = JobMetrics(
            iteration=state.global_step,
            total=self._plan.total,
            epoch=float(state.epoch or 0.0),
            tokens=int(state.num_input_tokens_seen),
            memory_bytes=memory_bytes(),
            other=other,
            **figures,
        )
        self._session.tell(Measured(metrics))
        if self._writer is not None:
            kind = "validation" if "validation_loss" in figures else "train"
            for name, value in {**figures, **other}.items():
                label = "loss" if name == "validation_loss" else name
                self._writer.add_scalar(f"{kind}/{label}", value, state.global_step)
            self._writer.flush()


def memory_bytes() -> int:
    """Return what all processes take, on their devices or of the host."""
    from accelerate.utils import gather

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        mine = torch.cuda.max_memory_allocated()
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        mine, device = pages * os.sysconf("SC_PAGE_SIZE"), torch.device("cpu")
    everyones: Any = gather(torch.tensor([mine], device=device))
    return int(everyones.sum().item())


def _others(logs: dict[str, Any], prefix: str) -> dict[str, float]:
    plain = {name.removeprefix(prefix): value for name, value in logs.items()}
    named = {_RENAMED.get(name, name): value for name, value in plain.items()}
    return {name: float(value) for name, value in named.items() if name.startswith(_OTHER)}
