"""Checkpoints: whole or absent, whatever happens while they are written."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from foveal.errors import ArtifactError, FovealError
from foveal.training import checkpoint

CONTENT = {
    "model": {"weight": torch.arange(10_000, dtype=torch.float32)},
    "position": {"epoch": 3, "best": [0.5, -1.0]},
}

KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from typing import Any
import torch
from torch import nn
from foveal.training import checkpoint

folder = Path(sys.argv[1])
tensors = torch.zeros(200_000)
draw = random.Random(0)
for attempt in range(30):
    child = os.fork()
    if child == 0:
        for number in range(10_000):
            checkpoint.save_last(folder, {"number": number, "attempt": attempt, "tensors": tensors})
    time.sleep(draw.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if (folder / "last.ckpt").exists():
        content, sentence = checkpoint.load_last(folder)
        assert content["tensors"].numel() == 200_000 and sentence == "", sentence
        print(content["attempt"])
"""


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.ckpt", CONTENT)
    content = checkpoint.load(tmp_path / "a.ckpt")
    assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])
    assert content["position"] == CONTENT["position"]


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_the_last_is_kept(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for number in range(3):
        checkpoint.save_last(tmp_path, {"number": number})
        assert checkpoint.load_last(tmp_path)[0]["number"] == number
    assert checkpoint.load(tmp_path / checkpoint.PREVIOUS)["number"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_checkpoint_cut_off_anywhere_gives_way_to_the_one_before(tmp_path: Path) -> None:
    checkpoint.save_last(tmp_path, {**CONTENT, "number": 1})
    checkpoint.save_last(tmp_path, {**CONTENT, "number": 2})
    whole = (tmp_path / checkpoint.LAST).read_bytes()
    for num_bytes in (0, 1, 100, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        (tmp_path / checkpoint.LAST).write_bytes(whole[:num_bytes])
        content, sentence = checkpoint.load_last(tmp_path)
        assert content["number"] == 1, num_bytes
        assert "last.ckpt" in sentence
        assert "the one before" in sentence
    (tmp_path / checkpoint.PREVIOUS).write_bytes(b"")
    with pytest.raises(ArtifactError, match="no checkpoint that can be read") as caught:
        checkpoint.load_last(tmp_path)
    assert "--force" in caught.value.fix


class Poison:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._target),)


def test_what_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    torch.save({"format_version": 1, "model": Poison(harm)}, tmp_path / "zip.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Poison(harm), protocol=2))
    for name in ("zip.ckpt", "plain.ckpt"):
        with pytest.raises(ArtifactError, match=name):
            checkpoint.load(tmp_path / name)
    assert not harm.exists()


def test_what_is_not_ours_or_of_another_version_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "other.ckpt")
    torch.save({"format_version": checkpoint.FORMAT_VERSION + 1}, tmp_path / "newer.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name in ("other.ckpt", "newer.ckpt", "list.ckpt", "missing.ckpt"):
        with pytest.raises(ArtifactError, match=name):
            checkpoint.load(tmp_path / name)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_half_one(tmp_path: Path) -> None:
    checkpoint.save_last(tmp_path, {**CONTENT, "number": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))  # what a write meets then is what a full disk gives
    try:
        with pytest.raises(FovealError, match=r"last\.ckpt could not be written"):
            checkpoint.save_last(tmp_path, {**CONTENT, "number": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load_last(tmp_path)[0]["number"] == 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_thirty_moments_the_last_or_the_one_before_always_loads(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")  # another file system, where there is one
    environment = {**os.environ, "TMPDIR": str(elsewhere if elsewhere.is_dir() else tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) > 10  # most were killed in the midst of writing


def a_frozen_net() -> nn.Module:
    """Most of it frozen, with statistics; the last layer trains."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300), nn.Linear(300, 3))
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    return net


def content_of(net: nn.Module) -> dict[str, Any]:
    average = {f"module.{name}": tensor.clone() for name, tensor in net.state_dict().items()}
    return {"model": net.state_dict(), "average": {"n_averaged": torch.tensor(4), **average}, "position": {"epoch": 1}}


def test_what_never_moves_is_written_once_and_every_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    net = a_frozen_net()
    frozen = checkpoint.Frozen(tmp_path, net)
    held = (tmp_path / checkpoint.FROZEN).stat().st_mtime_ns
    for number in range(3):
        with torch.no_grad():
            net[2].weight += 1.0
        if number == 2:  # against what was said; it is kept all the same
            net[1].running_mean += 1.0
        checkpoint.save_last(tmp_path, content_of(net), frozen)
        found, wanted = checkpoint.load_last(tmp_path)[0], content_of(net)
        for key in ("model", "average"):
            assert list(found[key]) == list(wanted[key])
            assert all(torch.equal(found[key][name], wanted[key][name]) for name in wanted[key])
    assert checkpoint.load(tmp_path / checkpoint.PREVIOUS)["model"]["1.running_mean"].eq(0).all()
    assert (tmp_path / checkpoint.FROZEN).stat().st_mtime_ns == held
    assert (tmp_path / checkpoint.FROZEN).stat().st_size > 300 * 300 * 4
    assert (tmp_path / checkpoint.LAST).stat().st_size < 30_000
    # Whoever goes on from there takes what the file holds.
    again = checkpoint.Frozen(tmp_path, a_frozen_net(), checkpoint.load(tmp_path / checkpoint.LAST)["frozen"])
    checkpoint.save(tmp_path / checkpoint.BEST, content_of(net), again)
    assert torch.equal(checkpoint.load(tmp_path / checkpoint.BEST)["model"]["0.weight"], net[0].weight)


def test_without_the_file_of_what_is_frozen_or_with_anothers_nothing_is_read(tmp_path: Path) -> None:
    net = a_frozen_net()
    checkpoint.save_last(tmp_path, content_of(net), checkpoint.Frozen(tmp_path, net))
    whole = (tmp_path / checkpoint.FROZEN).read_bytes()
    with torch.no_grad():
        net[0].weight += 1.0
    checkpoint.Frozen(tmp_path, net)
    with pytest.raises(ArtifactError, match=r"frozen\.ckpt is damaged, or of another training"):
        checkpoint.load(tmp_path / checkpoint.LAST)
    (tmp_path / checkpoint.FROZEN).write_bytes(whole[:-1000])
    with pytest.raises(ArtifactError, match=r"frozen\.ckpt"):
        checkpoint.load_last(tmp_path)
    (tmp_path / checkpoint.FROZEN).unlink()
    with pytest.raises(ArtifactError, match=r"no checkpoint that can be read.*frozen\.ckpt"):
        checkpoint.load_last(tmp_path)


def test_a_checkpoint_that_needs_no_other_file_is_of_the_version_that_older_ones_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "whole.ckpt", CONTENT)
    assert torch.load(tmp_path / "whole.ckpt", weights_only=True)["format_version"] == 1
