"""Code as an answer, and tests as its reward: both run in a sandbox."""

from __future__ import annotations

import math
import re
import secrets
from typing import Any

from ....schemas import InvalidRequest
from ....schemas.wire import convert
from ...attachments import text_of
from ...sandbox import Limits, run_python
from ..engine import Answer
from .params import CodeTest, CodeTestsParams, Tests

# It never goes back, so that no text takes it long.
_BLOCK = re.compile(r"^```[ \t]*+([^\s`]*+)[^\n`]*+\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PYTHON = frozenset(("python", "python3", "py"))
_ASSERTING = """\
import os, runpy, sys
mark = sys.stdin.readline()
space = runpy.run_path("answer.py")
runpy.run_path("check.py", space)
os.write(1, mark.encode())
"""
"""Runs the answer, then the test with the answer's names, and says that it came to the end."""


class CodeTestsProgram:
    """A `Program` that runs the Python code of answers with tests.

    The code of an answer that asserts anything runs in the process of the assertions, and code that wants to betray them
    can. What a program writes is compared out of its reach.

    Args:
        params: the tests, and what passing them is worth.
        timeout: how long each test may take, in seconds; one that takes longer is not passed.
        at_once: how many answers may be tested at once.
    """

    def __init__(self, params: CodeTestsParams, *, timeout: float, at_once: int) -> None:
        self.at_once = at_once
        self._params = params
        self._limits = Limits(seconds=timeout, cpu_seconds=math.ceil(timeout))

    async def __aenter__(self) -> CodeTestsProgram:
        """Do nothing: where there is no sandbox, answers say so."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Do nothing."""

    async def score(self, answer: Answer) -> float:
        """Return the share of tests that the code of an answer passes.

        Raises:
            InvalidRequest: there are no tests.
            Unsupported: there is no sandbox here.
        """
        tests = self._params.tests or _tests_of(answer.reference)
        code = code_of(text_of(answer.message.content, model="program", where="the answer"))
        passed = 0
        for test in tests:
            if await self._passes(code, test):
                passed += 1
            elif self._params.all_or_nothing:
                return 0.0
        return passed / len(tests)

    async def _passes(self, code: str, test: str | CodeTest) -> bool:
        if isinstance(test, CodeTest):
            done = await run_python(code, stdin=test.stdin.encode(), limits=self._limits)
            return done.status == 0 and not done.cut and _lines(done.stdout) == _lines(test.stdout)
        # Code that ends before the test does has not passed it: it does not know the mark.
        mark = secrets.token_hex(16)
        files = {"answer.py": code.encode(), "check.py": test.encode()}
        done = await run_python(
            _ASSERTING, files=files, stdin=f"{mark}\n".encode(), limits=self._limits
        )
        # What threads and exit handlers write may come after it.
        return done.how == "exited" and f"{mark}\n" in done.stdout


def code_of(text: str) -> str:
    """Return the last Python block of a text in Markdown: one that says so, or one that says nothing; or all of the text."""
    # Blocks of other languages are found too, so that none of their ends is taken for a beginning.
    found: list[tuple[str, str]] = _BLOCK.findall(text.replace("\r\n", "\n"))
    said = [code for language, code in found if language.casefold() in _PYTHON]
    blocks = said or [code for language, code in found if not language]
    return blocks[-1] if blocks else text


def _tests_of(reference: Any) -> list[str | CodeTest]:
    if isinstance(reference, str):
        reference = [reference]
    try:
        return convert(reference, Tests)
    except InvalidRequest as error:
        raise InvalidRequest(f"reference: it has no tests: {error.message}") from error


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]
