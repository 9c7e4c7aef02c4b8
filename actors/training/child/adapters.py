"""Adapters: which modules get them, and their configuration for PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....schemas import FinetuningAlgorithm, InvalidRequest, LoraFinetuningConfig

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel

_ATTENTION = ("attn", "attention")


def adapter_config(
    model: PreTrainedModel,
    config: LoraFinetuningConfig,
    algorithm: FinetuningAlgorithm,
    *,
    head: str | None = None,
) -> LoraConfig:
    """Return PEFT's configuration of what a request asks for.

    Args:
        model: gets the adapters.
        config: what the request says of them.
        algorithm: which kind of adapters they are.
        head: the module that makes a reward of what the others make; it is trained and saved whole.

    Raises:
        InvalidRequest: it names modules that the model has not, or none at all.
    """
    from peft import LoraConfig

    targets = target_modules(
        linear_modules(model),
        head or output_module(model),
        config.lora_attn_modules,
        mlp=config.apply_lora_to_mlp,
        output=config.apply_lora_to_output and head is None,
    )
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        use_dora=algorithm is FinetuningAlgorithm.dora,
        lora_dropout=0.0,
        bias="none",
        # Of a classification, PEFT trains and saves the head whole.
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
    )


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Return the paths of a model's linear layers, those in 4 bits too."""
    import torch

    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


def output_module(model: PreTrainedModel) -> str | None:
    """Return the path of the layer that makes logits."""
    output = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is output), None)


def target_modules(
    linear: list[str], head: str | None, wanted: list[str], *, mlp: bool, output: bool
) -> list[str]:
    """Return the paths of the modules that get adapters, in the order of the model.

    Args:
        linear: the paths of all linear layers.
        head: that of the output layer.
        wanted: the modules' names, each the end of a path: `q_proj`, or `self_attn.q_proj`.
        mlp: whether the linear layers outside of the attention get adapters too.
        output: whether the output layer gets one.

    Raises:
        InvalidRequest: a name is that of no linear layer, or nothing would be trained.
    """
    inner = [path for path in linear if path != head]
    known = sorted({path.rpartition(".")[2] for path in inner})
    if unknown := [name for name in wanted if not any(_ends(path, name) for path in inner)]:
        raise InvalidRequest(
            f"lora_attn_modules: the model has no {', '.join(unknown)}; it has {', '.join(known)}",
            details={"modules": known},
        )
    chosen = [
        path
        for path in inner
        if any(_ends(path, name) for name in wanted) or (mlp and not _in_attention(path))
    ]
    if output:
        if head is None or head not in linear:
            raise InvalidRequest("apply_lora_to_output: the model has no linear output layer")
        chosen.append(head)
    if not chosen:
        raise InvalidRequest("no module gets an adapter: nothing would be trained")
    return chosen


def expose_output_layer(model: PeftModel) -> bool:
    """Let TRL train an adapter on the output layer; return whether there is one.

    TRL computes log-probabilities from the weights of the output layer, past the layer itself, and so refuses adapters
    there, which would not be trained. Here it finds weights that have the adapter in them.
    """
    from peft.tuners.lora import LoraLayer

    base: Any = model.get_base_model()
    layer = base.get_output_embeddings()
    if not isinstance(layer, LoraLayer):
        return False
    head = _AdaptedHead(layer)
    base.get_output_embeddings = lambda: head
    return True


class _AdaptedHead:
    """An output layer as TRL reads it: with the weights that the active adapter makes of it, which can be trained."""

    def __init__(self, layer: LoraLayer) -> None:
        self._layer = layer

    @property
    def bias(self) -> torch.Tensor | None:
        base: Any = self._layer.get_base_layer()
        bias: torch.Tensor | None = base.bias
        return bias

    @property
    def weight(self) -> torch.Tensor:
        import torch

        layer: Any = self._layer
        weight: torch.Tensor = layer.get_base_layer().weight
        if layer.disable_adapters:
            return weight
        for name in layer.active_adapters:
            low, high = layer.lora_A[name].weight, layer.lora_B[name].weight
            adapted = weight + layer.scaling[name] * (high @ low)
            if layer.use_dora[name]:
                # https://arxiv.org/abs/2402.09353, section 4.3: the norm is taken for a constant.
                # (A row of zeros, such as that of a token that pads, has none; it stays as it is.)
                norm = torch.linalg.vector_norm(adapted, dim=1).detach().clamp(min=1e-12)
                magnitude = layer.lora_magnitude_vector[name].weight
                adapted = (magnitude / norm).unsqueeze(1) * adapted
            weight = adapted
        return weight


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _in_attention(path: str) -> bool:
    return any(word in part.lower() for part in path.split(".") for word in _ATTENTION)
