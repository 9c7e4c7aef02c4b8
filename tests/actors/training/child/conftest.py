from __future__ import annotations

from pathlib import Path

import pytest
from support.training import tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that all tests share; it is only read."""
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")
