"""What several want at once is done once, and nobody is harmed by those with whom they share."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.actors.memory.shared import SharedQuestion, SharedWork
from ayllu.schemas import BusError

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("memory-shared-work")]

SECONDS = 5.0


async def settle() -> None:
    """Let all tasks run until each waits for something."""
    for _ in range(20):
        await checkpoint()


class Oracle:
    """Answers with the number of the question, when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.let: dict[int, anyio.Event] = {}
        self.error: Callable[[int], Exception | None] = lambda _: None

    def gate(self, number: int) -> anyio.Event:
        return self.let.setdefault(number, anyio.Event())

    async def ask(self) -> int:
        self.asked += 1
        number = self.asked
        await self.gate(number).wait()
        error = self.error(number)
        if error is not None:
            raise error
        return number


async def test_a_question_is_shared_by_all_who_came_before_it() -> None:
    oracle = Oracle()
    question = SharedQuestion(oracle.ask)
    answers: list[tuple[str, int]] = []

    async def ask(name: str) -> None:
        answers.append((name, await question.answer()))

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(ask, name)
            await settle()
            assert oracle.asked == 1
            # These come too late for it, and share the next one.
            for name in "de":
                tasks.start_soon(ask, name)
            await settle()
            assert oracle.asked == 1
            oracle.gate(1).set()
            await settle()
            assert oracle.asked == 2
            assert sorted(answers) == [("a", 1), ("b", 1), ("c", 1)]
            oracle.gate(2).set()
    assert sorted(answers[3:]) == [("d", 2), ("e", 2)]
    assert oracle.asked == 2


async def test_questions_one_after_the_other_are_asked_each() -> None:
    oracle = Oracle()
    question = SharedQuestion(oracle.ask)
    with anyio.fail_after(SECONDS):
        for number in range(1, 4):
            oracle.gate(number).set()
            assert await question.answer() == number


async def test_an_error_is_shared_and_the_next_question_is_asked() -> None:
    oracle = Oracle()
    oracle.error = lambda number: BusError("no answer") if number == 1 else None
    question = SharedQuestion(oracle.ask)
    failed: list[str] = []
    answered: list[int] = []

    async def ask(name: str) -> None:
        try:
            answered.append(await question.answer())
        except BusError:
            failed.append(name)

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(ask, name)
            await settle()
            tasks.start_soon(ask, "late")
            await settle()
            oracle.gate(1).set()
            await settle()
            # Not one after the other: each would wait as long as the bus does not answer.
            assert sorted(failed) == ["a", "b", "c"]
            oracle.gate(2).set()
    assert answered == [2]
    assert oracle.asked == 2


@pytest.mark.parametrize("sent", [False, True], ids=["before it was sent", "while it was asked"])
async def test_whoever_asks_is_cancelled_and_another_asks(sent: bool) -> None:
    oracle = Oracle()
    question = SharedQuestion(oracle.ask)
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await question.answer())

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as leading:
            leading.start_soon(ask)
            await checkpoint()
            for _ in range(3):
                tasks.start_soon(ask)
            if sent:
                await settle()
                assert oracle.asked == 1
            leading.cancel_scope.cancel()
            await settle_shielded()
            oracle.gate(oracle.asked).set()
    assert answers == [oracle.asked] * 3


async def settle_shielded() -> None:
    with anyio.CancelScope(shield=True):
        await settle()


class Workshop:
    """Does work on numbers when it is let, and remembers what was done together."""

    def __init__(self, most: int = 100) -> None:
        self.shared = SharedWork[int, str](most)
        self.goes: list[list[int]] = []
        self.poison: set[int] = set()
        self.let: dict[int, anyio.Event] = {}
        self.answers: dict[str, list[str]] = {}
        self.failed: dict[str, str] = {}

    def gate(self, number: int) -> anyio.Event:
        return self.let.setdefault(number, anyio.Event())

    async def work(self, questions: list[int]) -> list[str]:
        self.goes.append(questions)
        await self.gate(len(self.goes)).wait()
        if bad := self.poison.intersection(questions):
            raise ValueError(f"cannot answer {min(bad)}")
        return [f"answer {question}" for question in questions]

    async def ask(self, name: str, *questions: int) -> None:
        try:
            self.answers[name] = await self.shared.answers(questions, self.work)
        except ValueError as error:
            self.failed[name] = str(error)

    async def ask_all(self, tasks: TaskGroup, asked: dict[str, list[int]]) -> None:
        """Let everybody ask, in their order."""
        for name, questions in asked.items():
            tasks.start_soon(self.ask, name, *questions)
            await settle()

    def open(self) -> None:
        """Let all work be done at once from now on."""
        for number in range(1, 100):
            self.gate(number).set()


def answers_to(*questions: int) -> list[str]:
    return [f"answer {question}" for question in questions]


