"""Jobs: accepted, queued, run, followed, cancelled, taken up again. A double trains; both storages of the bus keep them."""

from __future__ import annotations

import itertools
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace
from support.buses import buses
from support.jobs import Training, dataset_of, local_path, running_training, sft_request, workshop

from ayllu.actors.jobs.events import JobEvents
from ayllu.actors.jobs.holding import Fenced, Hold
from ayllu.actors.jobs.jobs import open_jobs
from ayllu.actors.jobs.records import JOB_EVENTS, JobRecord, event_subject
from ayllu.bus import local_bus
from ayllu.schemas import (
    AylluError,
    Conflict,
    InvalidRequest,
    JobEventKind,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    PostTrainingJobStatus,
    PostTrainingRewardRequest,
    PostTrainingSFTRequest,
    decode,
    encode,
)

pytestmark = pytest.mark.asyncio
Status = PostTrainingJobStatus


@pytest.fixture(params=["local", "nats"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def submit(training: Training, *jobs: str, **changes: object) -> None:
    for job in jobs:
        await training.training.supervised_fine_tune(sft_request(job, **changes))


@pytest.mark.requirement("job-runs", "job-events", "job-logs", "job-checkpoints")
async def test_a_job_runs_to_its_end_and_tells_everything(kind: str, tmp_path: Path) -> None:
    async with buses(kind, tmp_path) as bus, running_training(bus, tmp_path) as training:
        await submit(training, "first/ä", iters=12)
        status = await training.ended("first/ä")
        assert (status.status, status.failure, status.attempt) == (Status.completed, None, 1)
        assert status.scheduled_at
        assert status.started_at
        assert status.completed_at
        assert status.scheduled_at <= status.started_at <= status.completed_at
        assert status.resources_allocated is not None
        assert status.resources_allocated["device"] == "cpu"
        # Pruned to the newest two; what stands on the disk is what is told.
        assert [checkpoint.iters for checkpoint in status.checkpoints] == [10, 12]
        assert status.dataset_fingerprint is not None
        assert status.validation_fingerprint is not None
        artifacts = await training.told.artifacts("first/ä")
        assert artifacts.checkpoints == status.checkpoints
        names = [file.name for file in artifacts.files]
        assert "checkpoint-12/adapter_model.safetensors" in names
        for file in artifacts.files:
            path = anyio.Path(local_path(file.path))
            assert (await path.stat()).st_size == file.bytes

        events = await training.events("first/ä")
        assert [event.index for event in events] == sorted({event.index for event in events})
        assert (
            next(event.status for event in events if event.status is not None) == Status.scheduled
        )
        assert events[-1].status == Status.completed
        assert list(await training.losses("first/ä")) == list(range(1, 13))
        # The log is the lines of the events; from the middle on, nothing is missing or twice.
        logs = [line async for log in training.told.logs("first/ä") for line in log.log_lines]
        assert logs == [line for event in events for line in event.lines]
        assert any(line.startswith("iteration 12/12, loss") for line in logs)
        middle = events[len(events) // 2].index
        rest = [event async for event in training.told.events("first/ä", middle)]
        assert [event.index for event in rest] == [e.index for e in events if e.index > middle]
        assert [event async for event in training.told.events("first/ä", events[-1].index)] == []
        assert await training.jobs.queue("job") == []


@pytest.mark.requirement("job-idempotent")
async def test_the_same_request_is_the_same_job_and_another_one_is_refused(
    kind: str, tmp_path: Path
) -> None:
    async with buses(kind, tmp_path) as bus, running_training(bus, tmp_path) as training:
        await submit(training, "a")
        await submit(training, "a")
        with pytest.raises(Conflict):
            await submit(training, "a", iters=11)
        status = await training.ended("a")
        assert status.attempt == 1
        await submit(training, "a")  # It has ended, and stays so.
        assert await training.jobs.queue("job") == []
        assert (await training.told.status("a")).completed_at == status.completed_at


@pytest.mark.requirement("job-idempotent")
async def test_a_request_of_another_kind_is_another_one_whatever_its_fields_say(
    tmp_path: Path,
) -> None:
    request = sft_request("a")
    reward = decode(encode(request), PostTrainingRewardRequest)
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        await training.training.supervised_fine_tune(request)
        with pytest.raises(Conflict):
            await training.training.reward_model(reward)
        record = await training.jobs.record("a")
        assert await training.jobs.request(record, PostTrainingSFTRequest) == request


@pytest.mark.requirement("job-queue")
async def test_jobs_run_one_after_the_other_in_the_order_in_which_they_came(
    kind: str, tmp_path: Path
) -> None:
    async with (
        buses(kind, tmp_path) as bus,
        running_training(bus, tmp_path, {"pace": 0.05}) as training,
    ):
        await submit(training, "a", "b", "c")
        await training.until_iteration("a", 1)
        listed = [job async for job in training.told.list()]
        assert [(job.job_uuid, job.position) for job in listed] == [("a", None), ("b", 1), ("c", 2)]
        assert (await training.told.status("c")).position == 2
        times = [await training.ended(job) for job in ("a", "b", "c")]
        for earlier, later in itertools.pairwise(times):
            assert earlier.completed_at is not None
            assert later.started_at is not None
            assert earlier.completed_at <= later.started_at
        assert [job.job_uuid async for job in training.told.list()] == ["c", "b", "a"]
        assert [job.job_uuid async for job in training.told.list(limit=1)] == ["c"]


@pytest.mark.requirement("job-queue")
async def test_two_trainers_share_the_queue(tmp_path: Path) -> None:
    async with (
        local_bus() as bus,
        running_training(bus, tmp_path, {"pace": 0.1}, trainers=2) as training,
    ):
        await submit(training, "a", "b")
        await training.until_iteration("a", 2)
        await training.until_iteration("b", 2)
        assert (await training.told.status("a")).status == Status.running
        assert (await training.ended("a")).attempt == (await training.ended("b")).attempt == 1


@pytest.mark.requirement("job-cancel")
async def test_a_job_is_cancelled_in_every_phase(kind: str, tmp_path: Path) -> None:
    plan = {"pace": 0.02, "prepare": 0.4}
    async with buses(kind, tmp_path) as bus, running_training(bus, tmp_path, plan) as training:
        await submit(training, "preparing", "waiting", "training", iters=400)
        await training.until("preparing", "preparing")
        await training.told.cancel("waiting")
        await training.told.cancel("preparing")
        for job in ("waiting", "preparing"):
            status = await training.ended(job)
            assert status.status == Status.failed
            assert status.failure is not None
            assert status.failure.code == "cancelled"
        await training.until_iteration("training", 7)
        with anyio.fail_after(5):
            await training.told.cancel("training")
            status = await training.ended("training")
        assert status.failure is not None
        assert status.failure.code == "cancelled"
        last = max(await training.losses("training"))
        # Within an iteration or two; the last whole checkpoint is kept.
        assert last < 390
        assert status.checkpoints[-1].iters == last // 5 * 5
        assert status.checkpoints[-1].path.endswith(f"checkpoint-{last // 5 * 5}")
        await training.told.cancel("training")  # Again is no error.
        with pytest.raises(NotFound):
            await training.told.cancel("unknown")
        assert await training.jobs.queue("job") == []


@pytest.mark.requirement("job-cancel")
async def test_a_job_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    plan = {"act": "deaf", "pace": 0.05}
    async with (
        local_bus() as bus,
        running_training(bus, tmp_path, plan, stop_seconds=0.2) as training,
    ):
        await submit(training, "a", iters=1000)
        await training.until_iteration("a", 1)
        await training.told.cancel("a")
        status = await training.ended("a", seconds=10)
        assert status.failure is not None
        assert status.failure.code == "cancelled"


@pytest.mark.parametrize("act", ["crash", "kill"])
@pytest.mark.requirement("job-crash", "job-resume")
async def test_a_crashed_job_goes_on_from_its_last_checkpoint(act: str, tmp_path: Path) -> None:
    plan = {"act": act, "at": 8, "until": 1}
    async with local_bus() as bus, running_training(bus, tmp_path, plan) as training:
        await submit(training, "a")
        status = await training.ended("a")
        assert (status.status, status.attempt, status.failure) == (Status.completed, 2, None)
        started = [
            line for event in await training.events("a") for line in event.lines if "from" in line
        ]
        assert started == ["10 iterations, from iteration 5 on"]
        assert list(await training.losses("a")) == list(range(1, 11))


@pytest.mark.requirement("job-crash")
async def test_a_job_that_crashes_three_times_fails_and_the_queue_goes_on(
    kind: str, tmp_path: Path
) -> None:
    plan = {"act": "crash", "at": 3, "until": 3}
    async with buses(kind, tmp_path) as bus, running_training(bus, tmp_path, plan) as training:
        await submit(training, "a", "b")
        status = await training.ended("a")
        assert (status.status, status.attempt) == (Status.failed, 3)
        assert status.failure is not None
        assert status.failure.code == "crashed"
        assert "3 times" in status.failure.message
        assert "status 3" in status.failure.message
        assert "something broke" in status.failure.log_tail
        assert (await training.ended("b")).failure is not None
        # A checkpoint between crashes is progress: they are not in a row then.
        assert (await training.told.status("a")).checkpoints == []


@pytest.mark.requirement("job-crash")
async def test_crashes_with_progress_between_them_are_not_in_a_row(tmp_path: Path) -> None:
    # Each attempt dies at iteration 6 of its own counting: the first checkpoint stands before the second crash.
    plan = {"act": "crash", "at": 6, "until": 2}
    async with local_bus() as bus, running_training(bus, tmp_path, plan, attempts=2) as training:
        await submit(training, "a")
        status = await training.ended("a")
        assert (status.status, status.attempt) == (Status.completed, 3)


@pytest.mark.requirement("job-fails")
async def test_what_the_child_says_it_cannot_do_is_not_tried_again(tmp_path: Path) -> None:
    plan = {"act": "fail", "at": 2}
    async with local_bus() as bus, running_training(bus, tmp_path, plan) as training:
        await submit(training, "a")
        status = await training.ended("a")
        assert (status.attempt, status.status) == (1, Status.failed)
        assert status.failure is not None
        assert status.failure.code == "invalid_request"
        assert status.failure.log_tail[-1].startswith("iteration 1/10")


@pytest.mark.requirement("job-logs")
async def test_what_libraries_print_is_in_the_log(tmp_path: Path) -> None:
    plan = {"act": "chatter", "at": 2}
    async with local_bus() as bus, running_training(bus, tmp_path, plan) as training:
        await submit(training, "a")
        await training.ended("a")
        lines = [line for event in await training.events("a") for line in event.lines]
        assert "100%" in lines
        assert "warning: \x1b[31mred\x1b[0m" in lines


@pytest.mark.requirement("job-given-back")
async def test_a_trainer_that_is_stopped_gives_its_job_back(kind: str, tmp_path: Path) -> None:
    async with buses(kind, tmp_path) as bus:
        async with running_training(bus, tmp_path, {"pace": 0.05}) as training:
            await submit(training, "a", iters=30)
            await training.until_iteration("a", 6)
        status = await training.told.status("a")
        assert (status.status, status.position) == (Status.scheduled, 0)
        async with running_training(bus, tmp_path) as training:
            status = await training.ended("a")
            assert (status.status, status.attempt) == (Status.completed, 2)
            assert list(await training.losses("a")) == list(range(1, 31))
            assert (await training.jobs.record("a")).crashes == 0


@pytest.mark.requirement("job-fenced")
async def test_a_trainer_that_lost_a_job_can_write_nothing_of_it(kind: str, tmp_path: Path) -> None:
    async with buses(kind, tmp_path) as bus:
        async with running_training(bus, tmp_path, trainers=0) as training:
            await submit(training, "a")
            old, new = (Hold(training.jobs, "a", "cpu", 3) for _ in range(2))
            assert (await old.claim()).attempt == 1
            assert (await old.claim()).attempt == 1  # A claim whose answer was lost is found again.
            assert (await new.claim()).attempt == 2
            for change in (old.conclude(None), old.change(lambda known: known)):
                with pytest.raises(Fenced):
                    await change
            await old.give_back()
            record = await training.jobs.record("a")
            assert (record.status, record.attempt) == (Status.running, 2)
            assert (await new.conclude(None)).status == Status.completed
            # Its end is told once, however often.
            await training.jobs.settle(record := await training.jobs.record("a"))
            await training.jobs.settle(record)
            ends = [e for e in await training.events("a") if e.status == Status.completed]
            assert len(ends) == 1


@pytest.mark.requirement("job-fenced")
async def test_a_claim_that_is_cut_short_is_no_crash(tmp_path: Path) -> None:
    class Stuck(JobEvents):
        """Events, the first of which is never told."""

        reached = anyio.Event()

        async def tell_status(self, record: JobRecord, line: str) -> None:
            if not self.reached.is_set():
                self.reached.set()
                await anyio.sleep_forever()

    async def work(record: JobRecord) -> None:
        raise AssertionError("it never begins")

    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        await submit(training, "a")
        training.jobs.events = events = Stuck(bus)
        hold = Hold(training.jobs, "a", "cpu", 3)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold.attempt, work)
                await events.reached.wait()
                assert (await training.jobs.record("a")).crashes == 1
                tasks.cancel_scope.cancel()
        record = await training.jobs.record("a")
        assert (record.status, record.crashes) == (Status.scheduled, 0)


@pytest.mark.requirement("job-fenced")
async def test_a_job_whose_trainer_died_before_telling_its_end_is_settled(tmp_path: Path) -> None:
    async with local_bus() as bus:
        async with running_training(bus, tmp_path, trainers=0) as training:
            await submit(training, "a")
            hold = Hold(training.jobs, "a", "cpu", 3)
            await hold.claim()
            await hold.conclude(None)
            assert await training.jobs.queue("job") == ["a"]
        async with running_training(bus, tmp_path) as training:
            assert (await training.ended("a")).status == Status.completed
            with anyio.fail_after(5):
                while await training.jobs.queue("job"):
                    await anyio.lowlevel.checkpoint()


@pytest.mark.requirement("job-changed-data")
async def test_content_that_is_not_what_the_request_says_fails_the_job(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path) as training:
        wrong = replace(dataset_of(), fingerprint="sha256:" + "0" * 64)
        await submit(training, "a", dataset=wrong)
        status = await training.ended("a")
        assert status.failure is not None
        assert status.failure.code == "conflict"
        assert "changed" in status.failure.message


BAD: list[tuple[dict[str, object], type[AylluError], str]] = [
    ({"model": "gpt-99"}, ModelNotFound, "gpt-99"),
    ({"dataset": dataset_of([{"question": "a"}])}, InvalidRequest, "dataset"),
    ({"validation_dataset": dataset_of([{"question": "a"}])}, InvalidRequest, "validation_dataset"),
]


@pytest.mark.parametrize(("changes", "error", "said"), BAD)
@pytest.mark.requirement("job-refused")
async def test_a_request_that_cannot_end_well_is_refused(
    changes: dict[str, object], error: type[AylluError], said: str, tmp_path: Path
) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        with pytest.raises(error) as raised:
            await submit(training, "a", **changes)
        assert said in raised.value.message
        assert str(tmp_path) not in raised.value.message
        with pytest.raises(NotFound):
            await training.told.status("a")


@pytest.mark.requirement("job-refused")
async def test_files_outside_of_the_roots_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"text": "x"}\n')
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        outside = replace(dataset_of([{"text": "x"}]), content_url=secret.as_uri())
        with pytest.raises((PermissionDenied, InvalidRequest)):
            await submit(training, "a", dataset=outside)


async def test_events_that_are_too_old_to_be_there_end_the_reading(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path) as training:
        await submit(training, "a")
        await training.ended("a")
        await bus.storage.streams.purge(JOB_EVENTS.name, event_subject("a"))
        with anyio.fail_after(5):
            assert [event async for event in training.told.events("a")] == []


async def test_wrong_limits_are_refused(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        with pytest.raises(InvalidRequest):
            _ = [job async for job in training.told.list(limit=0)]
        await submit(training, "a")
        with pytest.raises(InvalidRequest):
            _ = [event async for event in training.told.events("a", after=-1)]
        for unknown in (training.told.status("b"), training.told.artifacts("b")):
            with pytest.raises(NotFound):
                await unknown
        with pytest.raises(NotFound):
            _ = [log async for log in training.told.logs("b")]


async def test_long_ids_have_folders_of_their_own(tmp_path: Path) -> None:
    place = workshop(tmp_path, {})
    one, two = ("ü" * 80 + end for end in "ab")
    assert place.job_folder(one) != place.job_folder(two)
    assert len(place.job_folder(one).name) < 255
    async with local_bus() as bus:
        jobs = await open_jobs(bus)
        assert await jobs.queue("job") == []
        assert JobEventKind.log.value == "log"
