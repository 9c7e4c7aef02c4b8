"""The shield ``code_guard``: bandit looks at Python that is about to be run, or that somebody is about to be shown."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Any, Literal

import anyio
import msgspec

from ...bus.processes import foreign_environment
from ...schemas import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    Message,
    SafetyViolation,
    ShieldRequest,
    ShieldStage,
    TooLarge,
)
from .code_blocks import blocks
from .settings import CodeGuardSettings
from .shield import strings_of

CHILD = "ayllu.actors.shields.code_child"
MAX_CODE = 200_000
"""Bytes of a piece of code."""
MAX_PIECES = 50
"""Of a message."""
ARGUMENTS = ("code",)
SKIPS = ("B101", "B110", "B112", "B311")
"""Assertions, exceptions that are passed over, and random numbers: they do no harm to who runs the code."""

_LEVEL: Mapping[str, Any] = {"enum": ["low", "medium", "high"]}
_COOKIE = re.compile(r"^[ \t\f]*#[^\n]*?coding[:=][ \t]*([-\w.]+)")
_UTF8 = frozenset({"utf-8", "utf8", "utf-8-sig"})
_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What bandit says of a line."""

    test: str
    line: int
    severity: Literal["low", "medium", "high", "undefined"]
    confidence: Literal["low", "medium", "high", "undefined"]
    text: str

    def __str__(self) -> str:
        """Say it to people and models."""
        # What the code says may be what is withheld: bandit quotes it.
        text = _QUOTED.sub("'...'", self.text)
        return f"line {self.line}: {text} ({self.test}, severity {self.severity}, confidence {self.confidence})"


class Looked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What came of a look: what was found, and why some code could not be read."""

    unreadable: list[str]
    findings: list[Finding]
    more: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Code in a message.

    Attributes:
        code: the code.
        surely: whether it is Python; else it may be anything.
    """

    code: str
    surely: bool


class CodeGuard:
    """A `Shield` that lets bandit look at Python, each piece in a process of its own, which reads it and does not run it.

    Args:
        settings: what it may cost.
    """

    name = "code_guard"
    description = (
        "Looks with bandit for known dangers in Python: in the arguments of calls before they are run, and in blocks of code in "
        "messages, those of other languages left out. It finds plain use of dangerous functions and no disguised one: code that is "
        "run needs a sandbox all the same."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "arguments": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "minItems": 1,
                "maxItems": 20,
                "description": f"the arguments of a call that hold code; {', '.join(ARGUMENTS)} by default",
            },
            "severity": {**_LEVEL, "description": "the least that counts; low by default"},
            "confidence": {**_LEVEL, "description": "the least that counts; low by default"},
            "skips": {
                "type": "array",
                "items": {"type": "string", "pattern": "^B[0-9]{3}$", "maxLength": 4},
                "maxItems": 200,
                "description": f"bandit's tests that do not count; {', '.join(SKIPS)} by default",
            },
        },
        "additionalProperties": False,
    }

    def __init__(self, settings: CodeGuardSettings | None = None) -> None:
        self._settings = settings or CodeGuardSettings()
        self._limiter = anyio.CapacityLimiter(self._settings.at_once)

    async def check(self, request: ShieldRequest) -> SafetyViolation | None:
        """Look at the code in the last message; see `Shield.check`.

        Raises:
            AylluError: it was not looked at: the call has no such argument, it is too much, or bandit failed.
        """
        for piece in _pieces(request):
            looked = await self._look(piece.code, request.params)
            if looked.unreadable:
                why = "; ".join(looked.unreadable)
                if piece.surely or not why.startswith("syntax error"):
                    return SafetyViolation("unreadable_code", f"the code cannot be read: {why}")
                continue
            if looked.findings:
                told = "; ".join(map(str, looked.findings))
                more = f"; and {looked.more} more" if looked.more else ""
                return SafetyViolation("insecure_code", told + more)
        return None

    async def _look(self, code: str, params: Mapping[str, Any]) -> Looked:
        """Return what bandit says of code.

        Raises:
            AylluError: nothing, in time.
        """
        why = _unlike(code)
        if why is not None:
            return Looked([why], [], 0)
        settings = self._settings
        command = [
            *(sys.executable, "-P", "-m", CHILD),
            str(settings.memory_mib << 20),
            str(math.ceil(settings.seconds) + 1),
            params.get("severity", "low"),
            params.get("confidence", "low"),
            *params.get("skips", SKIPS),
        ]
        try:
            async with self._limiter:
                with anyio.fail_after(settings.seconds):
                    ended = await anyio.run_process(
                        command,
                        input=code.encode(),
                        stderr=subprocess.DEVNULL,
                        check=False,
                        env=foreign_environment(),
                        start_new_session=True,
                    )
        except TimeoutError:
            raise DeadlineExceeded(
                f"code_guard: the code was not looked at within {settings.seconds:g} s",
                retryable=False,
            ) from None
        except OSError as error:
            raise EngineError("code_guard: bandit cannot be started") from error
        if ended.returncode != 0:
            raise EngineError("code_guard: the code ended the process that looked at it")
        try:
            return msgspec.json.decode(ended.stdout, type=Looked)
        except msgspec.DecodeError as error:
            raise EngineError("code_guard: bandit's answer cannot be read") from error


def _pieces(request: ShieldRequest) -> list[Piece]:
    """Return the code that a shield has to look at.

    Raises:
        InvalidRequest: a call has none of the arguments that hold its code, or one is no text.
        TooLarge: it is too much.
    """
    message = request.messages[-1]
    needed = request.stage is ShieldStage.tool_input
    found = list(_of_calls(message, request.params.get("arguments", ARGUMENTS), needed=needed))
    if not needed:
        found += [
            Piece(dedent(block.code), block.is_python)
            for text in strings_of(message)
            for block in blocks(text)
            if block.is_python or not block.language
        ]
    found = [piece for piece in found if piece.code.strip()]
    if len(found) > MAX_PIECES:
        raise TooLarge(f"code_guard: more than {MAX_PIECES} pieces of code are not looked at")
    for piece in found:
        if len(piece.code.encode(errors="surrogatepass")) > MAX_CODE:
            raise TooLarge(f"code_guard: more than {MAX_CODE} bytes of code are not looked at")
    return found


def _of_calls(message: Message, names: Sequence[str], *, needed: bool) -> Iterator[Piece]:
    for call in message.tool_calls:
        held = [name for name in names if name in call.arguments]
        if needed and not held:
            raise InvalidRequest(
                f"code_guard: a call of {call.tool_name!r} has none of the arguments {', '.join(names)}; say in `arguments` "
                "which hold its code"
            )
        for name in held:
            code = call.arguments[name]
            if not isinstance(code, str):
                raise InvalidRequest(
                    f"code_guard: the argument {name!r} of {call.tool_name!r} is no text"
                )
            yield Piece(code, surely=True)


def _unlike(code: str) -> str | None:
    """Return why code may be read otherwise by who runs it."""
    for line in re.split(r"\r\n|\r|\n", code, maxsplit=2)[:2]:
        cookie = _COOKIE.match(line)
        if cookie and cookie[1].casefold().replace("_", "-") not in _UTF8:
            return f"it says that it is encoded in {cookie[1][:40]}"
    try:
        code.encode()
    except UnicodeEncodeError:
        return "it is no text"
    return None
