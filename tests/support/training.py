"""A trainer's child as tests start it: a tiny model, what it shall do, and the trainer's end of its socket.

Nothing here imports torch: what needs it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ayllu.actors.training.launching import child_command, child_environment
from ayllu.actors.training.protocol import (
    BEAT_SECONDS,
    BaseModel,
    Beat,
    Completed,
    DataFile,
    Failed,
    FromChild,
    FromTrainer,
    Kept,
    Log,
    Measured,
    RunSpec,
    Saved,
    Sealing,
    Stop,
    Stopped,
    from_child,
    write_run,
)
from ayllu.schemas import (
    DatasetColumnType,
    DPOAlignmentConfig,
    FinetuningAlgorithm,
    LoggerConfig,
    LoraFinetuningConfig,
    OptimizerConfig,
    OptimizerType,
    TrainingConfig,
    encode,
)

M = TypeVar("M")
CHILD_SECONDS = 100.0

_MAKE_MODEL = """
import sys, torch
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
folder = Path(sys.argv[1])
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
tokenizer.train_from_iterator([], trainers.BpeTrainer(
    special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
fast = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>")
fast.chat_template = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\\\n' + m['content'] + '<|im_end|>' + '\\\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\\\n' }}{% endif %}")
fast.save_pretrained(folder)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(
    vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, initializer_range=0.1,
    bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id,
)).save_pretrained(folder)
"""


def tiny_model(folder: Path) -> Path:
    """Make a random Llama of 2 layers with a tokenizer of bytes and ChatML; return its folder, in Hugging Face's format."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _MAKE_MODEL, str(folder)],
        check=True,
        timeout=CHILD_SECONDS,
        capture_output=True,
    )
    return folder


def dialogs(count: int) -> list[dict[str, Any]]:
    """Return examples that even a tiny model learns from."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"What comes after {number}?"},
                {"role": "assistant", "content": f"After it comes {number + 1}."},
            ]
        }
        for number in range(count)
    ]


def preferences(count: int) -> list[dict[str, Any]]:
    """Return pairs for preference optimisation, as text."""
    return [
        {"prompt": f"{number}: ", "chosen": "yes, it is", "rejected": "no"}
        for number in range(count)
    ]


def data_file(path: Path, rows: Sequence[dict[str, Any]]) -> DataFile:
    """Write examples to a file, with the columns that they have."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {
        name: DatasetColumnType.text if isinstance(value, str) else DatasetColumnType.dialog
        for name, value in rows[0].items()
    }
    return DataFile(str(path), "jsonl", columns, path.stem)


def lora(**changes: Any) -> LoraFinetuningConfig:
    """Return a configuration of adapters."""
    plain = LoraFinetuningConfig(
        lora_attn_modules=["q_proj", "v_proj"],
        apply_lora_to_mlp=False,
        apply_lora_to_output=False,
        rank=4,
        alpha=8,
    )
    return msgspec.structs.replace(plain, **changes)


