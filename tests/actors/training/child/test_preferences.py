from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from support.training import CHILD_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.requirement("child-dpo")]

# In a process of its own: the one of the tests shall not import torch.
PROGRAM = """
import json, sys, tempfile, torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
from ayllu.actors.training.child.tokens import Encoder
from ayllu.actors.training.child.trainers import OurDPOTrainer, preference_loss
from ayllu.schemas import DPOAlignmentConfig

model_folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(model_folder)
rows = [Encoder(tokenizer).pair({"prompt": f"{n}?", "chosen": "yes " * n, "rejected": "no"})._asdict() for n in (1, 2, 3, 4)]
model = AutoModelForCausalLM.from_pretrained(model_folder)
torch.manual_seed(1)
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
trainer = OurDPOTrainer(
    model=model, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
    args=DPOConfig(tempfile.mkdtemp(), beta=0.3, use_cpu=True, bf16=False, max_length=None, report_to="none"))
with torch.no_grad():
    # The copy that it is compared with is no longer the same.
    for name, parameter in model.named_parameters():
        if ".default." in name:
            parameter.mul_(3)
    batch = trainer.data_collator(rows)
    trainer.alignment = DPOAlignmentConfig(0.3, 0.0, 0.0, 0.0)
    ours = trainer._compute_loss(model, batch, False).item()
    theirs = DPOTrainer._compute_loss(trainer, model, batch, False).item()
    figures = trainer._metrics["train"]
losses = {}
for name, values in {"clip": (0.5, 1.0, 0.0, 0.0), "epsilon": (0.5, 0.0, 0.2, 0.0), "gamma": (0.5, 0.0, 0.0, 0.7),
                     "all": (0.5, 1.0, 0.2, 0.7)}.items():
    found = preference_loss(torch.tensor([3.0, -1.0]), torch.tensor([-4.0, 0.5]), DPOAlignmentConfig(*values))
    losses[name] = [part.tolist() for part in found]
print(json.dumps({"ours": ours, "theirs": theirs, "figures": figures, "losses": losses}))
"""


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def test_the_loss_is_the_documented_one_and_trls_where_nothing_is_added(tiny: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tiny)],
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] == pytest.approx(found["theirs"], rel=1e-6)
    assert abs(found["ours"] - math.log(2)) > 1e-3, "policy and reference are the same"
    # Each has been measured twice: by us, and by TRL.
    compared = {name: two for name, two in found["figures"].items() if len(two) == 2}
    assert len(compared) == 6
    for name, (first, second) in compared.items():
        assert first == pytest.approx(second, rel=1e-5), name

    parameters = {
        "clip": (0.5, 1.0, 0.0, 0.0),
        "epsilon": (0.5, 0.0, 0.2, 0.0),
        "gamma": (0.5, 0.0, 0.0, 0.7),
        "all": (0.5, 1.0, 0.2, 0.7),
    }
    for name, (beta, clip, epsilon, gamma) in parameters.items():
        losses, chosen, rejected = found["losses"][name]
        for pair, (good, bad) in enumerate(((3.0, -4.0), (-1.0, 0.5))):
            rewards = [beta * good, beta * bad]
            if clip:
                rewards = [max(-clip, min(clip, reward)) for reward in rewards]
            margin = rewards[0] - rewards[1] - gamma
            wanted = -(1 - epsilon) * log_sigmoid(margin) - epsilon * log_sigmoid(-margin)
            assert losses[pair] == pytest.approx(wanted, rel=1e-5), name
            assert [chosen[pair], rejected[pair]] == pytest.approx(rewards), name
