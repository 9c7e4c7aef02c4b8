"""What a trigger makes of an event: its subject, filter, template, limits and chain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.events import event_subject
from ayllu.actors.triggers.answering import Fire, Refuse, Skip, answer
from ayllu.actors.triggers.patterns import PREFIX, kind_of, whole_pattern
from ayllu.actors.triggers.reading import MAX_EVENT, plain, read_event
from ayllu.actors.triggers.records import TriggerRecord, due_subject
from ayllu.actors.triggers.schedules import next_due, schedule_problems
from ayllu.actors.triggers.templates import MAX_MESSAGE, template_problems
from ayllu.bus.subjects import encode_token, matches
from ayllu.schemas import (
    Cause,
    DocumentsChanged,
    Eq,
    ErrorInfo,
    Gt,
    InvalidRequest,
    JobEnded,
    Limits,
    Not,
    Schedule,
    ScheduleDue,
    TriggerCreateRequest,
    TurnEnded,
    TurnStatus,
    encode,
)

NOW = datetime(2026, 11, 28, 8, 30, tzinfo=UTC)
TURN = event_subject("turn", "writer", "completed")


def trigger(**config: Any) -> TriggerRecord:
    chosen: dict[str, Any] = {"name": "t", "agent_id": "reader", "subject": "turn.>", **config}
    return TriggerRecord(TriggerCreateRequest(**chosen), f"{PREFIX}turn.>", 1.0, 0)


def turn(**fields: Any) -> TurnEnded:
    chosen: dict[str, Any] = {"status": TurnStatus.completed, "text": "done", **fields}
    return TurnEnded("writer", "turn-1", ended_at=NOW, **chosen)


def told(record: TriggerRecord, event: object, subject: str = TURN) -> str:
    made = answer(record, subject, 7, encode(event))
    assert isinstance(made, Fire), made
    [message] = made.request.messages
    assert isinstance(message.content, str)
    return message.content


def refused(record: TriggerRecord, event: object, subject: str = TURN) -> str:
    payload = event if isinstance(event, bytes) else encode(event)
    made = answer(record, subject, 7, payload)
    assert isinstance(made, Refuse), made
    return made.reason


@pytest.mark.requirement("trigger-subject")
@pytest.mark.parametrize(
    ("written", "whole"),
    [
        ("turn.support.completed", "turn.support.completed"),
        ("ayllu.v1.event.turn.support.completed", "turn.support.completed"),
        ("turn.my agent_1.completed", "turn.my=20agent=5F1.completed"),
        ("turn.my=20agent.completed", "turn.my=20agent.completed"),
        ("turn.*.failed", "turn.*.failed"),
        ("turn.>", "turn.>"),
        ("turn.support.>", "turn.support.>"),
        ("turn.support.*", "turn.support.*"),
        ("job.synthetic_data.*", "job.synthetic=5Fdata.*"),
        ("document.handbook.inserted", "document.handbook.inserted"),
        ("shop.order_made", "shop.order_made"),
        ("shop.*.Lima", "shop.*.Lima"),
        (">", ">"),
    ],
)
def test_subjects_are_written_short_and_made_whole(written: str, whole: str) -> None:
    assert whole_pattern(written) == PREFIX + whole
    assert whole_pattern(PREFIX + whole) == PREFIX + whole


@pytest.mark.requirement("trigger-subject")
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("turn.support.done", "completed, cancelled, failed"),
        ("turn.support.running", "completed, cancelled, failed"),
        ("turn.support", "turn.NAME.WHAT"),
        ("turn.a.b.completed", "turn.NAME.WHAT"),
        ("job.cooking.failed", "sft"),
        ("shop..order", "no token"),
        ("shop.>.order", "no token"),
        ("shop.order*", "no token"),
        ("shop.an order", "no token"),
        ("shop.order\n", "no token"),
        (".", "no token"),
        ("ayllu.v1.agent.support.inbox", "under ayllu.v1.event."),
        ("turn.\ud800.completed", "Unicode"),
    ],
)
def test_subjects_that_no_event_has_are_refused(written: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        whole_pattern(written)


@pytest.mark.requirement("trigger-subject")
@given(
    st.text(
        st.characters(exclude_characters=".*>", exclude_categories=["Cs"]), min_size=1, max_size=40
    )
)
def test_a_name_without_dots_may_be_written_as_it_is(name: str) -> None:
    wanted = whole_pattern(f"turn.{name}.completed")
    encoded = event_subject("turn", name, "completed")
    # What looks like an encoded name is taken for one.
    assert matches(wanted, encoded) or "=" in name
    assert whole_pattern(encoded) == encoded


@pytest.mark.requirement("trigger-template")
def test_an_event_is_told_in_words() -> None:
    record = trigger()
    assert told(record, turn()) == "The agent writer has completed its turn turn-1:\n\ndone"
    failed = turn(status=TurnStatus.failed, error=ErrorInfo("engine_error", "it broke"))
    assert "has failed: engine_error: it broke" in told(record, failed)
    job = JobEnded("job-1", "sft", "cancelled", NOW)
    assert told(record, job, event_subject("job", "sft", "cancelled")) == (
        "The job job-1 (sft) has been cancelled."
    )
    changed = DocumentsChanged("handbook", "inserted", ["a", "b"])
    assert told(record, changed, event_subject("document", "handbook", "inserted")) == (
        "Documents of the memory bank handbook were inserted: a, b"
    )
    assert told(record, ScheduleDue("t", NOW), due_subject("t")).startswith(
        "It is 2026-11-28 08:30:00"
    )
    own = f"{PREFIX}shop.order"
    assert told(record, {"item": "tea"}, own) == f'On {own}:\n\n{{"item":"tea"}}'


@pytest.mark.requirement("trigger-template")
def test_a_template_has_the_fields_of_the_event() -> None:
    record = trigger(
        template="$agent_uuid said ${text} for $$1, ${spent.tokens} tokens, [${error.message}] on $subject"
    )
    assert told(record, turn()) == f"writer said done for $1, 0 tokens, [] on {TURN}"
    own = f"{PREFIX}shop.order"
    record = trigger(template="${item.name} x${count}: ${tags}, ${paid}, ${note}, ${item}; $event")
    event = {"item": {"name": "tea"}, "count": 2.5, "tags": ["a", "b"], "paid": True, "note": None}
    assert told(record, event, own) == (
        'tea x2.5: a, b, true, , {"name":"tea"}; ' + encode(event).decode()
    )


@pytest.mark.requirement("trigger-template")
def test_placeholders_that_cannot_be_are_known_beforehand() -> None:
    assert (
        template_problems(
            "${spent.tokens} $text $$ ${error.details.x} ${parent.turn_id}", TurnEnded
        )
        == []
    )
    assert template_problems("${whatever.is.there}", None) == []
    assert "'nothing'" in template_problems("$text $nothing", TurnEnded)[0]
    assert "'spent.toast'" in template_problems("${spent.toast}", TurnEnded)[0]
    assert "'text.x'" in template_problems("${text.x}", TurnEnded)[0]
    assert "'error.nothing'" in template_problems("${error.nothing}", TurnEnded)[0]
    assert "character 6" in template_problems("cost $5", None)[0]
    assert template_problems("${a b}", None)


@pytest.mark.requirement("trigger-template")
def test_what_cannot_be_told_is_refused() -> None:
    own = f"{PREFIX}shop.order"
    assert "'item.name'" in refused(trigger(template="${item.name}"), {"item": "tea"}, own)
    assert "'item'" in refused(trigger(template="$item"), {}, own)
    assert "empty" in refused(trigger(template="$item"), {"item": " "}, own)
    long = {"item": "x" * (MAX_MESSAGE // 2)}
    assert "characters" in refused(trigger(template="$item$item$item"), long, own)
    assert "characters" in refused(trigger(), {"item": "x" * MAX_MESSAGE}, own)
    assert "bytes" in refused(trigger(), {"item": "x" * MAX_EVENT}, own)


@pytest.mark.requirement("trigger-events")
@pytest.mark.parametrize(
    "payload", [b"", b"no json", b"[1]", b"null", b"\xff", b'{"a":"\xff"}', b"[" * 100_000]
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    assert "no JSON object" in refused(trigger(), payload, f"{PREFIX}shop.order")


@pytest.mark.requirement("trigger-events")
def test_what_is_not_what_its_subject_says_is_refused() -> None:
    assert "no TurnEnded" in refused(trigger(), {"text": "hello"})
    assert "no JobEnded" in refused(trigger(), turn(), event_subject("job", "sft", "failed"))


@pytest.mark.requirement("trigger-filter")
def test_a_filter_sees_all_fields_of_an_event() -> None:
    record = trigger(filter=Eq("text", "done"))
    assert isinstance(answer(record, TURN, 7, encode(turn())), Fire)
    assert isinstance(answer(record, TURN, 7, encode(turn(text="no"))), Skip)
    # `tokens` is 0, and not sent for that.
    record = trigger(filter=Not(Gt("spent.tokens", 0)))
    assert isinstance(answer(record, TURN, 7, encode(turn())), Fire)
    assert isinstance(
        answer(trigger(filter=Eq("status", "completed")), TURN, 7, encode(turn())), Fire
    )


_least = st.one_of(st.none(), st.integers(1, 9))
_limits = st.builds(Limits, seconds=_least, tokens=_least, steps=_least, cost=_least, depth=_least)


@pytest.mark.requirement("trigger-budget")
@given(_limits, _limits)
def test_a_turn_has_the_stricter_of_both_limits(own: Limits, left: Limits) -> None:
    made = answer(trigger(limits=own), TURN, 7, encode(turn(left=left)))
    assert isinstance(made, Fire)
    for name in Limits.__struct_fields__:
        mine, theirs = getattr(own, name), getattr(left, name)
        wanted = min([one for one in (mine, theirs) if one is not None], default=None)
        assert getattr(made.request.limits, name) == wanted


@pytest.mark.requirement("trigger-budget")
@pytest.mark.parametrize(
    "left",
    [{"tokens": 0}, {"steps": 0}, {"cost": 0.0}, {"tokens": -5, "steps": 3}, {"seconds": 0.001}],
)
def test_a_budget_that_is_used_up_starts_nothing(left: dict[str, float]) -> None:
    event = {**plain(turn()), "left": left}
    assert "budget" in refused(trigger(), event)
    assert next(iter(left)) in refused(trigger(), event)
    assert isinstance(answer(trigger(filter=Gt("left.steps", 5)), TURN, 7, encode(event)), Skip)


@pytest.mark.requirement("trigger-budget")
def test_a_depth_of_nothing_is_no_budget() -> None:
    assert isinstance(answer(trigger(), TURN, 7, encode(turn(left=Limits(depth=0)))), Fire)


@pytest.mark.requirement("trigger-chain")
def test_a_chain_ends() -> None:
    record = trigger(max_chain=3)
    made = answer(record, TURN, 7, encode(turn()))
    assert isinstance(made, Fire)
    assert made.request.cause == Cause("t", TURN, 7, 1)
    made = answer(record, TURN, 7, encode(turn(cause=Cause("other", TURN, 6, 2))))
    assert isinstance(made, Fire)
    assert made.request.cause == Cause("t", TURN, 7, 3)
    assert "max_chain" in refused(record, turn(cause=Cause("other", TURN, 6, 3)))


@pytest.mark.requirement("trigger-once")
def test_an_event_is_the_same_turn_each_time_and_no_other_ones() -> None:
    def turn_id(record: TriggerRecord, sequence: int, event: object | None = None) -> str | None:
        subject = TURN if isinstance(event, TurnEnded) else f"{PREFIX}shop.order"
        made = answer(record, subject, sequence, encode(event or {"item": "tea"}))
        assert isinstance(made, Fire)
        return made.request.turn_id

    record = trigger()
    again = TriggerRecord(record.config, record.subject, 2.0, 0)
    ids = {turn_id(record, 7), turn_id(record, 8), turn_id(trigger(name="u"), 7), turn_id(again, 7)}
    assert len(ids) == 4
    assert turn_id(record, 7) == turn_id(trigger(template="other"), 7)
    # The end of a turn that is told once more, after a crash, is not another event.
    assert turn_id(record, 7, turn()) == turn_id(record, 8, turn(text="more"))
    other = TurnEnded("writer", "turn-2", TurnStatus.completed, NOW)
    assert turn_id(record, 7, turn()) != turn_id(record, 7, other)
    ended = [TurnEnded(*one, TurnStatus.completed, NOW) for one in (("a/b", "c"), ("a", "b/c"))]
    assert len({turn_id(record, 7, one) for one in ended}) == 2


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_json_is_told_or_refused(value: object) -> None:
    made = answer(trigger(), f"{PREFIX}shop.order", 1, encode(value))
    assert isinstance(made, Refuse)
    made = answer(trigger(), f"{PREFIX}shop.order", 1, encode({"value": value}))
    assert isinstance(made, Fire)


@pytest.mark.requirement("trigger-schedule")
@given(
    st.floats(1, 1e6),
    st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1)),
    st.floats(0, 1e8),
)
def test_every_is_due_once_after_each_step(every: float, begun: datetime, later: float) -> None:
    created = begun.replace(tzinfo=UTC)
    after = created + timedelta(seconds=later)
    schedule = Schedule(every=every)
    due = next_due(schedule, created, after)
    assert due is not None
    step = timedelta(microseconds=round(every * 1e6))
    assert after < due <= after + step
    assert (due - created) % step == timedelta(0)
    assert next_due(schedule, created, due) == due + step
    # Whoever looks a little later comes to the same time.
    assert next_due(schedule, created, due - timedelta(microseconds=1)) == due


@pytest.mark.requirement("trigger-schedule")
def test_cron_is_due_in_utc() -> None:
    schedule = Schedule(cron="0 8 * * MON-FRI")
    assert next_due(schedule, NOW, NOW) == datetime(2026, 11, 30, 8, 0, tzinfo=UTC)
    due = datetime(2026, 11, 30, 8, 0, tzinfo=UTC)
    assert next_due(schedule, NOW, due) == datetime(2026, 12, 1, 8, 0, tzinfo=UTC)
    assert schedule_problems(schedule) == []


@pytest.mark.requirement("trigger-schedule")
@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Schedule(), "either"),
        (Schedule(every=5, cron="* * * * *"), "either"),
        (Schedule(cron="* * * *"), "five fields"),
        (Schedule(cron="* * * * * *"), "five fields"),
        (Schedule(cron="61 * * * *"), "minute"),
        (Schedule(cron="0 0 30 2 *"), "day"),
        (Schedule(cron="@daily"), "five fields"),
    ],
)
def test_schedules_that_are_none_are_refused(schedule: Schedule, reason: str) -> None:
    [problem] = schedule_problems(schedule)
    assert reason in problem


def test_kinds_are_known_by_the_first_token() -> None:
    assert kind_of(f"{PREFIX}turn.>") is TurnEnded
    assert kind_of(f"{PREFIX}*.x.completed") is None
    assert kind_of(f"{PREFIX}shop.order") is None
    assert read_event(f"{PREFIX}shop.order", 3, b'{"a":1}').known is None
    assert encode_token("synthetic_data") == "synthetic=5Fdata"
