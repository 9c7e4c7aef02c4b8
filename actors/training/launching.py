"""How a trainer's child is started: one process, or several that train together. Nothing here needs torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from .protocol import SOCKET_VARIABLE, RunSpec

_CHILD = "ayllu.actors.training.child"
_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_RANK = frozenset(
    ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
)
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    # The trainers tokenize in one thread, before they start others.
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
    "USE_TF": "0",
    "USE_FLAX": "0",
    # Threads that spin at barriers starve each other where they do not have the cores to themselves: beside one busy
    # process on two cores, an iteration took twenty times as long, and alone they are no faster for it.
    "OMP_WAIT_POLICY": "passive",
    # What libraries tell their developers is no news of a job.
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}


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
    base = os.environ if environment is None else environment
    made = {name: value for name, value in base.items() if not _speaks_to_libraries(name)}
    made |= {**_OFFLINE, SOCKET_VARIABLE: str(socket)}
    if spec.device == "cpu":
        made |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    elif ":" in spec.device:
        made["CUDA_VISIBLE_DEVICES"] = _visible(spec.device, base)
    if (threads := _threads(spec)) > 0:
        made["OMP_NUM_THREADS"] = str(threads)
    return made


def _speaks_to_libraries(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _RANK


def _threads(spec: RunSpec) -> int:
    if spec.threads or spec.processes == 1:
        return spec.threads
    return max(1, (os.cpu_count() or 1) // spec.processes)


def _visible(device: str, base: Mapping[str, str]) -> str:
    """Return the one device that a process may see: of several, it would take all."""
    number = device.partition(":")[2]
    known = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return known[int(number)] if int(number) < len(known) else number


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
