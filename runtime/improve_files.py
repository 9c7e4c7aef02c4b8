"""The file of a loop: TOML with the fields of `ImproveRequest`, where prompts may stand in files of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ..schemas import FilteringFunction, ImproveRequest, InvalidRequest, encode
from ..schemas.wire import convert
from .prompt_files import read_prompts
from .toml_files import read_toml
from .train_commands import Fields, default_sections, merged

PROMPTS = ("training_prompts", "held_out_prompts")
WITH_K = (FilteringFunction.top_k, FilteringFunction.top_k_top_p, FilteringFunction.random)


def request_of(path: Path, job: str | None) -> ImproveRequest:
    """Return the request that a file stands for.

    Args:
        path: the file.
        job: the loop's id; by default the file's own, or one that follows from what is asked for.

    Raises:
        InvalidRequest: the file cannot be read or is wrong; the message names it, and the path of the value.
    """
    fields = read_toml(path)
    try:
        for name in PROMPTS:
            if isinstance(fields.get(name), dict):
                fields[name] = _prompts(f"$.{name}", fields[name], path.parent)
        fields["training"] = _training(fields.get("training", {}))
        if isinstance(fields.get("generation"), dict):
            fields["generation"] = _generation(fields["generation"])
        named = job or fields.get("job_uuid")
        request = convert({**fields, "job_uuid": named or "-"}, ImproveRequest)
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error.message}") from error
    if named is None:
        digest = hashlib.sha256(encode(request)).hexdigest()
        request = replace(request, job_uuid=f"improve-{digest[:8]}")
    return request


def _prompts(where: str, given: Mapping[str, Any], folder: Path) -> Fields:
    """Return prompts as the request has them: from a file, or as they stand there, texts being what a user says."""
    if "file" in given:
        if set(given) != {"file"} or not isinstance(given["file"], str):
            raise InvalidRequest(f"`file` is the name of a file, and stands alone - at `{where}`")
        prompts, references = read_prompts(folder / given["file"])
        return {"prompts": msgspec.to_builtins(prompts), "references": references}
    fields = dict(given)
    if isinstance(fields.get("prompts"), list):
        fields["prompts"] = [
            {"role": "user", "content": one} if isinstance(one, str) else one
            for one in fields["prompts"]
        ]
    return fields


def _training(given: object) -> object:
    """Return how to train, where what is left out is as in ``ayllu train sft``."""
    if not isinstance(given, dict):
        return given
    algorithm = given.get("algorithm", "lora")
    config = given.get("training_config")
    limited = isinstance(config, dict) and bool(config.get("n_iters"))
    return merged({"algorithm": algorithm, **default_sections(algorithm, limited=limited)}, given)


def _generation(given: Fields) -> Fields:
    """Return how to generate; TOML cannot say that there is no k, so a filter that takes none has none."""
    function = given.get("filtering_function", FilteringFunction.top_k)
    return given if function in WITH_K else {"k": None, **given}
