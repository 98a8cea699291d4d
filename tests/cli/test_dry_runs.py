"""What a dry run says to type next is the command that was asked about, with all of its flags."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveal.cli import app
from foveal.cli.shell import typed
from foveal.data.manifest import Manifest
from small_runs import small_run

NETWORK = ["--set", "model.name=test_resnet", "--set", "model.weights=none"]


@pytest.fixture(scope="module")
def trained(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return small_run(make_images, tmp_path_factory)


def test_flags_without_a_value_are_left_out_and_words_are_quoted() -> None:
    flags = {"--out": Path("a b"), "--seed": 0, "--force": True, "--tta": None, "--debug": False, "--set": ["x=[1, 2]"]}
    assert (
        typed("train", ["it's"], flags) == """foveal train 'it'"'"'s' --out 'a b' --seed 0 --force --set 'x=[1, 2]'"""
    )


@pytest.mark.parametrize(
    "words",
    [
        ["probe", "DATA", "--heads", "knn,svm", "--sizes", "32,40", "--out", "a probe", "--seed", "3", *NETWORK],
        ["train", "DATA", "--sweep", "optim.lr=1,2", "--sweep", "train_images=4,all", "--seeds", "0,1", "--out", "s",
         *NETWORK],
        ["extend", "RUN", "--data", "NEW", "--replay", "5", "--distill", "0.5", "--out", "it's", "--set",
         "train.epochs=2"],
        ["compare", "RUN", "--data", "DATA", "--no-timing", "--seed", "4", "--set", "data.val_fraction=0.2", "--device",
         "cpu", "--out", "c"],
        ["evaluate", "RUN", "DATA", "--split", "val", "--tta", "flip", "--corrupt", "noise,blur", "--out", "an e",
         "--seed", "4", "--device", "cpu", "--set", "data.val_fraction=0.2"],
        ["export", "RUN", "--to", "onnx", "--int8", "--data", "DATA", "--out", "an export", "--seed", "4", "--set",
         "export.num_images=300"],
        ["predict", "RUN", "DATA", "--format", "jsonl", "--tta", "4", "--batch-size", "8", "--device", "cpu"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_the_command_to_type_next_is_the_one_that_was_asked_about(
    words: list[str], trained: Path, make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    new = make_images(tmp_path / "new images", ("1", "5"), num_per_class=4)
    places = {"DATA": Manifest.read(trained / "manifest.parquet").images_root, "RUN": trained, "NEW": new}
    asked = [str(places.get(word, word)) for word in words]
    before = sorted(tmp_path.rglob("*"))
    planned = CliRunner().invoke(app, [*asked, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    said = shlex.split(planned.stdout.splitlines()[-1])
    assert said[0] == "foveal"
    again = CliRunner().invoke(app, [*said[1:], "--dry-run"])
    assert again.stdout == planned.stdout
    # --seed N of some verbs is told as the key that it is short for.
    told = " ".join(said).replace("--set seed=", "--seed ").split()
    assert {word for word in " ".join(asked).split() if word != "--split"} <= set(told)
    assert sorted(tmp_path.rglob("*")) == before
