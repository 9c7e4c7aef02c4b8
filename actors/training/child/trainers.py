"""TRL's trainers, which save as we do, watch for nonsense, and take examples that are tokens already."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from ....schemas import DPOAlignmentConfig, InvalidRequest, OptimizerConfig, OptimizerType
from .saving import Store, storage_errors
from .session import Session
from .telling import Telling

_OPTIMIZERS: dict[OptimizerType, type[torch.optim.Optimizer]] = {
    OptimizerType.adam: torch.optim.Adam,
    OptimizerType.adamw: torch.optim.AdamW,
    OptimizerType.sgd: torch.optim.SGD,
}


def optimizer_of(config: OptimizerConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return the class and arguments of an optimizer; ``adam`` has L2 decay, ``adamw`` decoupled decay."""
    return _OPTIMIZERS[config.optimizer_type], {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
    }


class Ours(Trainer):
    """What all trainers have in common; call `attach` before training."""

    _session: Session
    _telling: Telling
    _store: Store

    def attach(
        self,
        session: Session,
        telling: Telling,
        store: Store,
        optimizer: OptimizerConfig,
    ) -> None:
        """Say where to tell and save, and how to optimize."""
        self._session, self._telling, self._store = session, telling, store
        self.remove_callback(PrinterCallback)
        self.add_callback(telling)
        self.optimizer_cls_and_kwargs = optimizer_of(optimizer)
        assert self.model is not None
        for name, parameter in self.model.named_parameters():
            if ".ref." in name:
                # The copy of an adapter that DPO compares with.
                parameter.requires_grad_(False)
            elif parameter.requires_grad:
                # TRL trains adapters of models in 4 bits in half precision, where small steps are lost.
                parameter.data = parameter.data.float()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Make a step, and refuse one whose loss is no number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._check(loss, "loss")
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm: Any = super()._clip_grad_norm(model)
        # Clipped by such a norm, the weights would be lost before the next loss tells of it.
        self._check(norm, "norm of the gradients")
        return torch.as_tensor(norm)

    def _check(self, value: torch.Tensor | float, what: str) -> None:
        if not math.isfinite(float(value)):
            raise InvalidRequest(
                f"the {what} is {float(value)} in iteration {self.state.global_step + 1}: training has diverged; "
                "a smaller learning rate may help"
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate."""
        with self._interlude("validating"):
            found: dict[str, float] = super().evaluate(*args, **kwargs)
            return found

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        iters = self.state.global_step
        with self._interlude("saving"):
            with storage_errors(f"the checkpoint of iteration {iters}"):
                # Not TRL's, which also writes a model card.
                Trainer._save_checkpoint(self, model, trial)
            self.accelerator.wait_for_everyone()
            if self._session.leading:
                written = Path(str(self.args.output_dir)) / f"checkpoint-{iters}"
                self._store.make_whole(written, iters, self._telling.validation_loss)
            self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        from peft import PeftModel

        assert output_dir is not None
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            # Not the copy that DPO compares with, and no weights of the base.
            model.save_pretrained(
                output_dir,
                state_dict=state_dict,
                selected_adapters=["default"],
                save_embedding_layers=False,
            )
        else:
            model.save_pretrained(output_dir, state_dict=state_dict)
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        self.processing_class.save_pretrained(output_dir)

    @contextmanager
    def _interlude(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        self._session.phase(phase)
        yield
        self._session.phase("training")
        self._telling.pause(time.monotonic() - began)


class OurSFTTrainer(Ours, SFTTrainer):
    """TRL's trainer for supervised fine-tuning.

    The validation loss is the mean over all tokens, however they are batched.
    """

    _sums: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validate."""
        self._sums = []
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._sums = None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss, and keep what the mean over a validation needs."""
        tokens = (inputs["labels"][:, 1:] != -100).sum()
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._sums is not None:
            loss = found[0] if return_outputs else found
            self._sums.append((loss.detach() * tokens, tokens))
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log figures, with the validation loss over all tokens."""
        if self._sums:
            losses, tokens = (torch.stack(parts).sum() for parts in zip(*self._sums, strict=True))
            both: Any = self.accelerator.gather(torch.stack((losses, tokens)).unsqueeze(0))
            both = both.sum(0)
            logs["eval_loss"] = float(both[0] / both[1])
        super().log(logs, start_time)


def preference_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, config: DPOAlignmentConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the losses of pairs and the rewards of their answers, as `DPOAlignmentConfig` defines them.

    Args:
        chosen: of each chosen answer, its log-probability less that under the reference.
        rejected: the same of each rejected answer.
        config: the parameters.
    """
    first, second = config.reward_scale * chosen, config.reward_scale * rejected
    if config.reward_clip:
        first, second = (r.clamp(-config.reward_clip, config.reward_clip) for r in (first, second))
    margin = first - second - config.gamma
    losses = -functional.logsigmoid(margin) * (1 - config.epsilon)
    losses = losses - functional.logsigmoid(-margin) * config.epsilon
    return losses, first, second


class OurDPOTrainer(Ours, DPOTrainer):
    """TRL's trainer for direct preference optimisation, with the loss of `DPOAlignmentConfig`."""

    alignment: DPOAlignmentConfig

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,  # noqa: ARG002
        args: Any,  # noqa: ARG002
        dataset_name: str,  # noqa: ARG002
    ) -> Any:
        # The examples are tokens already.
        return dataset

    def _compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool
    ) -> torch.Tensor:
        assert not return_outputs
        mask = inputs["completion_mask"]
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(mask == 0, -100),
            use_cache=False,
            fused_lm_head=True,
        )
        ours = outputs.log_probs.sum(dim=1).chunk(2)
        theirs = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        losses, chosen, rejected = preference_loss(
            ours[0] - theirs[0], ours[1] - theirs[1], self.alignment
        )
        figures = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": ours[0],
            "logps/rejected": ours[1],
        }
        kept = self._metrics["train" if model.training else "eval"]
        for name, values in figures.items():
            gathered: Any = self.accelerator.gather(values.detach())
            kept[name].append(gathered.mean().item())
        return losses.mean()


class OurRewardTrainer(Ours, RewardTrainer):
    """TRL's trainer for reward models: the loss of a pair is ``-log sigmoid(score(chosen) - score(rejected))``."""
