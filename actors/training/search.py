"""Hyperparameter searches: Optuna proposes, each trial is a job of its own, the one with the lowest validation loss is the best.

The study is kept nowhere: it is told again of all trials that ended, by their jobs' records and events, whenever a trainer takes
the search up.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from msgspec.structs import replace

from ...schemas import (
    AylluError,
    HyperparameterSearch,
    JobEventKind,
    JobFailure,
    JobMetrics,
    PostTrainingJobStatus,
)
from ..jobs.holding import CANCELLED, CRASHED, FOREVER, Hold
from ..jobs.jobs import Jobs
from ..jobs.records import JobRecord, ParameterValue, TrainingRequest, Trial
from ..patience import persistently
from .preparing import Workshop
from .running import PRUNED, Attempt
from .settings import require_packages
from .validation import request_type, with_parameters

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
STARTUP_TRIALS = 5
"""How many trials are random before the sampler learns from them."""


class Search:
    """A search, by the trainer that has its lease; its trials run on the same device, one after the other.

    Args:
        jobs: the jobs.
        workshop: where they are run.
        job: the id of the search.
        device: what its trials run on.
    """

    def __init__(self, jobs: Jobs, workshop: Workshop, job: str, device: str) -> None:
        self._jobs = jobs
        self._workshop = workshop
        self._device = device
        self._hold = Hold(jobs, job, device, workshop.settings.attempts)
        self._trial: Attempt | None = None

    def look(self) -> None:
        """Look at once whether the search, or its trial, was cancelled."""
        if self._trial is not None:
            self._trial.look()

    async def run(self) -> JobRecord:
        """Run all trials that have not ended; see `Attempt.run`."""
        return await self._hold.attempt(self._searched)

    async def _searched(self, record: JobRecord) -> JobFailure | None:
        try:
            require_packages("optuna")
            request = await persistently(
                lambda: self._jobs.request(record, request_type(record.kind)), patience=FOREVER
            )
            search = request.hyperparam_search_config
            study = await anyio.to_thread.run_sync(_new_study, search)
            for trial in record.trials:
                known = await persistently(lambda: self._jobs.record(trial.job), patience=FOREVER)  # noqa: B023 - awaited at once
                if not known.ended:
                    known = await self._run_trial(trial, None)
                await self._hold.change(partial(_with_trial, known))
                await self._add(study, search, trial, known)
            while not await self._cancelled() and len(record.trials) < search.n_trials:
                record = await self._next(record, request, study)
            record = await self._hold.change(lambda known: known)
        except AylluError as error:
            return JobFailure(CRASHED if error.retryable else error.code, error.message)
        if record.cancel:
            return JobFailure(CANCELLED, "it was cancelled")
        if record.best is None:
            return JobFailure("no_trial_completed", "no trial came to its end: look at their logs")
        return None

    async def _cancelled(self) -> bool:
        return await persistently(self._hold.shall_end, patience=FOREVER)

    async def _next(
        self, record: JobRecord, request: TrainingRequest, study: optuna.Study
    ) -> JobRecord:
        """Make the next trial a job, and run it."""
        search = request.hyperparam_search_config
        asked = study.ask(_distributions(search))
        trial = Trial(f"{record.job}/trial-{len(record.trials) + 1}", _values(search, asked.params))
        job = JobRecord(
            job=trial.job,
            kind=record.kind,
            digest="",
            model=record.model,
            algorithm=record.algorithm,
            scheduled_at=record.scheduled_at,
            parent=record.job,
        )
        tried = with_parameters(request, trial.parameters)
        tried = replace(tried, job_uuid=trial.job)
        await persistently(lambda: self._jobs.keep(tried, job), patience=FOREVER)
        # From here on it is known, and is gone on with by whoever takes the search up.
        record = await self._hold.change(
            lambda known: replace(known, trials=[*known.trials, trial], crashes=0)
        )
        _tell_end(study, asked, await self._run_trial(trial, asked))
        return record

    async def _run_trial(self, trial: Trial, asked: optuna.Trial | None) -> JobRecord:
        """Run a trial to its end; without ``asked``, it is not given up early."""
        told = ", ".join(f"{path} = {value!r}" for path, value in trial.parameters.items())
        await self._tell_trial(trial, f"{trial.job} begins: {told}")

        def promising(metrics: JobMetrics) -> bool:
            if asked is None or metrics.validation_loss is None:
                return True
            asked.report(metrics.validation_loss, metrics.iteration)
            return not asked.should_prune()

        while True:
            attempt = self._trial = Attempt(
                self._jobs, self._workshop, trial.job, self._device, promising
            )
            try:
                record = await attempt.run()
            finally:
                self._trial = None
            if record.ended:
                break
            await anyio.sleep(PAUSE_SECONDS)
        settled = record
        await persistently(lambda: self._jobs.settle(settled), patience=FOREVER)
        await self._keep_best(trial, record)
        return record

    async def _keep_best(self, trial: Trial, ended: JobRecord) -> None:
        """Keep which trial is the best so far, and what it made, as what the search made."""
        best = (await self._hold.change(partial(_with_trial, ended))).best
        text = f"{trial.job} {ended.status.value}"
        if ended.failure is not None:
            text += f": {ended.failure.code}: {ended.failure.message}"
        if ended.validation_loss is not None:
            text += f", validation loss {ended.validation_loss:.4f}"
        await self._tell_trial(trial, text + (", the best one so far" if best == trial.job else ""))

    async def _tell_trial(self, trial: Trial, line: str) -> None:
        await self._hold.tell(
            JobEventKind.status,
            lines=[line],
            status=PostTrainingJobStatus.running,
            trial=trial.job,
        )

    async def _add(
        self,
        study: optuna.Study,
        search: HyperparameterSearch,
        trial: Trial,
        record: JobRecord,
    ) -> None:
        """Tell a study of a trial that ended under another trainer."""
        import optuna

        losses: dict[int, float] = {}
        async for event in self._jobs.events.standing(record):
            if event.metrics is not None and event.metrics.validation_loss is not None:
                losses[event.metrics.iteration] = event.metrics.validation_loss
        state, value = _outcome(record)
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.parameters,
                distributions=_distributions(search),
                value=value,
                intermediate_values=losses,
                state=state,
            )
        )


def _with_trial(trial: JobRecord, known: JobRecord) -> JobRecord:
    """Return a search that knows of the end of a trial."""
    loss = trial.validation_loss
    if trial.status is not PostTrainingJobStatus.completed or loss is None:
        return known
    if known.validation_loss is not None and known.validation_loss <= loss:
        return known
    return replace(
        known,
        best=trial.job,
        validation_loss=loss,
        metrics=trial.metrics,
        checkpoints=trial.checkpoints,
    )


def _new_study(search: HyperparameterSearch) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler: Any
    if search.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=search.seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=STARTUP_TRIALS)
    pruner: Any = optuna.pruners.NopPruner()
    if search.pruner == "median":
        pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    return optuna.create_study(sampler=sampler, pruner=pruner, direction="minimize")


def _distributions(search: HyperparameterSearch) -> dict[str, Any]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    made: dict[str, Any] = {}
    for path, parameter in search.parameters.items():
        if parameter.choices:
            made[path] = CategoricalDistribution(parameter.choices)
            continue
        assert parameter.low is not None and parameter.high is not None  # noqa: PT018 - checked when it was accepted
        if parameter.integer:
            made[path] = IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
        else:
            made[path] = FloatDistribution(parameter.low, parameter.high, log=parameter.log)
    return made


def _values(search: HyperparameterSearch, params: dict[str, Any]) -> dict[str, ParameterValue]:
    return {path: params[path] for path in search.parameters}


def _outcome(record: JobRecord) -> tuple[Any, float | None]:
    from optuna.trial import TrialState

    if record.status is PostTrainingJobStatus.completed and record.validation_loss is not None:
        return TrialState.COMPLETE, record.validation_loss
    if record.failure is not None and record.failure.code == PRUNED:
        return TrialState.PRUNED, record.validation_loss
    return TrialState.FAIL, None


def _tell_end(study: optuna.Study, asked: optuna.Trial, record: JobRecord) -> None:
    from optuna.trial import TrialState

    state, value = _outcome(record)
    study.tell(asked, None if state is TrialState.PRUNED else value, state=state)
