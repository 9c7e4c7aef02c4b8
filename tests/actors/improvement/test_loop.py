"""Loops from their request to their report. Doubles play the stages; they are real jobs on the bus."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from support.buses import buses
from support.improvement import (
    BASE,
    NAME,
    Gate,
    Script,
    as_text,
    improve_request,
    running_improvement,
)
from support.synthetic import DoubleRewards

from ayllu.actors.improvement import evaluation, following, serving, steps
from ayllu.actors.improvement.following import Follower
from ayllu.actors.improvement.loop import Loop
from ayllu.actors.improvement.records import open_loop_records
from ayllu.actors.jobs.holding import Fenced, Hold
from ayllu.actors.jobs.jobs import Change
from ayllu.actors.jobs.records import JobRecord, event_subject
from ayllu.bus import local_bus
from ayllu.bus.service import serve
from ayllu.schemas import (
    Conflict,
    InvalidRequest,
    JobFailure,
    Message,
    Model,
    ModelVersion,
    NotFound,
    PostTrainingJobStatus,
    Role,
    encode,
)
from ayllu.schemas.tasks import background_tasks

pytestmark = pytest.mark.asyncio
Status = PostTrainingJobStatus


@pytest.mark.parametrize("kind", ["local", "nats"])
@pytest.mark.requirement("improvement-loop", "improvement-report", "improvement-events")
async def test_a_loop_runs_its_stages_as_jobs_and_reports_them(kind: str, tmp_path: Path) -> None:
    async with buses(kind, tmp_path) as bus, running_improvement(bus) as improving:
        await improving.loops.start(improve_request())
        report = await improving.ended()
        assert (report.status, report.failure) == (Status.completed, None)
        assert report.baseline is not None
        assert (report.baseline.mean, report.baseline.interval) == (0.2, "wilson")
        assert report.helped is None
        assert [one.kept for one in report.rounds] == [True, True]
        assert [one.gain for one in report.rounds] == pytest.approx([0.2, 0.1])
        assert [one.generator for one in report.rounds] == [BASE, NAME]
        assert [one.version for one in report.rounds] == [1, 2]
        first = report.rounds[0]
        assert first.data_job == "loop/round-1/data"
        assert first.statistics is not None
        assert first.statistics.accepted == 8
        assert [point.loss for point in first.losses] == [1.0, 0.5, 1 / 3]
        assert first.losses[-1].validation_loss == 0.25
        assert first.evaluation is not None
        assert first.evaluation.scores == [1.0] * 4 + [0.0] * 6
        assert list(first.seconds) == ["generating", "training", "registering", "evaluating"]
        assert report.best == NAME
        assert report.best_evaluation is not None
        assert report.best_evaluation.mean == 0.5
        # Every stage is a job of its own, and was begun once.
        jobs = [job.job_uuid async for job in improving.told.list()]
        assert sorted(jobs) == [
            "loop",
            "loop/baseline",
            *(
                f"loop/round-{n}/{stage}"
                for n in (1, 2)
                for stage in ("data", "evaluation", "training")
            ),
        ]
        assert {(await improving.told.status(job)).attempt for job in jobs} == {1}
        events = await improving.events()
        phases = [event.phase for event in events if event.phase is not None]
        assert phases[1:6] == [
            "looking up what is served",
            "evaluating the base",
            "round 1: generating",
            "round 1: training",
            "round 1: registering",
        ]
        begun = [event.trial for event in events if event.trial is not None]
        assert begun[:3] == ["loop/baseline", "loop/round-1/data", "loop/round-1/training"]
        progress = [event.progress for event in events if event.progress is not None]
        assert [one.done for one in progress] == sorted(one.done for one in progress)
        assert (progress[-1].done, progress[-1].total) == (9, 9)
        assert progress[-1].figures == {"baseline": 0.2, "best": 0.5, "last": 0.5}
        lines = [line for event in events for line in event.lines]
        assert any("round 1: better: mean score 0.4000" in line for line in lines)


@pytest.mark.requirement("improvement-loop")
async def test_stages_are_asked_for_what_the_request_says() -> None:
    help_, context = [Message(Role.system, "Think.")], [Message(Role.system, "Add.")]
    async with local_bus() as bus, running_improvement(bus) as improving:
        await improving.loops.start(improve_request(help=help_, context=context, seed=3))
        report = await improving.ended()
        asked = improving.stages.asked
        assert report.helped is not None
        assert report.helped.mean == 0.6
        data = [asked[f"loop/round-{n}/data"].request for n in (1, 2)]
        # Help is for the base alone; what learned from it does without.
        assert [(one.model, one.help) for one in data] == [(BASE, help_), (NAME, [])]
        assert data[0].seed != data[1].seed
        assert data[0].references == ["2", "3"]
        assert data[0].reward_scoring is not None
        assert data[0].reward_scoring.threshold == 0.5
        evaluations = [
            "loop/baseline",
            "loop/helped",
            *(f"loop/round-{n}/evaluation" for n in (1, 2)),
        ]
        assert [asked[job].request.help for job in evaluations] == [[], help_, [], []]
        for one in (asked[job].request for job in evaluations):
            assert (one.temperature, one.num_candidates, one.max_similarity) == (None, 1, None)
            assert one.reward_scoring is not None
            assert one.reward_scoring.threshold is None
            assert one.context == context
        assert len({asked[job].request.seed for job in evaluations}) == 1
        assert None not in {one.request.seed for one in asked.values()}
        # Without a seed no stage has one.
        await improving.loops.start(improve_request("free", seed=None))
        await improving.ended("free")
        assert {one.request.seed for job, one in asked.items() if job.startswith("free")} == {None}


@pytest.mark.requirement("improvement-rollback")
async def test_what_is_no_better_is_rolled_back() -> None:
    async with local_bus() as bus:
        async with running_improvement(bus, Script(rounds=(0.4, 0.4, 0.6))) as improving:
            await improving.loops.start(improve_request(rounds=3))
            report = await improving.ended()
            assert [one.kept for one in report.rounds] == [True, False, True]
            assert "is not above the 0.4000 of better" in report.rounds[1].note
            assert improving.stages.served == "loop/round-3/training"
            assert [one.generator for one in report.rounds] == [BASE, NAME, NAME]


@pytest.mark.requirement("improvement-rollback")
async def test_a_gain_must_be_as_large_as_is_asked_for() -> None:
    async with local_bus() as bus, running_improvement(bus, Script(rounds=(0.4, 0.7))) as improving:
        await improving.loops.start(improve_request(min_gain=0.3))
        report = await improving.ended()
        assert [one.kept for one in report.rounds] == [False, True]
        assert "by more than 0.3" in report.rounds[0].note
        # What came after the round that was not kept came from the base again.
        assert [one.generator for one in report.rounds] == [BASE, BASE]


@pytest.mark.requirement("improvement-rollback")
async def test_without_any_better_one_nothing_is_served_that_was_not_before() -> None:
    script = Script(base=0.5, rounds=(0.1,))
    async with local_bus() as bus:
        async with running_improvement(bus, script) as improving:
            await improving.loops.start(improve_request())
            report = await improving.ended()
            assert (report.best, improving.stages.versions) == (BASE, [])
        async with running_improvement(bus, script, keep=2) as improving:
            stages = improving.stages
            old = ModelVersion(7, "file:///mine", BASE, "adapter", job_uuid="mine")
            stages.versions, stages.current = [old], 7
            await improving.loops.start(improve_request("again", rounds=3))
            await improving.ended("again")
            served = next(one for one in stages.versions if one.version == stages.current)
            # The registry has forgotten it meanwhile: it was registered anew.
            assert served.url == "file:///mine"


@pytest.mark.requirement("improvement-rollback")
async def test_the_best_one_is_served_again_even_if_the_registry_forgot_it() -> None:
    script = Script(rounds=(0.4, 0.3))
    async with local_bus() as bus, running_improvement(bus, script, keep=1) as improving:
        await improving.loops.start(improve_request())
        await improving.ended()
        assert improving.stages.served == "loop/round-1/training"


@pytest.mark.requirement("improvement-nothing-accepted")
async def test_a_round_without_data_ends_and_the_next_one_begins() -> None:
    async with local_bus() as bus, running_improvement(bus, Script(accepted=(0, 5))) as improving:
        await improving.loops.start(improve_request())
        report = await improving.ended()
        assert report.status is Status.completed
        first, second = report.rounds
        assert (first.kept, first.training_job, first.version) == (False, None, None)
        assert "none of the answers was accepted" in first.note
        assert second.kept
        assert improving.stages.registered == ["loop/round-2/training"]


@pytest.mark.requirement("improvement-cancel")
async def test_a_loop_is_cancelled_just_before_its_stage_begins() -> None:
    async with local_bus() as bus, running_improvement(bus, runners=0) as improving:
        await improving.loops.start(improve_request())
        jobs = improving.stages.jobs
        await jobs.change("loop", lambda known: replace(known, stage="loop/baseline"))
        await improving.told.cancel("loop")  # The stage is not there yet.
        assert (await jobs.record("loop")).cancel
        async with running_improvement(bus, stages=improving.stages):
            report = await improving.ended()
            assert report.failure is not None
            assert report.failure.code == "cancelled"
            with pytest.raises(NotFound):
                await improving.told.status("loop/baseline")


STAGES = ["baseline", "round-1/data", "round-1/training", "round-1/evaluation"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.requirement("improvement-stage-fails")
async def test_a_stage_that_fails_fails_the_loop_and_is_named(stage: str) -> None:
    script = Script(failures={f"loop/{stage}": JobFailure("broken", "no luck", ["last line"])})
    async with local_bus() as bus, running_improvement(bus, script) as improving:
        await improving.loops.start(improve_request())
        report = await improving.ended()
        assert report.status is Status.failed
        assert report.failure is not None
        assert report.failure.code == "stage_failed"
        assert f"loop/{stage} failed: broken: no luck" in report.failure.message
        assert report.failure.log_tail == ["last line"]
        # What was not judged is not served.
        assert improving.stages.versions == []
        if stage == "round-1/evaluation":
            assert (report.rounds[0].kept, report.rounds[0].version) == (False, 1)
            assert "before this round was judged" in report.rounds[0].note


@pytest.mark.requirement("improvement-stage-fails")
async def test_an_evaluation_without_any_score_fails_the_loop() -> None:
    script = Script(silent=("loop/baseline",))
    async with local_bus() as bus, running_improvement(bus, script) as improving:
        await improving.loops.start(improve_request())
        failure = (await improving.ended()).failure
        assert failure is not None
        assert "loop/baseline: no answer to the held-out prompts has a score" in failure.message


@pytest.mark.requirement("improvement-stage-fails")
async def test_a_stage_that_cannot_be_followed_ends_with_its_loop() -> None:
    stage = "loop/baseline"
    script = Script(gates={stage: Gate()})
    async with local_bus() as bus, running_improvement(bus, script) as improving:
        await improving.loops.start(improve_request())
        with anyio.fail_after(30):
            await script.gates[stage].reached.wait()
            await bus.storage.streams.append(event_subject(stage), b"no event", msg_id="none")
        failure = (await improving.ended()).failure
        assert failure is not None
        assert failure.code == "bus_error"
        assert (await improving.stages.jobs.record(stage)).cancel


@pytest.mark.requirement("improvement-resume")
async def test_follower_and_watcher_may_find_out_at_once_that_the_loop_is_taken_over() -> None:
    class Taken(Hold):
        """A loop that another runner takes up as soon as its stage goes on."""

        seen = anyio.Event()

        async def change(self, change: Change) -> JobRecord:
            self.seen.set()  # The watcher is woken, and the follower fails before it.
            raise Fenced("taken over")

        async def shall_end(self) -> bool:
            await self.seen.wait()
            raise Fenced("taken over")

    script = Script(gates={"loop/baseline": Gate()})
    async with local_bus() as bus, running_improvement(bus, script) as improving:
        follower = Follower(Taken(improving.stages.jobs, "other", None, 1))
        await improving.loops.start(improve_request())
        with anyio.fail_after(30), pytest.raises(Fenced):
            await script.gates["loop/baseline"].reached.wait()
            script.gates["loop/baseline"].opened.set()
            await follower.ended("loop/baseline")


@pytest.mark.requirement("improvement-evaluation")
async def test_an_evaluation_does_not_hold_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def evaluate(*args: Any, **options: Any) -> Any:
        threads.add(threading.get_ident())
        return known(*args, **options)

    known = evaluation.evaluate
    monkeypatch.setattr(steps, "evaluate", evaluate)
    async with local_bus() as bus, running_improvement(bus) as improving:
        await improving.loops.start(improve_request())
        assert (await improving.ended()).status is Status.completed
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.requirement("improvement-cancel")
async def test_a_cancelled_loop_ends_its_stage_too(stage: str) -> None:
    job = f"loop/{stage}"
    script = Script(gates={job: Gate()})
    async with local_bus() as bus, running_improvement(bus, script) as improving:
        await improving.loops.start(improve_request())
        with anyio.fail_after(30):
            await script.gates[job].reached.wait()
            await improving.told.cancel("loop")
        for ended in ("loop", job):
            await improving.ended("loop")
            status = await improving.told.status(ended)
            assert status.failure is not None
            assert status.failure.code == "cancelled"
        assert improving.stages.versions == []


@pytest.mark.requirement("improvement-cancel")
async def test_a_cancelled_loop_ends_without_a_stage_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "STOP_SECONDS", 0.1)
    gate = Gate(deaf=True)
    script = Script(gates={"loop/baseline": gate})
    async with local_bus() as bus, running_improvement(bus, script) as improving:
        await improving.loops.start(improve_request())
        with anyio.fail_after(30):
            await gate.reached.wait()
            await improving.told.cancel("loop")
        failure = (await improving.ended()).failure
        assert failure is not None
        assert failure.code == "cancelled"
        assert "loop/baseline has not ended yet" in failure.message


@pytest.mark.requirement("improvement-cancel", "improvement-resume")
async def test_a_loop_that_nobody_runs_is_cancelled_with_its_stage() -> None:
    job = "loop/round-1/evaluation"
    script = Script(gates={job: Gate()})
    async with local_bus() as bus:
        async with running_improvement(bus, script) as improving:
            await improving.loops.start(improve_request())
            with anyio.fail_after(10):
                await script.gates[job].reached.wait()
            stages = improving.stages
        async with running_improvement(bus, stages=stages, runners=0) as improving:
            assert (await improving.told.status("loop")).status is Status.scheduled
            await improving.told.cancel("loop")
            with anyio.fail_after(30):
                async for _ in improving.told.events(job):
                    pass
            failure = (await improving.told.status(job)).failure
            assert failure is not None
            assert failure.code == "cancelled"
            assert stages.served == "loop/round-1/training"
        async with running_improvement(bus, stages=stages) as improving:
            report = await improving.ended()
            assert report.failure is not None
            assert report.failure.code == "cancelled"
            assert stages.versions == []


@pytest.mark.requirement("improvement-cancel", "improvement-resume")
async def test_a_runner_that_ends_while_it_lets_go_of_a_loop_leaves_that_to_the_next_one() -> None:
    class Slow(Loop):
        """A loop whose runner ends before it has let go of it."""

        reached = anyio.Event()

        async def _let_go(self, record: JobRecord) -> None:
            self.reached.set()
            await anyio.sleep_forever()

    job = "loop/round-1/evaluation"
    script = Script(gates={job: Gate()})
    async with local_bus() as bus:
        async with running_improvement(bus, script) as improving:
            await improving.loops.start(improve_request())
            with anyio.fail_after(10):
                await script.gates[job].reached.wait()
            stages = improving.stages
        await stages.jobs.change("loop", lambda known: replace(known, cancel=True))
        slow = Slow(stages.jobs, await open_loop_records(bus), "loop")
        with anyio.fail_after(10):
            async with background_tasks() as tasks:
                tasks.start_soon(slow.run)
                await slow.reached.wait()
        async with running_improvement(bus, stages=stages) as improving:
            report = await improving.ended()
            assert report.failure is not None
            assert report.failure.code == "cancelled"
            assert report.rounds[0].kept is False
            assert stages.versions == []
            assert (await stages.jobs.record(job)).cancel


@pytest.mark.requirement("improvement-idempotent")
async def test_the_same_request_is_the_same_loop_and_another_one_is_refused() -> None:
    async with local_bus() as bus, running_improvement(bus) as improving:
        await improving.loops.start(improve_request())
        await improving.loops.start(improve_request())
        with pytest.raises(Conflict):
            await improving.loops.start(improve_request(rounds=3))
        report = await improving.ended()
        await improving.loops.start(improve_request())
        assert as_text(await improving.loops.report("loop")) == as_text(report)


@pytest.mark.requirement("improvement-report")
async def test_a_report_tells_what_there_is_while_the_loop_runs() -> None:
    job = "loop/round-1/training"
    script = Script(gates={job: Gate()})
    async with local_bus() as bus, running_improvement(bus, script) as improving:
        await improving.loops.start(improve_request())
        with anyio.fail_after(10):
            await script.gates[job].reached.wait()
        report = await improving.loops.report("loop")
        assert report.status is Status.running
        (first,) = report.rounds
        assert first.statistics is not None
        assert (first.training_job, first.evaluation, first.kept) == (job, None, None)
        script.gates[job].opened.set()
        assert (await improving.ended()).status is Status.completed


async def test_only_loops_have_a_report() -> None:
    async with local_bus() as bus, running_improvement(bus) as improving:
        with pytest.raises(NotFound):
            await improving.loops.report("loop")
        await improving.loops.start(improve_request())
        await improving.ended()
        with pytest.raises(InvalidRequest):
            await improving.loops.report("loop/baseline")


class Slow(DoubleRewards):
    """A double of an inference worker that serves some version of the model."""

    service_name = "inference"
    version = 1

    @property
    def service_metadata(self) -> dict[str, str]:  # type: ignore[override]
        model = Model(NAME, engine="double", context=0, version=self.version)
        return {"models": encode([model]).decode()}


@pytest.mark.requirement("improvement-loop")
async def test_an_evaluation_waits_until_all_workers_have_gone_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "SWITCH_SECONDS", 0.5)
    async with local_bus() as bus, running_improvement(bus, runners=0) as improving:
        served = serving.Serving(bus, NAME)
        async with background_tasks() as tasks:
            await tasks.start(serve, bus, Slow())
            assert await served.serve_job("one") == 1
            assert caplog.messages == []
            # A worker that is stuck is not waited for for ever.
            assert await served.serve_job("two") == 2
            assert "does not serve version 2" in caplog.messages[-1]
        assert improving.stages.registered == ["one", "two"]
