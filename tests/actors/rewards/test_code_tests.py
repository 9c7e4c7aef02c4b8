"""Code that is rewarded for passing tests, in the sandbox."""

from __future__ import annotations

from typing import Any

import pytest
from support.rewards import answers, error_of, results_of, values_of

from ayllu.actors.rewards.programs.code_tests import code_of
from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import ProgramSpec
from ayllu.actors.sandbox import require_sandbox
from ayllu.bus import local_bus
from ayllu.schemas import Unsupported

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("reward-code")]

RIGHT = "Here it is:\n```python\ndef double(n):\n    return 2 * n\n```\nDone."
WRONG = "```python\ndef double(n):\n    return n + 2\n```"
TESTS = ["assert double(2) == 4", "assert double(3) == 6"]


def sandbox() -> bool:
    try:
        require_sandbox()
    except Unsupported:
        return False
    return True


needs_sandbox = pytest.mark.skipif(not sandbox(), reason="there is no bubblewrap here")


async def scores(*texts: str, reference: Any = None, **values: Any) -> list[float]:
    spec = ProgramSpec(name="p", function="code_tests", **values)
    async with local_bus() as bus, build_reward(spec, bus, [spec]) as engine:
        return values_of(await results_of(engine, answers(*texts, reference=reference)))


@needs_sandbox
async def test_the_score_is_the_share_of_tests_that_pass() -> None:
    assert await scores(RIGHT, WRONG, "no code", reference=TESTS) == [1.0, 0.5, 0.0]
    assert await scores(RIGHT, reference=TESTS[0]) == [1.0]


@needs_sandbox
async def test_code_may_write_after_the_test() -> None:
    code = "import atexit\natexit.register(print, 'bye')\ndef double(n): return 2 * n"
    assert await scores(f"```\n{code}\n```", reference=TESTS) == [1.0]


@needs_sandbox
async def test_all_or_nothing() -> None:
    params = {"tests": TESTS, "all_or_nothing": True}
    assert await scores(RIGHT, WRONG, params=params) == [1.0, 0.0]


@needs_sandbox
async def test_programs_are_judged_by_what_they_write() -> None:
    tests = [{"stdin": "2\n", "stdout": "4"}, {"stdin": "3\n", "stdout": "6\n"}]
    program = "```py\nprint(2 * int(input()))\n```"
    cheat = "```py\nprint(4)\n```"
    noisy = "```py\nprint('?', 2 * int(input()))\n```"
    assert await scores(program, cheat, noisy, reference=tests) == [1.0, 0.5, 0.0]


@needs_sandbox
@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "def double(n): raise SystemExit(0)",
        "def double(n): return",
        "def double(n",
        "print('passed')",
        "while True: pass",
        "import time; time.sleep(1000)",
        "x = 'x' * (1 << 40)",
    ],
)
async def test_code_that_does_not_get_to_the_end_of_a_test_has_not_passed_it(code: str) -> None:
    assert await scores(f"```\n{code}\n```", reference=TESTS[0], timeout=1.0) == [0.0]


async def test_without_tests_there_is_no_score() -> None:
    spec = ProgramSpec(name="p", function="code_tests")
    async with local_bus() as bus, build_reward(spec, bus, [spec]) as engine:
        for reference in (None, [], 1, [{"stdin": "x"}]):
            [result] = await results_of(engine, answers(RIGHT, reference=reference))
            assert error_of(result).info.code == "invalid_request"


@pytest.mark.skipif(sandbox(), reason="there is a sandbox here")
async def test_without_a_sandbox_the_answer_says_so() -> None:
    spec = ProgramSpec(name="p", function="code_tests")
    async with local_bus() as bus, build_reward(spec, bus, [spec]) as engine:
        [result] = await results_of(engine, answers(RIGHT, reference=TESTS))
    assert error_of(result).info.code == "unsupported"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (RIGHT, "def double(n):\n    return 2 * n\n"),
        ("```python\na\n```\nbetter:\n```Python\nb\n```", "b\n"),
        ("```\nplain\n```", "plain\n"),
        ("x = 1", "x = 1"),
        ("```python\nnever closed", "```python\nnever closed"),
        ("```js\nno\n```", "```js\nno\n```"),
        ("```sh\npip install x\n```\nThen:\n```python\na\n```", "a\n"),
        ("```python\na\n```\nIt prints:\n```\n5\n```", "a\n"),
        ("```python\na\n```\n```text\n5\n```", "a\n"),
        ("```python3\na\n```", "a\n"),
        ("```python\r\na\r\n```\r\n", "a\n"),
        ('```python title="a.py"\na\n```', "a\n"),
    ],
)
async def test_the_code_of_an_answer(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.timeout(20)
async def test_no_text_takes_long_to_look_through() -> None:
    for text in ("```" + "a" * 300_000 + "`", "```a\n" * 100_000, "```" + " " * 300_000 + "`"):
        assert code_of(text) in (text, "")
