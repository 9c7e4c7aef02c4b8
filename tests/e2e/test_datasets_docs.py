"""What docs/datasets.md says is so: its operations, its formats, its configuration, its limits."""

from __future__ import annotations

import re
import tomllib

import pytest
from support.pages import blocks, page

from ayllu.actors.datasets.actor import MAX_BYTES
from ayllu.actors.datasets.formats import FORMATS, MAX_JSON_BYTES, format_of
from ayllu.actors.datasets.settings import DatasetsConfig
from ayllu.actors.fetching import MAX_REDIRECTS
from ayllu.runtime.config import Config
from ayllu.runtime.dataset_files import SENT_BYTES
from ayllu.schemas import OPERATIONS, DatasetColumnType
from ayllu.schemas.wire import convert

pytestmark = pytest.mark.requirement("examples-run")

PAGE = page("datasets.md")


def test_all_operations_stand_there() -> None:
    named = re.findall(r"^\| `(datasets\.\w+)`", PAGE, re.MULTILINE)
    assert set(named) == {name for name in OPERATIONS if name.startswith("datasets.")}


def test_all_formats_and_what_tells_them() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`\..*?) \|", PAGE, re.MULTILINE)
    assert [format_ for format_, _ in rows] == list(FORMATS)
    for format_, told in rows:
        for name in re.findall(r"`(.*?)`", told):
            url = f"https://h/x{name}" if name.startswith(".") else f"data:{name},"
            assert format_of(url) == format_


def test_all_types_of_columns() -> None:
    [table] = re.findall(r"^## Columns\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(DatasetColumnType)


def test_the_limits() -> None:
    assert f"at most {MAX_BYTES >> 10} KiB" in PAGE
    assert f"to {SENT_BYTES >> 10} KiB" in PAGE
    assert f"at most {MAX_JSON_BYTES >> 20} MiB" in PAGE
    assert f"at most {MAX_REDIRECTS} redirects" in PAGE


def test_the_configuration() -> None:
    [text] = [text for kind, text in blocks(PAGE) if kind == "toml"]
    configured = convert(tomllib.loads(text), Config).datasets
    assert configured.private_hosts == ["files.intranet:8080"]
    default = DatasetsConfig()
    assert (configured.max_bytes, configured.timeout) == (default.max_bytes, default.timeout)
    [whole] = [text for kind, text in blocks(page("configuration.md")) if kind == "toml"]
    assert convert(tomllib.loads(whole), Config).datasets == default
