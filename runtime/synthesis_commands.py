"""``ayllu synthesize``: data generated in a job, followed, and counted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from secrets import token_hex
from shlex import quote
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table

from ..client import Stack, connect
from ..schemas import (
    InvalidRequest,
    Message,
    RewardScoringConfig,
    Role,
    ScoreDistribution,
    SyntheticDataGenerationRequest,
    SyntheticDataJobRequest,
    SyntheticDataset,
    SyntheticDataStatistics,
    encode,
)
from ..schemas.wire import convert
from .candidate_counts import counts_of_left_out
from .job_commands import check_end, followed, show_job
from .prompt_files import read_prompts

BAR = " ▁▂▃▄▅▆▇█"


async def run_synthesize(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu synthesize`` was asked for.

    Raises:
        JobFailed: the job has failed.
        AylluError: it could not be started, or followed.
    """
    job = job_of(options)  # Errors in it need no gateway.
    async with connect(url, token=token) as stack:
        await stack.synthetic_data_generation.job.start(job)
        sys.stderr.write(f"job {job.job_uuid}: ayllu logs -f {quote(job.job_uuid)}\n")
        if options.detach:
            sys.stdout.write(f"{job.job_uuid}\n")
        else:
            await _follow(stack, job.job_uuid, as_json=options.json)


async def _follow(stack: Stack, job: str, *, as_json: bool) -> None:
    data = stack.synthetic_data_generation.job
    if not as_json:
        await show_job(stack, job)
        Console().print(table_of(await data.statistics(job)))
        return
    last = None
    async for event in followed(stack, job):
        last = event
    # What was finished before a job failed is there all the same.
    async for prompt in data.results(job):
        sys.stdout.write(encode(prompt).decode() + "\n")
    check_end(job, last)


def job_of(options: argparse.Namespace) -> SyntheticDataJobRequest:
    """Return the request that options stand for.

    Raises:
        InvalidRequest: they contradict each other, or a file is wrong.
    """
    prompts, references = read_prompts(Path(options.prompts))
    if options.threshold is not None and options.reward is None:
        raise InvalidRequest("--threshold is a score of a reward model: name one by --reward")
    if options.pairs and options.dataset is None:
        raise InvalidRequest("--pairs are written to a dataset: name it by --dataset")
    fields = {
        "filtering_function": options.filter,
        "model": options.model,
        "num_candidates": options.candidates,
        "k": options.k,
        "p": options.p,
        "temperature": options.temperature,
        "seed": options.seed,
        "max_tokens": options.max_tokens,
        "max_similarity": options.max_similarity,
        "target": options.target,
        "max_candidates": options.max_candidates,
    }
    # Numbers out of range are told by the field, as from a gateway.
    given = convert({"prompts": [], **fields}, SyntheticDataGenerationRequest)
    reward = RewardScoringConfig(options.reward, options.threshold) if options.reward else None
    context = [Message(Role.system, options.system)] if options.system else []
    request = msgspec.structs.replace(
        given,
        prompts=prompts,
        references=references,
        reward_scoring=reward,
        context=context,
        help=_messages(options.help_file) if options.help_file else [],
    )
    form: Literal["sft", "preference"] = "preference" if options.pairs else "sft"
    dataset = SyntheticDataset(options.dataset, form) if options.dataset else None
    return SyntheticDataJobRequest(options.job or f"data-{token_hex(4)}", request, dataset)


def _messages(path: str) -> list[Message]:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=list[Message])
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path} is no list of messages: {error}") from error


def table_of(counts: SyntheticDataStatistics) -> Table:
    """Return what became of the candidates of a job, for people."""
    table = Table(title=f"{counts.candidates} candidates to {counts.prompts} prompts")
    table.add_column("")
    table.add_column("candidates", justify="right")
    table.add_column("scores", no_wrap=True)
    for name, count in counts_of_left_out(counts):
        table.add_row(name, str(count))
    table.add_row("all that were scored", str(counts.before.count), _shown(counts.before))
    table.add_row("accepted", str(counts.accepted), _shown(counts.after))
    rate = counts.candidates / counts.seconds if counts.seconds else 0.0
    table.caption = (
        f"{counts.completion_tokens} tokens in {counts.seconds:.1f} s ({rate:.1f} candidates/s)"
    )
    return table


def _shown(scores: ScoreDistribution) -> str:
    if scores.mean is None:
        return ""
    most = max(scores.counts)
    bars = "".join(BAR[-(-count * (len(BAR) - 1) // most)] for count in scores.counts)
    low, high = scores.quantiles[0], scores.quantiles[-1]
    return f"mean {scores.mean:.3f}  {low:.3g} |{bars}| {high:.3g}"
