"""A cross-validation that is killed in a fold, and again at its vote: the same command comes to the same end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from commands import kill_after, without_drawing
from foveal.cli import app
from foveal.files import sha256_file
from small_runs import CLASSES, epochs, events, flags, quicken_plots


def timeless(value: Any) -> Any:
    """A summary without what the clock decides."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if "seconds" not in key and key != "latency_ms"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def test_killed_in_the_second_fold_the_same_command_comes_to_the_same_end(
    tmp_path: Path, make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_plots(monkeypatch)
    images = make_images(tmp_path / "images", CLASSES, num_per_class=12)
    settings = flags("train.epochs=2", "train.batch_size=8", "model.head.dropout=0.4")

    def command(out: Path) -> list[str]:
        return ["crossval", str(images), "--folds", "3", "--out", str(out), *settings]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert CliRunner().invoke(app, command(whole)).exit_code == 0

    # A checkpoint at the end of each epoch: the third is in the midst of the second fold.
    kill_after("foveal.training.fit:_Loop:save_last", 3, command(killed), without_drawing)
    assert (killed / "runs" / "fold-2" / "checkpoints" / "last.ckpt").is_file()
    assert not (killed / "runs" / "fold-2" / "bundle").exists()
    assert not (killed / "runs" / "fold-3").exists()
    first = sha256_file(killed / "runs" / "fold-1" / "log.jsonl")

    kill_after("foveal.experiments.crossval.folds::vote_on_test", 1, command(killed), without_drawing)
    assert (killed / "evaluation" / "test-soft" / "metrics.json").is_file()
    assert not (killed / "summary.json").exists()

    done = CliRunner().invoke(app, command(killed))
    assert done.exit_code == 0, done.output
    assert sha256_file(killed / "runs" / "fold-1" / "log.jsonl") == first, "what was finished was not touched"
    assert len(events(killed / "runs" / "fold-2", "resume")) == 1
    for fold in ("fold-1", "fold-2", "fold-3"):
        weights = (folder / "runs" / fold / "bundle" / "model.safetensors" for folder in (whole, killed))
        assert len({sha256_file(file) for file in weights}) == 1
        assert epochs(killed / "runs" / fold) == epochs(whole / "runs" / fold)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    assert timeless(summaries[1]) == timeless(summaries[0])
    assert summaries[0]["fold_vote"]["soft"]["latency_ms"] is not None
    for file in ("out_of_fold.parquet", "bundle/members/1/model.safetensors"):
        assert sha256_file(killed / file) == sha256_file(whole / file)
    looks = json.loads((killed / "evaluation" / "looks.json").read_text())
    assert len(looks["test"]) == 1
    assert (killed / "report.html").is_file()
    assert not list(killed.rglob("*.partial"))
    assert not list(killed.rglob("*.old"))
