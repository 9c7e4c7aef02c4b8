"""Agents that ask others: a script in which each agent, known by its instructions, has a part."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import Script, Step, _words
from ayllu.actors.untrusted import OUTPUT

from .weather import calling

Part = Callable[[str, Sequence[str]], Sequence[Step] | str]
"""What an agent says, by what it was asked last and by what tools have answered since."""


def parts(played: Mapping[str, Part]) -> Script:
    """Return a script of agents whose instructions are the names of their parts."""

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        messages = list(prompt.messages[:-1] if prompt.continues else prompt.messages)
        said = prompt.messages[-1].text if prompt.continues else ""
        name = messages[0].text.partition("\n")[0]
        last = max(number for number, one in enumerate(messages) if one.role == "user")
        answers = [answer for one in messages[last + 1 :] for answer in _answers(one.text)]
        steps = played[name](messages[last].text, answers)
        return _words(steps.removeprefix(said)) if isinstance(steps, str) else steps

    return script


def _answers(text: str) -> list[str]:
    """Return what tools answered, of a message that tells it."""
    found = re.findall(r"<tool_response>(.*?)</tool_response>", text, re.DOTALL)
    return [str(json.loads(one)[OUTPUT]) for one in found]


def call(name: str, **arguments: Any) -> str:
    """Return a call of a tool as a model writes it, within `calls`."""
    return json.dumps({"name": name, "arguments": arguments})


def calls(*wanted: str) -> list[Step]:
    """Return what a model says to make calls."""
    return [calling(*wanted)]


def asks(tool: str, answer: str = "so {}") -> Part:
    """Return a part: asks another agent what it was asked itself, and says what that answered."""

    def part(asked: str, answers: Sequence[str]) -> Sequence[Step] | str:
        return answer.format(answers[-1]) if answers else calls(call(tool, message=asked))

    return part


def echoes(asked: str, _: Sequence[str]) -> str:
    """A part: repeats what it is asked."""
    return asked
