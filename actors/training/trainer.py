"""Trainers: runners of training jobs, each on a device of its own."""

from __future__ import annotations

from ..jobs.holding import FOREVER
from ..jobs.jobs import Jobs
from ..jobs.records import JobRecord
from ..jobs.runner import Run, Runner
from ..patience import persistently
from .preparing import Workshop
from .running import Attempt
from .search import Search
from .validation import is_search, request_type


def new_trainer(jobs: Jobs, workshop: Workshop, device: str) -> Runner:
    """Return a trainer: what runs it keeps what two trainers of one job write apart by the lock in the job's folder.

    Args:
        jobs: the jobs.
        workshop: where they are run.
        device: what they run on.
    """

    async def run_of(record: JobRecord) -> Run:
        request = await persistently(
            lambda: jobs.request(record, request_type(record.kind)), patience=FOREVER
        )
        if is_search(request.hyperparam_search_config):
            return Search(jobs, workshop, record.job, device)
        return Attempt(jobs, workshop, record.job, device)

    return Runner(jobs, "job", device, run_of)
