"""A run from its beginning to its end: load, build a trainer, train, and go on where an earlier attempt ended."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ....schemas import FinetuningAlgorithm
from ..protocol import LOCK_FILE, DataFile, RunSpec, Started
from . import weights
from .plan import Plan, check_limits, make_plan
from .saving import empty_work, find_newest, going_on
from .session import Session

if TYPE_CHECKING:
    from accelerate import PartialState
    from datasets import Dataset

    from .tokens import Encoder

_PATIENCE = timedelta(days=7)
"""How long processes wait for each other: one may convert or save for long, and the trainer's beats tell of death."""


class _State(msgspec.Struct):
    """What we read of the state that a trainer leaves."""

    global_step: int


def run(folder: Path, spec: RunSpec, session: Session) -> None:
    """Do what a job's file says; returns once all of it is done.

    Raises:
        AylluError: it cannot be done.
        OSError: something cannot be read or written.
    """
    check_limits(spec)
    session.phase("preparing")
    import torch
    from accelerate import PartialState

    if spec.threads:
        torch.set_num_threads(spec.threads)
    state = PartialState(cpu=spec.device == "cpu", timeout=_PATIENCE)
    if session.leading:
        with _alone(folder, session):
            empty_work(folder)
            find_newest(folder, session)
            weights.prepare(spec.base, session.log)
            state.wait_for_everyone()
            _train(folder, spec, session, state)
    else:
        # The first process makes what all of them read.
        state.wait_for_everyone()
        _train(folder, spec, session, state)
    session.complete()


@contextmanager
def _alone(folder: Path, session: Session) -> Iterator[None]:
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            session.log("waiting for the end of an earlier attempt")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _train(folder: Path, spec: RunSpec, session: Session, state: PartialState) -> None:
    from .building import Work, build_trainer
    from .tokens import Encoder

    tokenizer = weights.load_tokenizer(spec.base)
    encoder = Encoder(tokenizer)
    longest = spec.training.max_length or weights.context_of(Path(spec.base.weights))
    data = _load(spec, spec.dataset, encoder, longest, session)
    validation = _load(spec, spec.validation, encoder, longest, session)
    plan = make_plan(spec, len(data))
    after = _iterations_done(folder)
    _say(spec, plan, after, session)
    if spec.processes > 1 and len(data) % spec.training.batch_size:
        session.log("the last iteration of an epoch is filled up with examples of its beginning")
    if after >= plan.total:
        session.tell(Started(plan.total, after, {}))
        return
    assert state.device is not None
    work = Work(folder, spec, plan, tokenizer, data, validation, state.device)
    trainer = build_trainer(work, session)
    trainer.train(resume_from_checkpoint=str(going_on(folder)) if after else None)


def _load(
    spec: RunSpec, file: DataFile, encoder: Encoder, longest: int, session: Session
) -> Dataset:
    from .data import load_examples

    data, tokens = load_examples(file, encoder, spec.method, longest)
    session.log(f"{file.name}: {len(data)} examples, {tokens} tokens")
    return data


def _iterations_done(folder: Path) -> int:
    try:
        state = (going_on(folder) / "trainer_state.json").read_bytes()
    except FileNotFoundError:
        return 0
    return msgspec.json.decode(state, type=_State).global_step


def _say(spec: RunSpec, plan: Plan, after: int, session: Session) -> None:
    session.log(
        f"{plan.total} iterations of {spec.training.batch_size} examples, {plan.epochs:g} epochs; "
        f"a checkpoint each {plan.checkpoint_every} iterations"
    )
    if after:
        session.log(f"going on after iteration {after}")
    if spec.method != "dpo" and spec.algorithm is FinetuningAlgorithm.full:
        session.log("algorithm_config has no effect: all weights are trained")
    elif spec.method == "reward" and spec.adapter is not None and spec.adapter.apply_lora_to_output:
        session.log("apply_lora_to_output has no effect: the head that scores is trained whole")
    sharded = {
        "memory_efficient_fsdp_wrap": spec.training.memory_efficient_fsdp_wrap,
        "fsdp_cpu_offload": spec.training.fsdp_cpu_offload,
    }
    if spec.processes == 1 or spec.device == "cpu":
        why = "one process trains" if spec.processes == 1 else "training is on CPUs"
        for name, wanted in sharded.items():
            if wanted:
                session.log(f"{name} has no effect: {why}")
