"""The configured models, as what registered ones stand on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread

from ...schemas import Conflict, ModelNotFound, Unsupported
from ..files import locate
from ..registry import ModelSpec

ENGINE = "llama_cpp"


class Bases:
    """The models that registered ones can stand on.

    Args:
        specs: the configured models.
        taken: further names that a registered model may not have.
    """

    def __init__(self, specs: Sequence[ModelSpec], taken: Sequence[str] = ()) -> None:
        self._specs = {name: spec for spec in specs for name in (spec.name, *spec.aliases)}
        self._taken = frozenset(taken)
        self._digests: dict[tuple[Path, int, int], str] = {}

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
        if spec.engine != ENGINE:
            raise Unsupported(
                f"the base {name!r} runs on the engine {spec.engine}; what was trained can stand on {ENGINE} alone"
            )
        return spec

    async def file(self, spec: ModelSpec) -> tuple[Path, str]:
        """Return a model's file and its digest, which is computed once.

        Raises:
            InvalidRequest: the file is not there.
        """
        path = locate(spec.source)
        facts = path.stat()
        known = (path, facts.st_size, facts.st_mtime_ns)
        if known not in self._digests:
            self._digests[known] = await anyio.to_thread.run_sync(file_digest, path)
        return path, self._digests[known]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
