"""An own shield: a class with a name, a description, the JSON schema of its params, and `check`.

`python examples/own_shield.py "$(cat .ayllu/bus.url)"` runs it until Ctrl-C. Agents name it like any other:
`"output_shields": [{"shield_type": "secrets", "params": {"prefixes": ["sk-"]}}]`.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

import anyio

from ayllu.actors.shields.actor import ShieldsActor
from ayllu.actors.shields.shield import strings_of
from ayllu.bus import connect, serve
from ayllu.schemas import SafetyViolation, ShieldRequest


class Secrets:
    """Finds what looks like the keys of our services."""

    name = "secrets"
    description = "Finds keys by how they begin. Keys that begin otherwise it does not find."
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "prefixes": {"type": "array", "items": {"type": "string", "minLength": 2}},
        },
        "required": ["prefixes"],
        "additionalProperties": False,
    }

    async def check(self, request: ShieldRequest) -> SafetyViolation | None:
        prefixes = "|".join(map(re.escape, request.params["prefixes"]))
        for text in strings_of(request.messages[-1]):
            # What raises here, or takes too long, holds the message back as well.
            if re.search(rf"\b(?:{prefixes})[A-Za-z0-9]{{8}}", text):
                return SafetyViolation(
                    violation_type="secret",
                    details="there is a key in it",
                    suggested_user_response="I must not show keys.",
                )
        return None


async def main(url: str) -> None:
    async with connect(url, name="own-shield") as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, ShieldsActor([Secrets()]))
        print("the shield is ready", flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
