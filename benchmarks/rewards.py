"""A classification model as a reward model over the bus, beside a plain loop over transformers in batches of the same size, and
beside that loop one by one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import anyio

from ayllu.bus.bus import connect
from ayllu.bus.client import client
from ayllu.runtime.supervisor import BUS_URL_VARIABLE
from ayllu.schemas import (
    Dialog,
    KPromptGenerations,
    Message,
    RewardScoring,
    RewardScoringRequest,
    Role,
)

from .child import AYLLU, Child, helper, running
from .numbers import alternate, ratios, spread
from .scores_by_hand import Asked, Took
from .topology import Place
from .training import WORDS

BATCH = 16
PROMPTS, ANSWERS = 6, 8
WITHIN = 1e-3
"""How far scores may be apart: here they are of hundreds of tokens, and tens in size."""
PLAIN = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
"""What the reward model's process has too: threads that spin would only be measured against those that do not."""


def prompts(count: int = PROMPTS) -> list[KPromptGenerations]:
    """Return prompts with answers of four to 64 words, in no order."""
    return [
        KPromptGenerations(
            Dialog(message=Message(Role.user, f"Tell me of the {WORDS[p % 14]}.")),
            [
                Message(Role.assistant, " ".join(WORDS[(p + k + n) % 14] for n in range(length)))
                for k in range(ANSWERS)
                for length in [4 + (37 * (p * ANSWERS + k)) % 60]
            ],
        )
        for p in range(count)
    ]


def plain(asked: list[KPromptGenerations]) -> list[list[dict[str, str]]]:
    """Return them as the dialogs that transformers takes."""
    return [
        [
            {"role": "user", "content": str(prompt.dialog.message.content)},
            {"role": "assistant", "content": str(answer.content)},
        ]
        for prompt in asked
        for answer in prompt.k_generations
    ]


async def measure_rewards(place: Place, pairs: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure the three in turn."""
    folder = Path(mkdtemp(dir=place.folder))
    weights, dialogs = folder / "model", folder / "dialogs.json"
    make = helper("scores_by_hand", "make", str(weights), *(["tiny"] if tiny else []))
    quiet = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    await anyio.run_process([make[0], "-W", "ignore", *make[1:]], stderr=sys.stderr, env=quiet)
    asked = prompts(2 if tiny else PROMPTS)
    dialogs.write_text(json.dumps(plain(asked)))
    config = place.config(
        f'[[rewards]]\nname = "measured"\nengine = "classifier"\nweights = "{weights}"\n'
        f"batch_size = {BATCH}\n"
    )
    worker = [AYLLU, "worker", "rewards", "--config", str(config), "--data-dir", str(folder)]
    by_hand = helper("scores_by_hand", "loop", str(weights), str(dialogs))
    async with (
        running(worker, place.log("rewards"), environment={BUS_URL_VARIABLE: place.bus}),
        running(by_hand, place.log("by_hand"), environment=PLAIN) as loop,
        connect(place.bus) as bus,
    ):
        scoring = client(RewardScoring, bus)
        await _compare(scoring, loop, asked)

        async def actor() -> dict[str, float]:
            begun = time.perf_counter()
            await scoring.score(RewardScoringRequest(asked, "measured"))
            return {"rate": len(plain(asked)) / (time.perf_counter() - begun)}

        async def batched() -> dict[str, float]:
            return {"rate": len(plain(asked)) / (await loop.ask(Asked(BATCH), Took)).seconds}

        async def singly() -> dict[str, float]:
            return {"rate": len(plain(asked)) / (await loop.ask(Asked(1), Took)).seconds}

        values = await alternate({"actor": actor, "batched": batched, "singly": singly}, pairs)
    rates = {name: runs["rate"] for name, runs in values.items()}
    return {
        "answers": len(plain(asked)),
        "batch_size": BATCH,
        "scores_per_second": {name: spread(found) for name, found in rates.items()},
        "actor_to_batched": ratios(rates["actor"], rates["batched"]),
        "actor_to_singly": ratios(rates["actor"], rates["singly"]),
    }


async def _compare(scoring: RewardScoring, loop: Child, asked: list[KPromptGenerations]) -> None:
    """Make sure that both score the same; it also warms them."""
    singly = (await loop.ask(Asked(1), Took)).scores
    response = await scoring.score(RewardScoringRequest(asked, "measured"))
    for number, scored in enumerate(response.scored_generations):
        expected = sorted(singly[number * ANSWERS : (number + 1) * ANSWERS], reverse=True)
        found = [one.score for one in scored.k_scored_generations]
        if any(abs(a - b) > WITHIN for a, b in zip(expected, found, strict=True)):
            raise RuntimeError(f"the scores differ: {found}, transformers' own are {expected}")


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    rates = result["scores_per_second"]
    return [
        (f"{result['answers']} answers over the bus, scores/s", str(rates["actor"])),
        (f"a loop in batches of {result['batch_size']}, scores/s", str(rates["batched"])),
        ("a loop one by one, scores/s", str(rates["singly"])),
        ("bus / loop in batches", str(result["actor_to_batched"])),
        ("bus / loop one by one", str(result["actor_to_singly"])),
    ]
