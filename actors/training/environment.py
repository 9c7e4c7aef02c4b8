"""The environment of a process that loads torch: never online, without what would speak to its libraries."""

from __future__ import annotations

from collections.abc import Mapping

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
    # These processes tokenize in one thread, before they start others.
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


def torch_environment(device: str, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process that uses torch on a device.

    Args:
        device: ``cpu``, ``cuda:0``, or ``cuda`` for all that this process sees.
        base: what it is built on. What would speak to the libraries in it (a rank, options of Accelerate's, credentials of
            a hub) is left out.
    """
    made = {name: value for name, value in base.items() if not _speaks_to_libraries(name)}
    made |= _OFFLINE
    if device == "cpu":
        made["CUDA_VISIBLE_DEVICES"] = ""
    elif ":" in device:
        made["CUDA_VISIBLE_DEVICES"] = _visible(device, base)
    return made


def _speaks_to_libraries(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _RANK


def _visible(device: str, base: Mapping[str, str]) -> str:
    """Return the one device that a process may see: of several, it would take all."""
    number = device.partition(":")[2]
    known = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return known[int(number)] if int(number) < len(known) else number
