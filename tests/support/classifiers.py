"""Tiny reward models for tests, made once for all of them, with the scores that transformers itself gives; no torch here."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ayllu.actors.rewards.engine import Answer
from ayllu.actors.training.checkpoints import checkpoints_in

from .rewards import dialog, said
from .training import tiny_model

CONTEXT = 256
"""Of the models; a byte is a token."""
QUESTION = "Why?"
TEXTS = [
    # Lengths from 1 to 180 in no order, some of them several times; one is empty.
    "" if number == 7 else f"{number}: " + "so it is, " * (number * 7 % 18)
    for number in range(40)
]


@functools.cache
def classifiers() -> Path:
    """Return the folder of the models ``whole``, ``padless``, ``two``, ``base`` and of the jobs below ``training``."""
    folder = Path(tempfile.mkdtemp(prefix="ayllu-classifiers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = tiny_model(folder / "base")
    asked = [
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}]
        for text in TEXTS
    ]
    (folder / "asked.json").write_text(json.dumps(asked))
    program = Path(__file__).with_name("make_classifiers.py")
    subprocess.run(
        [sys.executable, "-P", "-W", "ignore", str(program), str(base), str(folder)],
        check=True,
        timeout=200,
        capture_output=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    return folder


def transformers_scores(name: str) -> list[float]:
    """Return what transformers gives each of the texts with a model."""
    found: list[float] = json.loads((classifiers() / "scores.json").read_text())[name]
    return found


def asked(texts: list[str] = TEXTS) -> list[Answer]:
    """Return texts as answers to the question."""
    return [Answer(dialog(QUESTION), said(text)) for text in texts]


def reward_checkpoint(job: str) -> Path:
    """Return a job's checkpoint; it is shared by all tests, and not to be changed."""
    [(_, folder)] = checkpoints_in(classifiers() / "training" / "jobs" / job / "checkpoints")
    return folder
