"""The program that makes tiny reward models with random heads, and says how transformers itself scores with them.

    python make_classifiers.py BASE FOLDER

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
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ayllu.actors.training.checkpoints import Manifest, checkpoint_folder, seal

CHATTED = ("first", "second", "adapted")
"""The jobs whose checkpoints are made."""


def main(base: Path, folder: Path) -> None:
    """Write the models, and the scores of the dialogs in ``asked.json`` as ``scores.json``."""
    asked = json.loads((folder / "asked.json").read_text())
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    scores: dict[str, list[float]] = {}

    def say(name: str, model: Any, *, to: Path) -> None:
        model.eval()
        scores[name] = [scored(model, tokenizer, dialog) for dialog in asked]
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)

    say("whole", classifier(base, 1), to=folder / "whole")
    padless = classifier(base, 2)
    padless.config.pad_token_id = None
    say("padless", padless, to=folder / "padless")
    classifier(base, 3, num_labels=2).save_pretrained(folder / "two")
    tokenizer.save_pretrained(folder / "two")
    for number, job in enumerate(CHATTED):
        model = classifier(base, 10 + number)
        if job == "adapted":
            layers = ["q_proj", "v_proj", "up_proj"]
            config = LoraConfig(
                r=4, target_modules=layers, task_type="SEQ_CLS", init_lora_weights=False
            )
            model = get_peft_model(model, config)
        say(job, model, to=folder / "work")
        keep(folder, job)
    (folder / "scores.json").write_text(json.dumps(scores))


def classifier(base: Path, seed: int, num_labels: int = 1) -> Any:
    """Return a model with a random head, whose scores differ enough."""
    torch.manual_seed(seed)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, dtype=torch.float32
    )
    with torch.no_grad():
        model.score.weight.normal_()
    return model


def scored(model: Any, tokenizer: Any, dialog: list[dict[str, str]]) -> float:
    """Return the score of a dialog alone, as transformers gives it."""
    encoded = tokenizer.apply_chat_template(dialog, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return float(model(**encoded).logits[0, 0])


def keep(folder: Path, job: str) -> None:
    """Make what was written the checkpoint of a job."""
    work = folder / "work"
    (work / "README.md").unlink(missing_ok=True)
    kind: Any = "adapter" if job == "adapted" else "model"
    manifest = Manifest(job=job, iters=1, kind=kind, base="tiny", reward=True, files=[])
    target = checkpoint_folder(folder / "training" / "jobs" / job / "checkpoints", 1)
    seal(work, target, manifest)
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
