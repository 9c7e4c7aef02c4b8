"""Pages of docs/ whose examples are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from support.processes import AYLLU

GATEWAY = "http://127.0.0.1:8321"
"""Where the gateway is in the examples."""
RUN_SECONDS = 90


def page(name: str) -> str:
    """Return the text of a page."""
    return (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the kind and the text of each block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_block(
    kind: str, source: str, folder: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Run a block of the kind ``sh`` or ``python``, which must end well, and return what it says."""
    path = f"{Path(AYLLU).parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*(shell if kind == "sh" else [sys.executable, "-c"]), source],
        cwd=folder,
        env={**os.environ, "PATH": path, "no_proxy": "127.0.0.1", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"error"' not in done.stdout
    return done.stdout
