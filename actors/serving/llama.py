"""The Llama architecture's two sets of names, and the one difference in its weights: the order of the rows of q and k.

Hugging Face rotates the first half of a head against the second, llama.cpp each even row against the odd one after it; so
whoever writes GGUF reorders the rows (llama.cpp, ``convert_hf_to_gguf.py``, ``LlamaModel.permute``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from ...schemas import InvalidRequest, Unsupported
from .tensors import Array

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_TOP = MappingProxyType(
    {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"},
)
_BLOCK = MappingProxyType(
    {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
)
_BLOCK_NAME = re.compile(r"layers\.(\d+)\.(.+)")


def gguf_name(module: str) -> str:
    """Return the GGUF name of a module's weight; the module is named as in a ``LlamaForCausalLM``.

    Raises:
        Unsupported: the Llama architecture has no such module.
    """
    plain = module.removeprefix("model.")
    if match := _BLOCK_NAME.fullmatch(plain):
        found = _BLOCK.get(match[2])
        if found is not None:
            return f"blk.{match[1]}.{found}.weight"
    elif plain in _TOP:
        return f"{_TOP[plain]}.weight"
    raise Unsupported(f"the Llama architecture has no module {module}")


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads of attention there are, and how many of keys and values."""

    query: int
    key: int

    def ordered(self, name: str, rows: Array) -> Array:
        """Return the rows of Hugging Face's weight in the order in which GGUF has them.

        Args:
            name: the weight's GGUF name.
            rows: the weight, or anything with one row (or value) for each of its rows.

        Raises:
            InvalidRequest: the rows cannot be shared by the heads.
        """
        if name.endswith("attn_q.weight"):
            heads = self.query
        elif name.endswith("attn_k.weight"):
            heads = self.key
        else:
            return rows
        if rows.shape[0] % (2 * heads):
            raise InvalidRequest(f"{name}: {rows.shape[0]} rows cannot be shared by {heads} heads")
        split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        return split.swapaxes(1, 2).reshape(rows.shape)
