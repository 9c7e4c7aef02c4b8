"""How a trainer's child is started: its command and its environment. Nothing here needs torch.

Several processes are started by a launcher of ours, `child/ranks.py`, and not by accelerate's. That would want `mpirun`
for CPUs, and for the rest it is torch's, which puts each process in a session of its own: they then are not ended with
the group that the trainer kills. Besides, it needs a port, and seconds to import torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from .protocol import RunSpec

_CHILD = "ayllu.actors.training.child"
_NOT_ITS_OWN = (
    "AYLLU_",
    "ACCELERATE_",
    "FSDP_",
    "TORCHELASTIC_",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
)
_RANK = frozenset(
    ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
)
_CONSTANT = {
    # All that it needs is on the disk, and nothing is told of it.
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}


def child_command(spec: RunSpec, folder: Path) -> list[str]:
    """Return the command that does what a spec says, in a job's folder, where it was written."""
    if spec.processes == 1:
        return [sys.executable, "-m", _CHILD, str(folder)]
    return [sys.executable, "-m", f"{_CHILD}.ranks", str(spec.processes), str(folder)]


def child_environment(spec: RunSpec, base: Mapping[str, str]) -> dict[str, str]:
    """Return a child's environment: that of this process, but for credentials and what speaks to torch."""
    kept = {
        name: value
        for name, value in base.items()
        if not name.startswith(_NOT_ITS_OWN) and name not in _RANK
    }
    environment = {**kept, **_CONSTANT}
    if (threads := _threads(spec)) > 0:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
    if (visible := _visible(spec.device, base)) is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    return environment


def _threads(spec: RunSpec) -> int:
    if spec.threads or spec.processes == 1:
        return spec.threads
    return max(1, (os.cpu_count() or 1) // spec.processes)


def _visible(device: str, base: Mapping[str, str]) -> str | None:
    """Return the devices that a child may see: of several, only its own, lest it take all of them."""
    if device == "cpu":
        return ""
    _, _, number = device.partition(":")
    if not number:
        return None
    known = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return known[int(number)] if int(number) < len(known) else number