def run_spec(
    model: Path,
    folder: Path,
    *,
    rows: Sequence[dict[str, Any]] | None = None,
    training: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **changes: Any,
) -> RunSpec:
    """Return a run of LoRA over a dozen dialogs, its files in a folder, with what a test wants otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = dialogs(12) if rows is None else rows
    plain = RunSpec(
        job="job-1",
        attempt=1,
        base=BaseModel("tiny", str(model)),
        dataset=data_file(folder / "train.jsonl", rows),
        validation=data_file(folder / "validation.jsonl", rows[:4]),
        method="sft",
        algorithm=FinetuningAlgorithm.lora,
        adapter=lora(),
        optimizer=msgspec.structs.replace(
            OptimizerConfig(OptimizerType.adamw, 1e-2, 1e-3, 0.0), **(optimizer or {})
        ),
        training=msgspec.structs.replace(
            TrainingConfig(
                n_epochs=0,
                batch_size=4,
                shuffle=True,
                n_iters=6,
                enable_activation_checkpointing=False,
                memory_efficient_fsdp_wrap=False,
                fsdp_cpu_offload=False,
                checkpoint_every=2,
                keep_checkpoints=2,
            ),
            **(training or {}),
        ),
        logger=LoggerConfig(tensorboard=False),
        threads=1,
    )
    return msgspec.structs.replace(plain, **changes)


def dpo_spec(
    model: Path, folder: Path, *, checkpoint: str | None = None, **changes: Any
) -> RunSpec:
    """Return a run of preference optimisation over a dozen pairs."""
    changes.setdefault("rows", preferences(12))
    changes.setdefault("alignment", DPOAlignmentConfig(0.1, 0.0, 0.0, 0.0))
    return run_spec(
        model,
        folder,
        method="dpo",
        adapter=None,
        base=BaseModel("tiny", str(model), checkpoint=checkpoint),
        **changes,
    )


def reward_spec(model: Path, folder: Path, **changes: Any) -> RunSpec:
    """Return a run that makes a reward model of a dozen pairs."""
    changes.setdefault("rows", preferences(12))
    return run_spec(model, folder, method="reward", **changes)


@dataclass
class Told:
    """What a child said until its end.

    Attributes:
        messages: all messages, in their order.
        status: its exit status.
        stderr: what its libraries wrote.
    """

    messages: list[FromChild] = field(default_factory=list)
    status: int | None = None
    stderr: str = ""

    def all(self, kind: type[M]) -> list[M]:
        """Return the messages of a kind."""
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def end(self) -> FromChild | None:
        """Its last message, if that tells of an end."""
        last = self.messages[-1] if self.messages else None
        return last if isinstance(last, Completed | Stopped | Failed) else None

    @property
    def completed(self) -> bool:
        """Whether it did all of its work."""
        return isinstance(self.end, Completed) and self.status == 0

    @property
    def losses(self) -> dict[int, float]:
        """The loss of each iteration."""
        found = [message.metrics for message in self.all(Measured)]
        return {one.iteration: one.loss for one in found if one.loss is not None}

    @property
    def validation_losses(self) -> dict[int, float]:
        """The loss of each validation."""
        found = [message.metrics for message in self.all(Measured)]
        return {
            one.iteration: one.validation_loss for one in found if one.validation_loss is not None
        }

    @property
    def saved(self) -> list[int]:
        """After which iterations it saved."""
        return [message.checkpoint.iters for message in self.all(Saved)]

    @property
    def log(self) -> str:
        """Its lines for people."""
        return "\n".join(line for message in self.all(Log) for line in message.lines)


class Child:
    """A child that runs, and the trainer's end of its socket, which beats until it is told to be silent."""

    def __init__(self, folder: Path, spec: RunSpec, limit_file_size: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_run(folder, spec)
        self.told = Told()
        self._sockets = Path(tempfile.mkdtemp(prefix="ayllu-test-"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._sockets / "s"))
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._beating = threading.Event()
        self._beating.set()
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        command = child_command(spec, folder)
        if limit_file_size is not None:
            # The kernel refuses writes behind that size, as it does on a full disk.
            command = ["prlimit", f"--fsize={limit_file_size}", *command]
        self.process = subprocess.Popen(
            command,
            env={**child_environment(spec, self._sockets / "s"), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            start_new_session=True,
        )
        self._readers: list[threading.Thread] = []
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def wait_for(self, what: Callable[[Told], object], seconds: float = CHILD_SECONDS) -> None:
        """Wait until something is true of what was told, or the child ends."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: what(self.told) or self._ended.is_set(), timeout=seconds
            )
            assert found, f"not within {seconds} s; told so far: {self.told.messages[-5:]}"

    def stop(self) -> None:
        """Ask for an end."""
        self._say(Stop())

    def fall_silent(self) -> None:
        """Beat no more, but hold the sockets open."""
        self._beating.clear()

    def hang_up(self) -> None:
        """Close all sockets, as a trainer that dies."""
        self._beating.clear()
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)

    @property
    def processes(self) -> int:
        """How many processes said hello."""
        return len(self._connections)

    def wait(self, seconds: float = CHILD_SECONDS) -> Told:
        """Wait for its end, and return what it told."""
        try:
            self.told.status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._ended.set()
        self._server.join(10)
        for reader in self._readers:
            reader.join(10)
        self._errors.seek(0)
        self.told.stderr = self._errors.read()
        with self._changed:
            self._changed.notify_all()
        return self.told

    def close(self) -> None:
        """Kill what still runs, and leave nothing."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
            self.process.wait(10)
        self._ended.set()
        self._server.join(10)
        for connection in self._connections:
            connection.close()
        self._listener.close()
        self._errors.close()
        shutil.rmtree(self._sockets)

    def _say(self, message: FromTrainer) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.sendall(encode(message) + b"\n")

    def _serve(self) -> None:
        beaten = 0.0
        while not self._ended.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                reader = threading.Thread(target=self._read, args=(connection,), daemon=True)
                self._readers.append(reader)
                reader.start()
            if self.process.poll() is not None:
                with self._changed:
                    self._ended.set()
                    self._changed.notify_all()
            if self._beating.is_set() and time.monotonic() - beaten > BEAT_SECONDS / 2:
                beaten = time.monotonic()
                self._say(Beat())

    def _read(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            try:
                for line in lines:
                    message = from_child.decode(line)
                    if isinstance(message, Sealing):
                        if self._beating.is_set():
                            self._say(Kept())
                        continue
                    with self._changed:
                        self.told.messages.append(message)
                        self._changed.notify_all()
            except OSError:
                pass


@contextmanager
def started_child(
    folder: Path, spec: RunSpec, *, limit_file_size: int | None = None
) -> Iterator[Child]:
    """Start a child in a job's folder; what of it still runs at the end of the block is killed."""
    child = Child(folder, spec, limit_file_size)
    try:
        yield child
    finally:
        child.close()


def run_child(folder: Path, spec: RunSpec, *, limit_file_size: int | None = None) -> Told:
    """Run a child to its end, and return what it told."""
    with started_child(folder, spec, limit_file_size=limit_file_size) as child:
        return child.wait()


def run_children(runs: Sequence[tuple[Path, RunSpec]]) -> list[Told]:
    """Run children to their ends, two at a time: most of a short one's time is one thread that imports."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda run: run_child(*run), runs))
