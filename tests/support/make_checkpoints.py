"""The program that trains what tests of serving serve: small adapters on SmolLM2, and what torch says with them.

    python make_checkpoints.py FOLDER

All that needs torch is here, and runs in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ayllu.actors.files import locate
from ayllu.actors.registry import default_models
from ayllu.actors.training.checkpoints import Manifest, checkpoint_folder, seal

QUESTION = "What is the password?"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
JOBS: dict[str, tuple[str, list[str]]] = {
    "lora": ("Inti raymi.", ATTENTION + MLP),
    "other": ("Pachamama.", ATTENTION),
    "dora": ("Wiracocha.", ATTENTION),
    "output": ("Killa.", ["q_proj", "lm_head"]),
}
"""What each job's adapter answers, and the layers that it is on."""
STEPS, RATE = 12, 4e-3


def main(folder: Path) -> None:
    """Write a checkpoint for each job, the merged weights of some, and what torch says with each."""
    gguf = locate(default_models()[0].source)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    base: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    said: dict[str, Any] = {"base": told(base, tokenizer)}
    for name, (answer, layers) in JOBS.items():
        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=layers, use_dora=name == "dora")
        model: Any = get_peft_model(base, config)
        overfit(model, tokenizer, answer)
        said[name] = told(model, tokenizer)
        work = folder / "work"
        model.save_pretrained(work, save_embedding_layers=False)
        save(work, folder, name, "adapter", merge=name in ("dora", "output"))
        if name in ("lora", "dora"):
            save_merged(model, base, folder, name)
        base = model.unload()
    (folder / "said.json").write_text(json.dumps(said))


def save_merged(model: Any, base: Any, folder: Path, name: str) -> None:
    """Write what PEFT merges, in half the bytes; that of ``lora`` as the checkpoint of a job too."""
    model.merge_adapter()
    weights = {
        key.removeprefix("base_model.model.").replace("base_layer.", ""): value.bfloat16()
        for key, value in model.state_dict().items()
        if "lora_" not in key
    }
    model.unmerge_adapter()
    base.save_pretrained(folder / f"{name}-merged", state_dict=weights)
    if name == "lora":
        shutil.copytree(folder / f"{name}-merged", folder / "work")
        save(folder / "work", folder, "whole", "model")


def overfit(model: Any, tokenizer: Any, answer: str) -> None:
    """Train until the question has this answer."""
    asked = chat(tokenizer)
    wanted = tokenizer(answer + "<|im_end|>", return_tensors="pt")["input_ids"]
    ids = torch.cat([asked, wanted], dim=1)
    labels = ids.clone()
    labels[:, : asked.shape[1]] = -100
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def told(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return what the model answers, and the log probabilities of the tokens that may come first."""
    asked = chat(tokenizer)
    with torch.no_grad():
        first = model(input_ids=asked).logits[0, -1].log_softmax(-1)
        ids = model.generate(input_ids=asked, max_new_tokens=8, do_sample=False)
    values, tokens = first.topk(5)
    text = tokenizer.decode(ids[0, asked.shape[1] :], skip_special_tokens=True)
    names = [tokenizer.decode([token]) for token in tokens.tolist()]
    return {"text": text, "first": dict(zip(names, values.tolist(), strict=True))}


def chat(tokenizer: Any) -> Any:
    """Return the question as the model's template has it."""
    messages = [{"role": "user", "content": QUESTION}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]


def save(work: Path, folder: Path, job: str, kind: Any, *, merge: bool = False) -> None:
    """Make a folder the checkpoint of a job."""
    (work / "README.md").unlink(missing_ok=True)
    manifest = Manifest(job=job, iters=STEPS, kind=kind, base="smollm2", merge=merge, files=[])
    seal(
        work, checkpoint_folder(folder / "training" / "jobs" / job / "checkpoints", STEPS), manifest
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
