from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ayllu.actors.training.checkpoints import (
    MANIFEST,
    PICKLES,
    RESUME,
    Manifest,
    checkpoint_folder,
    checkpoints_in,
    files_of,
    prune,
    read_manifest,
    refuse_pickles,
    remove,
    seal,
    verify,
)
from ayllu.schemas import InvalidRequest

DESCRIBED = Manifest(
    job="job-1", iters=2, kind="adapter", base="tiny", merge=True, validation_loss=1.5, files=[]
)


def sealed(folder: Path, iters: int = 2) -> Path:
    work = folder / "work" / f"{iters}"
    (work / RESUME).mkdir(parents=True)
    (work / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (work / RESUME / "optimizer.pt").write_bytes(b"state")
    target = checkpoint_folder(folder / "checkpoints", iters)
    seal(work, target, msgspec.structs.replace(DESCRIBED, iters=iters))
    return target


@pytest.mark.requirement("child-checkpoints-whole")
def test_a_sealed_checkpoint_verifies_and_tells_what_it_is(tmp_path: Path) -> None:
    target = sealed(tmp_path)
    manifest = verify(target)
    assert manifest == read_manifest(target)
    assert (manifest.job, manifest.iters, manifest.merge) == ("job-1", 2, True)
    assert [file.name for file in manifest.files] == [
        "adapter_model.safetensors",
        "resume/optimizer.pt",
    ]
    assert list((tmp_path / "work").iterdir()) == []
    assert checkpoints_in(tmp_path / "checkpoints") == [(2, target)]


@pytest.mark.requirement("child-checkpoints-whole")
def test_sealing_again_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    sealed(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-2" / "stray").touch()
    verify(sealed(tmp_path))


@pytest.mark.requirement("child-checkpoints-whole")
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "resume/optimizer.pt"])
def test_a_changed_file_is_noticed(tmp_path: Path, name: str) -> None:
    target = sealed(tmp_path)
    data = bytearray((target / name).read_bytes())
    data[0] ^= 1
    (target / name).write_bytes(data)
    with pytest.raises(InvalidRequest, match=f"{name} in checkpoint-2 is not what was written"):
        verify(target)


@pytest.mark.requirement("child-checkpoints-whole")
def test_a_missing_file_is_noticed_but_how_to_go_on_may_be_gone(tmp_path: Path) -> None:
    target = sealed(tmp_path)
    (target / RESUME / "optimizer.pt").unlink()
    verify(target)
    (target / "adapter_model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="lacks adapter_model"):
        verify(target)


@pytest.mark.requirement("child-checkpoints-whole")
def test_an_added_file_is_noticed(tmp_path: Path) -> None:
    target = sealed(tmp_path)
    (target / "more.json").touch()
    with pytest.raises(InvalidRequest, match=r"not its own: more.json"):
        verify(target)


@pytest.mark.requirement("child-checkpoints-whole")
def test_a_link_is_no_file_of_a_checkpoint(tmp_path: Path) -> None:
    target = sealed(tmp_path)
    (target / "passwords").symlink_to("/etc/passwd")
    with pytest.raises(InvalidRequest, match="passwords is not a plain file"):
        list(files_of(target))


@pytest.mark.requirement("child-checkpoints-whole")
def test_without_a_manifest_of_ours_there_is_no_checkpoint(tmp_path: Path) -> None:
    target = sealed(tmp_path)
    (target / MANIFEST).write_text('{"job": 1}')
    with pytest.raises(InvalidRequest, match="the manifest of checkpoint-2 is wrong"):
        verify(target)
    (target / MANIFEST).unlink()
    with pytest.raises(InvalidRequest, match="no manifest"):
        verify(target)
    assert checkpoints_in(tmp_path / "checkpoints") == []


def test_only_what_is_named_so_is_a_checkpoint(tmp_path: Path) -> None:
    assert checkpoints_in(tmp_path / "nowhere") == []
    target = sealed(tmp_path)
    target.rename(target.with_name("removing-checkpoint-2"))
    assert checkpoints_in(tmp_path / "checkpoints") == []


@pytest.mark.requirement("child-checkpoints-pruned")
def test_the_newest_are_kept_and_two_of_them_can_be_gone_on_with(tmp_path: Path) -> None:
    for iters in (10, 2, 4, 6):
        sealed(tmp_path, iters)
    checkpoints = tmp_path / "checkpoints"
    assert prune(checkpoints, 3) == [2]
    assert [iters for iters, _ in checkpoints_in(checkpoints)] == [4, 6, 10]
    resumable = [iters for iters, path in checkpoints_in(checkpoints) if (path / RESUME).is_dir()]
    assert resumable == [6, 10]
    for _, path in checkpoints_in(checkpoints):
        verify(path)
    assert prune(checkpoints, 1) == [4, 6]
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-10"]


@pytest.mark.requirement("child-checkpoints-pruned")
def test_what_an_earlier_removal_left_does_not_hinder_another(tmp_path: Path) -> None:
    target = sealed(tmp_path)
    left = target.with_name(f"removing-{target.name}")
    left.mkdir()
    (left / "half").touch()
    remove(target)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.requirement("child-no-code")
@pytest.mark.parametrize("suffix", [*sorted(PICKLES), ".py"])
def test_what_may_hold_code_is_refused(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").touch()
    refuse_pickles(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"file{suffix}").touch()
    with pytest.raises(InvalidRequest, match=f"file{suffix} may hold code"):
        refuse_pickles(tmp_path)
