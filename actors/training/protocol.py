"""What a trainer and the process that it trains in say to each other.

The child is told its work by the file `RUN_FILE` in the job's folder, and by the path of a socket of the trainer, to which
each of its processes connects. On that, a message is a line of JSON. The trainer says that it is there each
`BEAT_SECONDS`; a process that has not heard of it for `PATIENCE_SECONDS`, or finds the socket closed, ends itself.

The job's folder:

    run.json                 what to do (`RunSpec`)
    lock                     held by the child with `flock`: at most one works in the folder
    checkpoints/checkpoint-N a whole checkpoint (`checkpoints.py`)
    work/                    what is not whole; emptied at the start
    tensorboard/             TensorBoard's files
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from ...schemas import (
    Checkpoint,
    DatasetColumnType,
    DPOAlignmentConfig,
    FinetuningAlgorithm,
    JobMetrics,
    LoggerConfig,
    LoraFinetuningConfig,
    OptimizerConfig,
    TrainingConfig,
    decode,
    encode,
)
from ..datasets.examples import Method

RUN_FILE = "run.json"
LOCK_FILE = "lock"
CHECKPOINTS = "checkpoints"
WORK = "work"
TENSORBOARD = "tensorboard"
SOCKET_VARIABLE = "AYLLU_TRAINER_SOCKET"
BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 10.0


class DataFile(msgspec.Struct, frozen=True):
    """A dataset as a file that does not change.

    Attributes:
        path: where it is.
        format: how it is written, as `ayllu.actors.datasets.formats` names it.
        columns: the declared columns.
        name: what messages call it.
    """

    path: str
    format: str
    columns: dict[str, DatasetColumnType]
    name: str


class BaseModel(msgspec.Struct, frozen=True):
    """The weights that training begins with.

    Attributes:
        name: the model's name, as requests have it.
        gguf: a GGUF file that is made into torch weights, once for all jobs, under ``weights``.
        weights: a folder in Hugging Face's format, or where it is made from ``gguf``.
        checkpoint: a job's checkpoint on these weights, which training goes on with; for DPO.
    """

    name: str
    weights: str
    gguf: str | None = None
    checkpoint: str | None = None


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a child has to do.

    Attributes:
        job: the job's id.
        attempt: which attempt this is, from 1. What an earlier one left whole is gone on with.
        base: what is trained.
        dataset: what it is trained on.
        validation: what it is validated with.
        method: ``sft``, ``dpo`` or ``reward``.
        algorithm: what is trained of the weights; not for ``dpo``, which goes on with what it is given.
        adapter: the configuration of adapters; without effect where ``algorithm`` is ``full``.
        alignment: the loss of ``dpo``.
        optimizer: the optimizer.
        training: how long, and how.
        logger: what is told.
        processes: how many processes train.
        device: ``cpu``, or ``cuda:0``; with several processes ``cpu``, or ``cuda``.
        threads: of each process, on a CPU; 0 leaves it to torch.
    """

    job: str
    attempt: int
    base: BaseModel
    dataset: DataFile
    validation: DataFile
    method: Method
    algorithm: FinetuningAlgorithm = FinetuningAlgorithm.full
    adapter: LoraFinetuningConfig | None = None
    alignment: DPOAlignmentConfig | None = None
    optimizer: OptimizerConfig
    training: TrainingConfig
    logger: LoggerConfig
    processes: int = 1
    device: str = "cpu"
    threads: int = 0


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The first message of each process; only that of rank 0 sends others."""

    rank: int
    pid: int


class Log(msgspec.Struct, frozen=True, tag="log"):
    """Lines for people."""

    lines: list[str]


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """What is done now: ``preparing``, ``training``, ``validating``, ``saving``."""

    phase: str


class Started(msgspec.Struct, frozen=True, tag="started"):
    """Training begins, or goes on after an iteration."""

    total: int
    after: int
    resources: dict[str, str | int | float]


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """Figures."""

    metrics: JobMetrics


class Sealing(msgspec.Struct, frozen=True, tag="sealing"):
    """A checkpoint is about to be made whole: the child waits for `Kept`, so that no checkpoint holds what nobody was told."""

    iters: int


class Saved(msgspec.Struct, frozen=True, tag="saved"):
    """A checkpoint is whole; ``pruned`` are the iterations of those that were removed for it."""

    checkpoint: Checkpoint
    pruned: list[int] = []


class Completed(msgspec.Struct, frozen=True, tag="completed"):
    """The work is done; the last message."""


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """It was stopped as it was asked to; the last message."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It cannot be done; the last message. Anything else that ends the process is a crash, which is tried again.

    Attributes:
        code: an error code of `ayllu.schemas.errors`, or ``storage`` where a disk is full or broken.
        message: for people.
    """

    code: str
    message: str


FromChild = (
    Hello | Log | Phase | Started | Measured | Sealing | Saved | Completed | Stopped | Failed
)


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """The trainer is there."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Stop within an iteration, without a new checkpoint."""


class Kept(msgspec.Struct, frozen=True, tag="kept"):
    """All that was told before the last `Sealing` is kept, whatever dies."""


FromTrainer = Beat | Stop | Kept

from_child: msgspec.json.Decoder[FromChild] = msgspec.json.Decoder(FromChild)
from_trainer: msgspec.json.Decoder[FromTrainer] = msgspec.json.Decoder(FromTrainer)


def read_run(folder: Path) -> RunSpec:
    """Return what is to be done in a job's folder.

    Raises:
        InvalidRequest: the file is not one of ours.
    """
    return decode((folder / RUN_FILE).read_bytes(), RunSpec)


def write_run(folder: Path, spec: RunSpec) -> None:
    """Say what is to be done in a job's folder."""
    made = folder / f"{RUN_FILE}.new"
    made.write_bytes(encode(spec))
    made.replace(folder / RUN_FILE)
