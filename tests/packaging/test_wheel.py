"""The wheel has every module of the tree, and the base install is enough for a client."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["schemas", "bus", "actors", "runtime", "client"]


@pytest.mark.slow
@pytest.mark.requirement("packaging")
def test_the_wheel_has_what_the_tree_has(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves a folder behind, and packs what it finds in an old one.
    source = tmp_path / "source"
    source.mkdir()
    for name in [*PACKAGES, "pyproject.toml", "README.md", "LICENSE"]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)],
        check=True,
        timeout=110,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ayllu/")}
    tree = {
        f"ayllu/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == tree


@pytest.mark.requirement("packaging")
@pytest.mark.parametrize("module", ["ayllu.client", "ayllu.bus", "ayllu.schemas", "ayllu.actors"])
def test_the_base_install_is_enough(module: str) -> None:
    """What only extras bring is hidden from the import."""
    program = f"""
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"starlette", "uvicorn", "xllamacpp", "yaml", "rich", "torch", "numpy"}}:
            raise ImportError(name + " is not in the base install")
sys.meta_path.insert(0, Hidden())
import {module}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.requirement("packaging")
@pytest.mark.parametrize("package", ["bus", "actors", "runtime", "client"])
def test_a_bare_import_fails_loudly(package: str) -> None:
    """`import bus` from the root would make a second copy of every class."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {package}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "ImportError" in done.stderr
