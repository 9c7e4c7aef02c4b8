"""A double of the training child: it speaks the protocol, keeps the folder, and "trains" a loss that is a formula.

    python scripted_child.py JOB_FOLDER PLAN

PLAN is JSON: ``every`` iterations a checkpoint is made, ``pace`` seconds are between iterations, and at iteration ``at`` of an
attempt, something is done: ``act`` is ``crash`` (exit status 3), ``kill`` (SIGKILL itself), ``hang``, ``fail``, ``deaf`` (does
not stop), ``chatter`` (prints), in attempts up to ``until``. ``prepare`` seconds pass before it begins.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ayllu.actors.training.checkpoints import (
    Manifest,
    checkpoint_folder,
    checkpoints_in,
    prune,
    seal,
    verify,
)
from ayllu.actors.training.protocol import (
    CHECKPOINTS,
    LOCK_FILE,
    PATIENCE_SECONDS,
    SOCKET_VARIABLE,
    WORK,
    Completed,
    Failed,
    FromChild,
    Hello,
    Kept,
    Log,
    Measured,
    Phase,
    RunSpec,
    Saved,
    Sealing,
    Started,
    Stop,
    Stopped,
    from_trainer,
    read_run,
)
from ayllu.schemas import Checkpoint, JobMetrics, encode


class Child:
    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        self.plan = plan
        self.spec: RunSpec = read_run(folder)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ[SOCKET_VARIABLE])
        self.socket.settimeout(PATIENCE_SECONDS)
        self.stop = threading.Event()
        self.kept = threading.Event()
        self.say(Hello(0, os.getpid()))
        threading.Thread(target=self.listen, daemon=True).start()

    def say(self, message: FromChild) -> None:
        self.socket.sendall(encode(message) + b"\n")

    def listen(self) -> None:
        with self.socket.makefile("rb") as lines:
            try:
                for line in lines:
                    message = from_trainer.decode(line)
                    if isinstance(message, Stop):
                        self.stop.set()
                    elif isinstance(message, Kept):
                        self.kept.set()
            except TimeoutError:
                pass
        os._exit(4)

    def loss(self, iteration: int) -> float:
        """A pure function of the iteration and the request: an attempt that goes on gives the same ones."""
        rate = self.spec.optimizer.lr
        return abs(rate - 0.01) * 10 + 1.0 / iteration

    def run(self) -> None:
        self.say(Phase("preparing"))
        with (self.folder / LOCK_FILE).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.stop.wait(self.plan.get("prepare", 0.0)):
                self.say(Stopped())
                return
            self.train()

    def train(self) -> None:
        made = checkpoints_in(self.folder / CHECKPOINTS)
        after = verify(made[-1][1]).iters if made else 0
        total = self.spec.training.n_iters
        self.say(Started(total, after, {"pid": os.getpid(), "processes": self.spec.processes}))
        self.say(Phase("training"))
        for iteration in range(after + 1, total + 1):
            if iteration == self.plan.get("at") and self.spec.attempt <= self.plan.get("until", 99):
                self.act(self.plan["act"])
            deaf = self.plan.get("act") == "deaf"
            time.sleep(self.plan.get("pace", 0.0))
            if self.stop.is_set() and not deaf:
                self.say(Stopped())
                return
            metrics = JobMetrics(
                iteration=iteration, total=total, loss=self.loss(iteration), tokens=iteration * 100
            )
            self.say(Measured(metrics))
            if iteration % self.plan.get("every", 5) == 0 or iteration == total:
                self.save(iteration, total)
        self.say(Completed())

    def save(self, iteration: int, total: int) -> None:
        loss = self.loss(iteration) + 0.1
        self.say(Measured(JobMetrics(iteration=iteration, total=total, validation_loss=loss)))
        work = self.folder / WORK
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "adapter_model.safetensors").write_bytes(b"weights of %d" % iteration)
        described = Manifest(
            job=self.spec.job,
            iters=iteration,
            kind="adapter",
            base=self.spec.base.name,
            validation_loss=loss,
            files=[],
        )
        target = checkpoint_folder(self.folder / CHECKPOINTS, iteration)
        self.kept.clear()
        self.say(Sealing(iteration))
        self.kept.wait()
        seal(work, target, described)
        pruned = prune(self.folder / CHECKPOINTS, self.spec.training.keep_checkpoints)
        self.say(Saved(Checkpoint(iteration, target.resolve().as_uri(), "adapter", loss), pruned))

    def act(self, what: str) -> None:
        if what == "crash":
            print("something broke", flush=True)  # noqa: T201
            sys.exit(3)
        elif what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "hang":
            self.say(Log(["hanging"]))
            threading.Event().wait()
        elif what == "fail":
            self.say(Failed("invalid_request", "the data is not fit for this"))
            sys.exit(0)
        elif what == "chatter":
            print("\r10%\r100%\nwarning: \x1b[31mred\x1b[0m", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    Child(Path(sys.argv[1]), json.loads(sys.argv[2])).run()
