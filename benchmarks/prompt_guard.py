"""How often ``prompt_guard`` errs: python -m benchmarks.prompt_guard [FOLDER OF A CLASSIFIER].

The texts in ``prompts/`` are ours. The rules were made with one half; the other half was written before the rules were, and they
were never changed for it.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import msgspec

from ayllu.actors.shields.prompt_guard import open_prompt_guard
from ayllu.actors.shields.prompt_rules import Assessment
from ayllu.actors.shields.settings import PromptGuardSettings

FOLDER = Path(__file__).parent / "prompts"
SETS = ("made_with", "held_out")
THRESHOLD = 0.5
Assess = Callable[[str], Awaitable[Assessment]]


class Labelled(msgspec.Struct, frozen=True):
    """A text, and whether it is an attack."""

    attack: bool
    kind: str
    text: str


class Errors(msgspec.Struct):
    """How many texts were misjudged, of how many."""

    wrong: int = 0
    texts: int = 0

    @property
    def rate(self) -> float:
        return self.wrong / self.texts if self.texts else 0.0

    def __str__(self) -> str:
        return f"{self.wrong} of {self.texts} ({self.rate:.0%})"


def labelled(name: str) -> list[Labelled]:
    """Return one of the sets."""
    lines = (FOLDER / f"{name}.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Labelled) for line in lines]


async def errors(
    texts: Sequence[Labelled], assess: Assess, threshold: float = THRESHOLD
) -> dict[tuple[bool, str], Errors]:
    """Return the errors by kind of text; the kind ``""`` is all of them."""
    found: dict[tuple[bool, str], Errors] = defaultdict(Errors)
    for one in texts:
        wrong = ((await assess(one.text)).score >= threshold) != one.attack
        for kind in ("", one.kind):
            found[one.attack, kind].texts += 1
            found[one.attack, kind].wrong += wrong
    return found


async def main(*folders: str) -> None:
    """Print the table."""
    async with open_prompt_guard(
        PromptGuardSettings(folder=folders[0] if folders else None)
    ) as guard:
        print(f"{'':24}" + "".join(f"{name:>22}" for name in SETS))
        tables = [await errors(labelled(name), guard.assess) for name in SETS]
        for attack, what in ((False, "taken for attacks"), (True, "attacks let pass")):
            kinds = dict.fromkeys(kind for table in tables for was, kind in table if was is attack)
            for kind in kinds:
                cells = "".join(f"{table.get((attack, kind), '-')!s:>22}" for table in tables)
                print(f"{'  ' + kind if kind else what:24}{cells}")
        long = "\n".join(one.text for one in labelled(SETS[1])) * 10
        begun = time.perf_counter()
        await guard.assess(long)
        seconds = time.perf_counter() - begun
        print(f"{len(long)} characters in {seconds:.2f} s")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:2])
