"""How a trainer's child is started: one process, or several that train together. Nothing here needs torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from .environment import torch_environment
from .protocol import SOCKET_VARIABLE, RunSpec

_CHILD = "ayllu.actors.training.child"


def child_command(spec: RunSpec, folder: Path) -> list[str]:
    """Return the command that does what a job's folder says.

    On CUDA several processes are started by Accelerate, which also shards the model (FSDP). On CPUs its launcher needs
    MPI, so there they are started by torch's, on whose environment Accelerate's state is built all the same. Both find a
    free port of the loopback interface themselves.
    """
    child = ["-m", _CHILD, str(folder)]
    if spec.processes == 1:
        return [sys.executable, *child]
    if spec.device == "cpu":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        return [sys.executable, *launcher, f"--nproc-per-node={spec.processes}", *child]
    launcher = ["-m", "accelerate.commands.launch", f"--num_processes={spec.processes}"]
    launcher += ["--num_machines=1", "--main_process_port=0", "--mixed_precision=no"]
    launcher += ["--dynamo_backend=no"]
    return [sys.executable, *launcher, *_sharding(spec), *child]


def child_environment(
    spec: RunSpec, socket: Path, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment of a child: that of this process, never online, with the trainer's socket.

    Args:
        spec: what it does.
        socket: where the trainer listens.
        environment: what it is built on; by default that of this process. What would speak to the libraries in it (a
            rank, options of Accelerate's, credentials of a hub) is left out.
    """
    made = torch_environment(spec.device, os.environ if environment is None else environment)
    made[SOCKET_VARIABLE] = str(socket)
    if spec.device == "cpu":
        made["ACCELERATE_USE_CPU"] = "true"
    if (threads := _threads(spec)) > 0:
        made["OMP_NUM_THREADS"] = str(threads)
    return made


def _threads(spec: RunSpec) -> int:
    if spec.threads or spec.processes == 1:
        return spec.threads
    return max(1, (os.cpu_count() or 1) // spec.processes)


def _sharding(spec: RunSpec) -> list[str]:
    training = spec.training
    if not (training.memory_efficient_fsdp_wrap or training.fsdp_cpu_offload):
        return ["--multi_gpu"]
    policy = "TRANSFORMER_BASED_WRAP" if training.memory_efficient_fsdp_wrap else "NO_WRAP"
    return [
        "--use_fsdp",
        "--fsdp_version=2",
        f"--fsdp_auto_wrap_policy={policy}",
        f"--fsdp_offload_params={str(training.fsdp_cpu_offload).lower()}",
        "--fsdp_state_dict_type=FULL_STATE_DICT",
        "--fsdp_reshard_after_forward=true",
    ]
