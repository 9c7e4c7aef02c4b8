"""``ayllu synthesize``: its file of prompts, and a job that fails, through a gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.gateway import running_gateway
from support.synthetic import running_generation

from ayllu.runtime.arguments import build_parser
from ayllu.runtime.job_commands import JobFailed
from ayllu.runtime.prompt_files import read_prompts
from ayllu.runtime.synthesis_commands import run_synthesize

pytestmark = pytest.mark.requirement("synthetic-command")


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_line_ends_where_a_file_says_and_nowhere_else(
    tmp_path: Path, suffix: str, end: str
) -> None:
    texts = ["a\u2028b", "c\u0085d", "e\u000cf" if suffix == ".txt" else "e"]
    lines = texts
    if suffix == ".jsonl":
        lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    file = tmp_path / f"prompts{suffix}"
    file.write_bytes("".join(line + end for line in lines).encode())
    prompts, references = read_prompts(file)
    assert [prompt.content for prompt in prompts] == texts
    assert references == []


@pytest.mark.asyncio
@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_a_job_that_fails_is_an_error(options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("say a\n")
    command = ["synthesize", str(file), "--model", "other", "--job", "a", *options]
    async with running_gateway() as running, running_generation(running.bus, tmp_path):
        with pytest.raises(JobFailed, match="no live actor serves the model 'other'"):
            await run_synthesize(running.url, None, build_parser().parse_args(command))
