"""Runs the loop with several seeds, and beside each the same loop without the reward: what the example's figures come from.

    ayllu up --config examples/improve/ayllu.toml           # in another terminal
    python examples/improve/seeds.py [--seeds N] [--url URL] [--out FOLDER]

A seed makes other prompts, another order of them, and another beginning of the adapter. Without the reward, what is trained on is one
answer to each prompt, drawn at random. It takes some ten minutes a seed on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WITHOUT_REWARD = {
    "threshold = 1.0\n": "",
    'filtering_function = "top_k"': 'filtering_function = "random"',
}
"""What is changed in the file of the loop for the comparison."""


def write_loop(folder: Path, seed: int, changes: dict[str, str]) -> Path:
    """Write prompts and loop of a seed, and return the loop's file."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, str(HERE / "prompts.py"), "--seed", str(seed), "--out", str(folder)],
        check=True,
    )
    text = (HERE / "loop.toml").read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    text = text.replace('name = "smollm2-calls"', f'name = "{folder.name}"')
    (folder / "loop.toml").write_text(text + f"seed = {seed}\n")
    return folder / "loop.toml"


def run(folder: Path, url: str) -> dict[str, Any]:
    """Run a loop, and return its report."""
    command = [str(Path(sys.executable).with_name("ayllu")), "improve", "--url", url, "--json"]
    done = subprocess.run(
        [*command, "--config", str(folder / "loop.toml"), "--out", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def shown(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "-"
    right = round(evaluation["mean"] * evaluation["answers"])
    bounds = f"{evaluation['low']:.2f} to {evaluation['high']:.2f}"
    return f"{right}/{evaluation['answers']} = {evaluation['mean']:.2f} ({bounds})"


def lines(options: argparse.Namespace) -> Iterator[str]:
    yield "seed | accepted | base | base with help | after | without the reward"
    for seed in range(options.seeds):
        cells = [str(seed)]
        for name, changes in (("calls", {}), ("unfiltered", WITHOUT_REWARD)):
            folder = options.out / f"{name}-{seed}"
            write_loop(folder, seed, changes)
            report = run(folder, options.url)
            [only] = report["rounds"]
            after = shown(only.get("evaluation"))
            if name == "calls":
                counts = only["statistics"]
                cells.append(f"{counts['accepted']} of {counts['candidates']}")
                cells += [shown(report["baseline"]), shown(report["helped"]), after]
            else:
                cells.append(after)
        yield " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--url", default="http://127.0.0.1:8321")
    parser.add_argument("--out", type=Path, default=Path("improve-seeds"))
    options = parser.parse_args()
    for line in lines(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
