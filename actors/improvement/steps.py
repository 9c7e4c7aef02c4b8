"""The steps of a loop, done: each an effect that may be had twice, the state after it, and a line that says what came of it.

The stages are jobs, whose ids follow from the loop's: to start one again is to find it.
"""

from __future__ import annotations

from functools import partial

import anyio
import anyio.to_thread

from ...bus.bus import Bus
from ...bus.client import client, served_models
from ...schemas import (
    Datasets,
    Evaluation,
    ImproveRequest,
    JobFailure,
    KScoredPromptGenerations,
    PostTraining,
    SyntheticDataJobs,
)
from ..patience import persistently
from .evaluation import evaluate
from .following import STAGE_FAILED, Follower, LoopEnds
from .plan import Evaluate, Generate, LookUp, Register, Settle, Step, Train, training_job
from .serving import Serving
from .stages import evaluation_request, generation_request, training_request
from .state import (
    LoopState,
    best_of,
    evaluated,
    evaluated_base,
    generated,
    looked_up,
    registered,
    settled,
    trained,
    verdict,
)

Done = tuple[LoopState, str]


class Steps:
    """Does the steps of one loop.

    Args:
        bus: where the actors of the stages are.
        request: what the loop was asked to do.
        follower: follows the stages' jobs.
    """

    def __init__(self, bus: Bus, request: ImproveRequest, follower: Follower) -> None:
        self._bus = bus
        self._request = request
        self._follower = follower
        self._serving = Serving(bus, request.name)
        self._data = client(SyntheticDataJobs, bus)
        self._datasets = client(Datasets, bus)
        self._training = client(PostTraining, bus)

    async def done(self, step: Step, state: LoopState) -> Done:
        """Do a step; return the state after it, and a line for people.

        Raises:
            LoopEnds: its job has failed, or the loop was cancelled.
            AylluError: what the actors said, or that they are away for too long.
        """
        match step:
            case LookUp():
                return await self._looked_up(state)
            case Evaluate():
                return await self._evaluated(step, state)
            case Generate():
                return await self._generated(step, state)
            case Train():
                return await self._trained(step, state)
            case Register():
                return await self._registered(step, state)
            case Settle():
                return await self._settled(step, state)

    async def _looked_up(self, state: LoopState) -> Done:
        served = await persistently(self._serving.current)
        told = f"version {served.version}" if served else "nothing"
        return looked_up(state, served), f"{self._request.name} serves {told} before this loop"

    async def _evaluated(self, step: Evaluate, state: LoopState) -> Done:
        request = self._request
        await persistently(partial(self._data.start, evaluation_request(request, step)))
        await self._follower.ended(step.job)
        results = await persistently(partial(self._results, step.job))
        lowest = await persistently(self._lowest_score)
        # Of ten thousand prompts, the bootstrap takes more than a second.
        found = await anyio.to_thread.run_sync(
            lambda: evaluate(
                step.model,
                step.job,
                results,
                prompts=len(request.held_out_prompts.prompts),
                answers=request.evaluation.num_candidates,
                lowest=lowest,
            )
        )
        if found is None:
            message = f"{step.job}: no answer to the held-out prompts has a score"
            raise LoopEnds(JobFailure(STAGE_FAILED, message))
        line = f"{step.model}{' with help' if step.helped else ''}: {_told(found)}"
        if not step.round:
            return evaluated_base(request, state, found, helped=step.helped), line
        after = evaluated(request, state, found)
        return after, f"round {step.round}: {line}, gain {after.rounds[-1].gain:+.4f}"

    async def _results(self, job: str) -> list[KScoredPromptGenerations]:
        return [result async for result in self._data.results(job)]

    async def _lowest_score(self) -> float | None:
        """Return the lowest score that the reward model gives, if it says so."""
        name = self._request.reward_scoring.model
        for model in await served_models(self._bus):
            if model.kind == "reward" and name in (model.name, *model.aliases):
                return model.lowest_score
        return None

    async def _generated(self, step: Generate, state: LoopState) -> Done:
        await persistently(partial(self._data.start, generation_request(self._request, step)))
        await self._follower.ended(step.job)
        told = await persistently(partial(self._data.statistics, step.job))
        line = (
            f"round {step.round}: {told.candidates} answers by {step.model}, {told.failed} failed, {told.unscored} without "
            f"a score, {told.below_threshold} below the threshold, {told.duplicates} said before, "
            f"{told.filtered_out} filtered out, {told.accepted} accepted"
        )
        return generated(self._request, state, told.accepted), line

    async def _trained(self, step: Train, state: LoopState) -> Done:
        dataset = await persistently(partial(self._datasets.get, step.dataset))
        request = training_request(self._request, step, dataset)
        await persistently(partial(self._training.supervised_fine_tune, request))
        metrics = (await self._follower.ended(step.job)).metrics
        line = f"round {step.round}: trained"
        if metrics is not None:
            line += f", {metrics.iteration} iterations"
            # The last figures are those of a validation, if there was one after the last iteration.
            for name, loss in (
                ("loss", metrics.loss),
                ("validation loss", metrics.validation_loss),
            ):
                line += "" if loss is None else f", {name} {loss:.4f}"
        return trained(state), line

    async def _registered(self, step: Register, state: LoopState) -> Done:
        began = anyio.current_time()
        version = await persistently(partial(self._serving.serve_job, step.job))
        line = f"round {step.round}: {self._request.name} serves version {version}"
        return registered(state, version, anyio.current_time() - began), line

    async def _settled(self, step: Settle, state: LoopState) -> Done:
        kept, note = verdict(self._request, state)
        after = settled(self._request, state)
        if kept:
            return after, f"round {step.round}: kept"
        await self.withdraw(state)
        return after, f"round {step.round}: rolled back: {note}"

    async def withdraw(self, state: LoopState) -> None:
        """Serve what was served before the last round."""
        best, job = best_of(self._request, state), self._request.job_uuid
        last = training_job(job, state.rounds[-1].number)
        if best is not None and best.round:
            before = training_job(job, best.round)
            await persistently(partial(self._serving.withdraw_job, last, before))
        else:
            served = state.before.served if state.before else None
            await persistently(partial(self._serving.withdraw_job, last, served))


def _told(evaluation: Evaluation) -> str:
    return (
        f"mean score {evaluation.mean:.4f} (95 % {evaluation.low:.4f} to {evaluation.high:.4f}), "
        f"{evaluation.answers} answers"
    )
