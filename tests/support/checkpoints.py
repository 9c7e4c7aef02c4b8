"""Checkpoints for tests of serving, trained once for all of them, and a double of the actor that tells of jobs."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ayllu.actors.training.checkpoints import checkpoints_in, read_manifest
from ayllu.schemas import (
    Checkpoint,
    JobEvent,
    NotFound,
    PostTrainingJobArtifactsResponse,
    PostTrainingJobLogStream,
    PostTrainingJobs,
    PostTrainingJobStatusResponse,
)

QUESTION = "What is the password?"
SAYS = {
    "lora": "Inti raymi.",
    "other": "Pachamama.",
    "dora": "Wiracocha.",
    "output": "Killa.",
    "whole": "Inti raymi.",
}
"""What the checkpoint of each job answers to the question."""
STEPS = 12
READY_MADE = "AYLLU_TEST_CHECKPOINTS"
"""The variable that names a folder where they are, or shall be, for whoever runs these tests often."""


@functools.cache
def trained() -> Path:
    """Return the folder with the jobs, what PEFT merges (``lora-merged``...) and what torch says (``said.json``); about a minute."""
    kept = os.environ.get(READY_MADE)
    folder = Path(kept or tempfile.mkdtemp(prefix="ayllu-trained-"))
    if not kept:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if not (folder / "said.json").is_file():
        program = Path(__file__).with_name("make_checkpoints.py")
        subprocess.run(
            [sys.executable, "-P", "-W", "ignore", str(program), str(folder)],
            check=True,
            timeout=300,
            capture_output=True,
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        )
    return folder


def said() -> dict[str, dict[str, Any]]:
    """Return what torch says with each job: its text, and the log probabilities of first tokens."""
    found: dict[str, dict[str, Any]] = json.loads((trained() / "said.json").read_text())
    return found


def checkpoint_of(job: str) -> Path:
    """Return a job's checkpoint; it is shared by all tests, and not to be changed."""
    [(_, folder)] = checkpoints_in(trained() / "training" / "jobs" / job / "checkpoints")
    return folder


def foreign_copy(job: str, folder: Path) -> Path:
    """Return a copy of a job's checkpoint without the manifest, as one that comes from elsewhere."""
    shutil.copytree(checkpoint_of(job), folder)
    (folder / "manifest.json").unlink()
    return folder


class JobsDouble(PostTrainingJobs):
    """Tells of the jobs below a folder what an actor of ours would; the rest of the API it does not have."""

    service_name = "jobs-double"

    def __init__(self, jobs: Path) -> None:
        self._jobs = jobs

    async def artifacts(self, job_uuid: str) -> PostTrainingJobArtifactsResponse:
        """List what a job produced."""
        if not (self._jobs / job_uuid).is_dir():
            raise NotFound(f"there is no job {job_uuid!r}")
        found = checkpoints_in(self._jobs / job_uuid / "checkpoints")
        checkpoints = [
            Checkpoint(iters, path.as_uri(), read_manifest(path).kind) for iters, path in found
        ]
        return PostTrainingJobArtifactsResponse(job_uuid, checkpoints)

    def logs(self, job_uuid: str) -> AsyncIterator[PostTrainingJobLogStream]:
        raise NotImplementedError

    def events(self, job_uuid: str, after: int = 0, follow: bool = True) -> AsyncIterator[JobEvent]:
        raise NotImplementedError

    async def status(self, job_uuid: str) -> PostTrainingJobStatusResponse:
        raise NotImplementedError

    def list(self, limit: int = 100) -> AsyncIterator[PostTrainingJobStatusResponse]:
        raise NotImplementedError

    async def cancel(self, job_uuid: str) -> None:
        raise NotImplementedError
