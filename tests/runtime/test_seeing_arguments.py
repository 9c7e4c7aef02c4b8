"""The help of `ayllu top`, `ayllu trace` and `ayllu graph`."""

from __future__ import annotations

import pytest

from ayllu.runtime.arguments import build_parser
from ayllu.runtime.cli import COMMANDS


@pytest.mark.requirement("top-command", "trace-command", "graph-command")
@pytest.mark.parametrize("command", ["top", "trace", "graph"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert f"ayllu {command}" in capsys.readouterr().out.partition("example:")[2]
    assert command in COMMANDS