async def test_those_who_wait_are_answered_together_and_in_order() -> None:
    workshop = Workshop()
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            await workshop.ask_all(tasks, {"a": [3, 1], "b": [2], "c": [9, 8, 7], "d": [2]})
            assert workshop.goes == [[3, 1]]
            workshop.gate(1).set()
            await settle()
            assert workshop.answers == {"a": answers_to(3, 1)}
            assert workshop.goes[1:] == [[2, 9, 8, 7, 2]]
            workshop.gate(2).set()
    assert workshop.answers == {
        "a": answers_to(3, 1),
        "b": answers_to(2),
        "c": answers_to(9, 8, 7),
        "d": answers_to(2),
    }
    assert len(workshop.goes) == 2


async def test_no_more_go_together_than_may_unless_one_asks_them_alone() -> None:
    workshop = Workshop(most=3)
    asked = {
        "a": [1],
        "b": [2, 3],
        "c": [4, 5],
        "d": [6, 7, 8, 9, 10],
        "e": [11],
        "f": [12],
    }
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            await workshop.ask_all(tasks, asked)
            workshop.open()
    assert workshop.answers == {name: answers_to(*numbers) for name, numbers in asked.items()}
    # Nobody overtakes, although `e` would have fitted beside `b`.
    assert workshop.goes == [[1], [2, 3], [4, 5], [6, 7, 8, 9, 10], [11, 12]]


async def test_nobody_asks_nothing() -> None:
    workshop = Workshop()
    workshop.open()
    with anyio.fail_after(SECONDS):
        await workshop.ask("a")
    assert workshop.answers == {"a": []}


@pytest.mark.parametrize("when", ["waiting", "leading"])
async def test_one_who_is_cancelled_does_not_harm_the_others(when: str) -> None:
    workshop = Workshop()
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as leaving:
            first, second = (leaving, tasks) if when == "leading" else (tasks, leaving)
            await workshop.ask_all(first, {"a": [1]})
            await workshop.ask_all(second, {"b": [2]})
            await workshop.ask_all(tasks, {"c": [3]})
            leaving.cancel_scope.cancel()
            await settle_shielded()
            workshop.open()
    left, stayed = (1, "b") if when == "leading" else (2, "a")
    assert workshop.answers.keys() == {stayed, "c"}
    assert all(left not in go for go in workshop.goes[1:])


async def test_one_of_a_go_is_cancelled_while_it_runs() -> None:
    workshop = Workshop()
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as leaving:
            await workshop.ask_all(tasks, {"a": [1], "b": [2]})
            await workshop.ask_all(leaving, {"c": [3]})
            await workshop.ask_all(tasks, {"d": [4]})
            workshop.gate(1).set()
            await settle()
            assert workshop.goes[-1] == [2, 3, 4]
            leaving.cancel_scope.cancel()
            await settle_shielded()
            workshop.open()
    assert workshop.answers == {name: answers_to(n) for name, n in {"a": 1, "b": 2, "d": 4}.items()}
    assert len(workshop.goes) == 2


@pytest.mark.parametrize("bad", [1, 2, 3, 4])
async def test_a_question_that_fails_harms_only_whoever_asked_it(bad: int) -> None:
    workshop = Workshop()
    workshop.poison = {bad}
    names = {"a": 1, "b": 2, "c": 3, "d": 4}
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            await workshop.ask_all(tasks, {name: [number] for name, number in names.items()})
            workshop.open()
    right = {name: answers_to(number) for name, number in names.items() if number != bad}
    assert workshop.answers == right
    assert list(workshop.failed.values()) == [f"cannot answer {bad}"]
    assert names.keys() - right.keys() == workshop.failed.keys()


async def test_all_fail_and_the_next_are_answered() -> None:
    workshop = Workshop()
    workshop.poison = {1, 2, 3}
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            await workshop.ask_all(tasks, {"a": [1], "b": [2], "c": [3]})
            workshop.open()
        assert workshop.failed.keys() == {"a", "b", "c"}
        await workshop.ask("d", 4)
    assert workshop.answers == {"d": answers_to(4)}


@settings(max_examples=60)
@given(
    asked=st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12),
    most=st.integers(1, 6),
    poison=st.sets(st.integers(0, 9), max_size=2),
    cancelled=st.sets(st.integers(0, 11), max_size=4),
    at=st.integers(0, 30),
)
async def test_everybody_gets_their_answer_their_error_or_leaves(
    asked: list[list[int]], most: int, poison: set[int], cancelled: set[int], at: int
) -> None:
    workshop = Workshop(most)
    workshop.poison = poison
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as leaving:
            for number, questions in enumerate(asked):
                group = leaving if number in cancelled else tasks
                group.start_soon(workshop.ask, str(number), *questions)
            await checkpoint()
            workshop.open()
            for _ in range(at):
                await checkpoint()
            leaving.cancel_scope.cancel()
    for number, questions in enumerate(asked):
        name = str(number)
        if name in workshop.answers:
            assert workshop.answers[name] == answers_to(*questions)
        elif name in workshop.failed:
            assert poison.intersection(questions)
        else:
            assert number in cancelled
