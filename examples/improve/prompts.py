"""Writes train.jsonl and held-out.jsonl: requests that a tool answers, and the call that is right.

    python examples/improve/prompts.py [--count N] [--seed S] [--out FOLDER]

The two have no phrasing, city or number in common. The held-out phrasings were written down before any model saw them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CITIES = {
    "train": "Paris Rome Tokyo Madrid Oslo Cairo Berlin Chicago Lisbon Moscow Sydney Vienna Dublin Athens Toronto Seoul",
    "held-out": "London Lima Boston Prague Mumbai Helsinki Nairobi Zurich Miami Warsaw Bogota Beijing Denver Geneva Havana"
    " Kyoto Riga Delhi Naples Quebec",
}
PHRASES = {
    "train": {
        "weather": [
            "What is the weather in {}?",
            "How is the weather in {} today?",
            "Is it raining in {}?",
            "Tell me the weather in {}.",
            "Is it cold in {} now?",
            "Weather in {}, please.",
        ],
        "set_timer": [
            "Set a timer for {} minutes.",
            "Start a timer of {} minutes.",
            "Please set a {} minute timer.",
            "Timer, {} minutes.",
            "Wake me in {} minutes.",
            "Remind me in {} minutes.",
        ],
        "calculate": [
            "What is {}?",
            "Calculate {}.",
            "How much is {}?",
            "Compute {}.",
            "Please work out {}.",
            "{} = ?",
        ],
    },
    "held-out": {
        "weather": [
            "Give me the forecast for {}.",
            "How hot is it in {}?",
            "Any snow in {} today?",
            "What's it like outside in {}?",
            "Will I need sunglasses in {}?",
        ],
        "set_timer": [
            "Could you start a {} minute timer?",
            "Count down {} minutes.",
            "{} minutes on the timer, please.",
            "Let me know in {} minutes.",
            "Wait {} minutes, then ring.",
        ],
        "calculate": [
            "Please calculate {}.",
            "What is the result of {}?",
            "Work out {} for me.",
            "Give me {}.",
            "What does {} make?",
        ],
    },
}


def rows(part: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield ``count`` requests for each tool, the tools taking turns."""
    chance = random.Random(f"{part}-{seed}")
    cities = CITIES[part].split()
    chance.shuffle(cities)
    # Even numbers are trained on, odd ones held out.
    numbers = [number for number in range(2, 100) if number % 2 == (part == "held-out")]
    chance.shuffle(numbers)
    for n in range(count):
        first, second = numbers[2 * n % len(numbers)], numbers[(2 * n + 1) % len(numbers)]
        expression = f"{first} {'+-*'[n % 3]} {second}"
        arguments: dict[str, tuple[object, dict[str, object]]] = {
            "weather": (cities[n % len(cities)], {"city": cities[n % len(cities)]}),
            "set_timer": (numbers[n % len(numbers)], {"minutes": numbers[n % len(numbers)]}),
            "calculate": (expression, {"expression": expression}),
        }
        for tool, phrases in PHRASES[part].items():
            said, called = arguments[tool]
            call = {"tool_name": tool, "arguments": called}
            yield {"prompt": phrases[n % len(phrases)].format(said), "reference": call}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--count", type=int, nargs=2, default=[16, 20], metavar=("TRAIN", "HELD_OUT")
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    for part, count in zip(("train", "held-out"), options.count, strict=True):
        lines = [json.dumps(row) + "\n" for row in rows(part, count, options.seed)]
        (options.out / f"{part}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
