"""The documents of the contract, as files and for the gateway: the counterpart of the draft's own generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..schemas import Operation
from ..schemas.asyncapi import asyncapi_document
from ..schemas.html import openapi_html
from ..schemas.openapi import openapi_document, to_yaml


def documents(operations: Mapping[str, Operation]) -> dict[str, str]:
    """Return the text of each document by its file name."""
    openapi = openapi_document(operations)
    return {
        "openapi.yaml": to_yaml(openapi),
        "openapi.html": openapi_html(openapi),
        "asyncapi.yaml": to_yaml(asyncapi_document(operations)),
    }


def write_documents(operations: Mapping[str, Operation], folder: Path) -> list[Path]:
    """Write all documents into a folder, created where it is missing, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, text in documents(operations).items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths
