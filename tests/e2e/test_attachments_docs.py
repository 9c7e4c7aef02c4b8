"""What docs/attachments.md shows is what happens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import running_up

PAGE = page("attachments.md")
ROOT = "/srv/papers"


@pytest.mark.slow
@pytest.mark.requirement("examples-run")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples(tmp_path: Path) -> None:
    (_, config), (kind, example), (_, expected) = blocks(PAGE)
    root = tmp_path / "papers"
    root.mkdir()
    config = config.replace(ROOT, str(root))
    with running_up(tmp_path / "data", config=config) as up:
        source = example.replace(GATEWAY, up.url).replace(ROOT, str(root))
        assert run_block(kind, source, tmp_path).strip() == expected.strip()
        assert up.stop() == 0
