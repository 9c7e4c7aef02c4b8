"""The configured models, as what registered ones stand on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import anyio.to_thread

from ...schemas import Conflict, ModelNotFound, Unsupported
from ..registry import ModelSpec


class Bases:
    """The models that registered ones can stand on.

    Args:
        specs: the configured models.
        engines: what can run those.
        taken: further names that a registered model may not have.
    """

    def __init__(
        self, specs: Sequence[ModelSpec], engines: Collection[str], taken: Sequence[str] = ()
    ) -> None:
        self._specs = {name: spec for spec in specs for name in (spec.name, *spec.aliases)}
        self._engines = sorted(engines)
        self._taken = frozenset(taken)

    def check_name(self, name: str) -> None:
        """Refuse the name of a model that is configured.

        Raises:
            Conflict: it is one.
        """
        if name in self._specs or name in self._taken:
            raise Conflict(f"{name!r} is the name of a configured model")

    def find(self, name: str) -> ModelSpec:
        """Return a model by its name or an alias.

        Raises:
            ModelNotFound: there is none of this name here; the details list those that there are.
            Unsupported: its engine cannot serve what was trained.
        """
        spec = self._specs.get(name)
        if spec is None:
            names = sorted(self._specs)
            raise ModelNotFound(
                f"the base {name!r} is not served here; {', '.join(names)} are",
                details={"model": name, "served": names},
            )
        if spec.engine not in self._engines:
            raise Unsupported(
                f"the base {name!r} runs on the engine {spec.engine}; what was trained can stand on "
                f"{' and '.join(self._engines)} alone"
            )
        return spec


class Digests:
    """Digests of files, each computed once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], str] = {}

    async def of_file(self, path: Path) -> str:
        """Return the SHA-256 of a file.

        Raises:
            OSError: it is not there.
        """
        return await anyio.to_thread.run_sync(self._of_file, path)

    async def of_files(self, paths: Sequence[Path]) -> str:
        """Return a digest of the names and contents of some files.

        Raises:
            OSError: one is not there.
        """
        return await anyio.to_thread.run_sync(self._of_files, paths)

    def _of_file(self, path: Path) -> str:
        facts = path.stat()
        known = (path, facts.st_size, facts.st_mtime_ns)
        if known not in self._known:
            self._known[known] = file_digest(path)
        return self._known[known]

    def _of_files(self, paths: Sequence[Path]) -> str:
        lines = [f"{path.name} {self._of_file(path)}" for path in paths]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
