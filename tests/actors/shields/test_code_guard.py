"""The shield on code, with the real bandit in its processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
from support.shields import answered, looked, said, user

from ayllu.actors.shields import code_guard
from ayllu.actors.shields.code_blocks import Block, blocks
from ayllu.actors.shields.code_guard import MAX_CODE, CodeGuard, Finding
from ayllu.actors.shields.settings import CodeGuardSettings
from ayllu.schemas import (
    AylluError,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    SafetyViolation,
    ShieldStage,
    TooLarge,
    ToolCall,
)

pytestmark = [pytest.mark.requirement("shield-code-guard")]

FENCE = "```"
EVIL = "import os\nos.system('rm -rf ~')"


async def called(given: Mapping[str, Any], /, **params: Any) -> SafetyViolation | None:
    call = said("", ToolCall("code_interpreter", dict(given)))
    return await looked(CodeGuard(), call, stage=ShieldStage.tool_input, **params)


def fenced(code: str, language: str = "python") -> str:
    return f"So:\n\n{FENCE}{language}\n{code}\n{FENCE}\nDone."


@pytest.mark.asyncio
async def test_plain_code_passes() -> None:
    code = "import random\nassert True\nprint(sum(random.random() for _ in range(10)))"
    assert await called({"code": code}) is None
    assert await called({"code": "  \n"}) is None


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "code",
    [
        EVIL,
        f"{EVIL}  # nosec",
        "eval(input())",
        "import pickle\npickle.loads(b'')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import requests\nrequests.get('https://a', verify=False)",
    ],
)
async def test_dangerous_code_does_not(code: str) -> None:
    violation = await called({"code": code})
    assert violation is not None
    assert violation.violation_type == "insecure_code"
    assert violation.details.startswith("line ")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, True),
        ({"severity": "medium"}, False),
        ({"confidence": "high"}, True),
        ({"skips": ["B404", "B605", "B607"]}, False),
        ({"skips": []}, True),
        ({"arguments": ["source"]}, False),
        ({"arguments": ["code", "source"]}, True),
    ],
)
async def test_params_say_what_counts(params: Mapping[str, Any], found: bool) -> None:
    arguments = {"code": EVIL, "source": "1 + 1"}
    assert (await called(arguments, **params) is not None) == found


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "code",
    [
        "print(",
        "a\0b",
        "(" * 10_000 + ")" * 10_000,
        "-" * 50_000 + "1",
        "x = " + "+".join("1" * 30_000),
        "a" + ".b" * 30_000,
        "lambda: " * 3000 + "1",
        "# -*- coding: utf-7 -*-\nprint(1)",
        "\n# vim: set fileencoding=rot13 :\nprint(1)",
        "\ud800",
        "!pip install x",
    ],
    ids=range(11),
)
async def test_what_cannot_be_read_does_not_pass(code: str) -> None:
    violation = await called({"code": code})
    assert violation is not None
    assert violation.violation_type == "unreadable_code"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, InvalidRequest),
        ({"source": EVIL}, InvalidRequest),
        ({"code": ["import os"]}, InvalidRequest),
        ({"code": "x" * (MAX_CODE + 1)}, TooLarge),
    ],
)
async def test_what_is_not_looked_at_is_an_error(
    arguments: Mapping[str, Any], error: type[AylluError]
) -> None:
    with pytest.raises(error):
        await called(arguments)


@pytest.mark.asyncio
async def test_taking_too_long_and_dying_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    call = said("", ToolCall("t", {"code": "1"}))
    with pytest.raises(DeadlineExceeded):
        await looked(CodeGuard(CodeGuardSettings(seconds=0.01)), call, stage=ShieldStage.tool_input)
    # A child that says nothing, or anything.
    for child in ("this", "ayllu.bus"):
        monkeypatch.setattr(code_guard, "CHILD", child)
        with pytest.raises(EngineError):
            await looked(CodeGuard(), call, stage=ShieldStage.tool_input)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(EngineError):
        await looked(CodeGuard(), call, stage=ShieldStage.tool_input)


@pytest.mark.asyncio
@pytest.mark.parametrize("stage", [ShieldStage.input, ShieldStage.output, ShieldStage.tool_output])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Say eval(x) and os.system('ls').", None),
        (fenced(EVIL), "insecure_code"),
        (fenced(EVIL, ""), "insecure_code"),
        (fenced(EVIL, "sh"), None),
        (fenced("print("), "unreadable_code"),
        (fenced("$ ls -l\ntotal 0", ""), None),
        (fenced("1 + 1") + fenced(EVIL), "insecure_code"),
        (f"{FENCE}py\n{EVIL}", "insecure_code"),
        (fenced("    x = 1\n    eval(x)"), "insecure_code"),
    ],
)
async def test_blocks_in_messages_are_looked_at(
    stage: ShieldStage, text: str, found: str | None
) -> None:
    if stage is not ShieldStage.output and found != "insecure_code":
        return  # The same code: once is enough.
    make = {ShieldStage.input: user, ShieldStage.output: said, ShieldStage.tool_output: answered}
    violation = await looked(CodeGuard(), make[stage](text), stage=stage)
    assert (violation and violation.violation_type) == found


@pytest.mark.asyncio
async def test_calls_in_what_the_model_said_are_looked_at() -> None:
    call = ToolCall("of_the_client", {"code": EVIL})
    assert await looked(CodeGuard(), said("", call), stage=ShieldStage.output) is not None
    other = ToolCall("of_the_client", {"city": "Cusco"})
    assert await looked(CodeGuard(), said("", other), stage=ShieldStage.output) is None


@pytest.mark.asyncio
async def test_a_message_has_so_many_pieces_and_no_more() -> None:
    with pytest.raises(TooLarge):
        await looked(CodeGuard(), said(fenced("1") * 51), stage=ShieldStage.output)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("```\na\n```", [Block("", "a")]),
        ("~~~ py\na\n```\n~~~", [Block("py", "a\n```")]),
        ("````python\n```\n````", [Block("python", "```")]),
        ("```python title='x'\na", [Block("python", "a")]),
        ("``` {.Python .x}\na\n```", [Block("python", "a")]),
        ("- ```py\n  a\n  ```", [Block("py", "  a")]),
        ("> ```py\n> ```", [Block("py", "")]),
        ("```py\r\na\rb\r\n```", [Block("py", "a\nb")]),
        ("```py\na\x0c```\nb\n```", [Block("py", "a\x0c```\nb")]),
        ("```pycon\n>>> a\nno\n... b\n```", [Block("pycon", "a\nb")]),
        ("```c\na\n```py\nb\n```", [Block("c", "a\n```py\nb")]),
    ],
)
def test_blocks_of_markdown(text: str, found: list[Block]) -> None:
    assert list(blocks(text)) == found


def test_blocks_take_linear_time() -> None:
    for part in ("`", "```\n", " ", "> ", "- ", "~~~ x\n"):
        list(blocks(part * (500_000 // len(part))))


def test_what_code_says_is_not_quoted() -> None:
    """It may be what is withheld."""
    text = "Possible hardcoded password: 'hunter2 it's'"
    told = str(Finding("B105", 3, "low", "medium", text))
    assert (
        told == "line 3: Possible hardcoded password: '...' (B105, severity low, confidence medium)"
    )
