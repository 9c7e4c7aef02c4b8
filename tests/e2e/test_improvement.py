"""The closed loop for real: SmolLM2 learns to answer with a tool call, from answers of its own; examples/improve in a small form."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from support.processes import AYLLU, Up, run_ayllu, running_up, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "improve"
HELD_OUT = 24
LOOP = "loop"


def small(folder: Path) -> Path:
    """Write the loop of the example with half of its prompts, and return its file."""
    for name in ("train", "held-out"):
        lines = (EXAMPLE / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:HELD_OUT]))
    text = (EXAMPLE / "loop.toml").read_text()
    changed = re.sub(r"^n_iters = \d+$", "n_iters = 16", text, flags=re.MULTILINE)
    changed = re.sub(
        r"^checkpoint_every = \d+$", "checkpoint_every = 8", changed, flags=re.MULTILINE
    )
    file = folder / "loop.toml"
    file.write_text(changed)
    return file


def phase(up: Up) -> str:
    """Return what the loop does now; nothing, before it was accepted."""
    shown = json.loads(run_ayllu("jobs", "show", LOOP, "--url", up.url).stdout or "{}")
    return str(shown.get("phase", ""))


@pytest.mark.requirement("improvement-demonstration")
def test_a_model_learns_from_its_own_answers(tmp_path: Path) -> None:
    config = (EXAMPLE / "ayllu.toml").read_text()
    with running_up(tmp_path / "data", config=config) as up:
        url = ["--url", up.url]
        command = [AYLLU, "improve", "--config", str(small(tmp_path)), "--job", LOOP, *url]
        with subprocess.Popen(
            [*command, "--out", str(tmp_path / "report")], stdout=subprocess.PIPE, text=True
        ) as running:
            # Its worker dies while the model is trained: the loop goes on where it was.
            wait_for("the training", lambda: "training" in phase(up), 500)
            up.kill_child("improvement")
            said, _ = running.communicate(timeout=600)
            assert running.returncode == 0, said
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        [only] = report["rounds"]
        before, after = report["baseline"], only["evaluation"]
        assert (before["answers"], after["answers"]) == (HELD_OUT, HELD_OUT)
        assert (before["interval"], after["interval"]) == ("wilson", "wilson")
        # It could hardly do it at all; it learned to, and not by chance.
        assert before["mean"] <= 1 / HELD_OUT
        assert after["mean"] >= 10 / HELD_OUT
        assert after["low"] > before["high"]
        assert only["kept"] is True
        assert only["statistics"]["accepted"] >= 15
        assert only["losses"][-1]["loss"] < only["losses"][0]["loss"]
        page = (tmp_path / "report" / "report.html").read_text()
        assert page.count("data:image/svg+xml") >= 3
        # What was kept is served.
        served = run_ayllu("call", "models", *url).stdout
        assert '"smollm2-calls"' in served
        asked = json.dumps({
            "model": "smollm2-calls",
            "max_tokens": 48,
            "dialog": {"message": {"role": "user", "content": "What is the weather in Paris?"}},
        })  # fmt: skip
        answer = json.loads(run_ayllu("call", "chat_completion", asked, *url).stdout)
        assert answer["content"].startswith('<tool_call>[{"name":"weather"')
        assert up.stop() == 0
