from __future__ import annotations

from pathlib import Path

import pytest
from support.training import run_spec

from ayllu.actors.training.launching import child_command, child_environment
from ayllu.actors.training.protocol import SOCKET_VARIABLE

SOCKET = Path("/run/trainer.sock")
KNOWN = {"PATH": "/bin", "RANK": "3", "ACCELERATE_USE_FSDP": "true", "HF_TOKEN": "secret"}


@pytest.mark.requirement("child-processes")
def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    command = child_command(run_spec(tmp_path, tmp_path), tmp_path)
    assert command[1:] == ["-m", "ayllu.actors.training.child", str(tmp_path)]


@pytest.mark.requirement("child-processes")
def test_several_on_cuda_are_started_by_accelerate_which_shards_the_model(tmp_path: Path) -> None:
    spec = run_spec(tmp_path, tmp_path, processes=2, device="cuda")
    assert "--multi_gpu" in child_command(spec, tmp_path)
    wrap = {"memory_efficient_fsdp_wrap": True, "fsdp_cpu_offload": True}
    spec = run_spec(tmp_path, tmp_path, processes=2, device="cuda", training=wrap)
    command = child_command(spec, tmp_path)
    assert "accelerate.commands.launch" in command
    assert "--num_processes=2" in command
    assert "--use_fsdp" in command
    assert "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP" in command
    assert "--fsdp_offload_params=true" in command


@pytest.mark.requirement("child-offline")
def test_a_child_is_never_online_and_knows_no_credentials_of_a_hub(tmp_path: Path) -> None:
    made = child_environment(run_spec(tmp_path, tmp_path), SOCKET, KNOWN)
    assert made["HF_HUB_OFFLINE"] == made["TRANSFORMERS_OFFLINE"] == "1"
    assert made[SOCKET_VARIABLE] == str(SOCKET)
    assert made["PATH"] == "/bin"
    assert made["CUDA_VISIBLE_DEVICES"] == ""
    assert made["OMP_NUM_THREADS"] == "1"
    assert not made.keys() & (KNOWN.keys() - {"PATH"})


@pytest.mark.requirement("child-processes")
@pytest.mark.parametrize(("visible", "seen"), [({}, "1"), ({"CUDA_VISIBLE_DEVICES": "4,7"}, "7")])
def test_one_process_sees_one_device(tmp_path: Path, visible: dict[str, str], seen: str) -> None:
    spec = run_spec(tmp_path, tmp_path, device="cuda:1")
    assert child_environment(spec, SOCKET, visible)["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.requirement("child-processes")
def test_several_share_the_processors(tmp_path: Path) -> None:
    several = run_spec(tmp_path, tmp_path, processes=64, threads=0)
    assert child_environment(several, SOCKET, {})["OMP_NUM_THREADS"] == "1"
    alone = run_spec(tmp_path, tmp_path, threads=0)
    assert "OMP_NUM_THREADS" not in child_environment(alone, SOCKET, {})
