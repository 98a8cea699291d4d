"""`train`: which folders it writes to, which it leaves alone, and with what a run may be gone on with."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import foveal
from foveal.api.train import plan, train
from foveal.config import load
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.files import sha256_file
from foveal.run_folder import RunFolder
from foveal.training.config import Config, ResolvedConfig
from small_runs import CLASSES, TINY, copy_of

MakeImages = Callable[..., Path]


def state_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its content, but for the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def images(tmp_path: Path, make_images: MakeImages) -> Path:
    return make_images(tmp_path / "images", CLASSES, num_per_class=8)


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("foveal.experiments.preparing.ingest", decoded)


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("place", ["a file/run", "/proc/foveal-run", "/dev/null"])
def test_a_run_folder_that_cannot_be_written_is_refused_before_any_work(
    images: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "a file").write_text("x")
    out = tmp_path / place  # an absolute place stays what it is
    with pytest.raises(ArtifactError, match="cannot be written to") as caught:
        train(images, out, overrides=TINY)
    assert str(out) in caught.value.message
    assert "--out" in caught.value.fix


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_folder_that_another_process_works_in_is_refused(images: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.prepare()
    with run.lock(), pytest.raises(ArtifactError, match="Another process"):
        train(images, run.path, overrides=TINY)
    assert state_of(run.path) == {}


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_folder_with_other_things_in_it_is_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos"
    out.mkdir()
    (out / "holiday.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"not empty: it holds holiday\.txt") as caught:
        train(images, out, overrides=TINY)
    assert "--force" in caught.value.fix
    assert state_of(out).keys() == {"holiday.txt"}
    assert not (out / ".lock").exists()


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("place", ["", "run", "2/run"])
def test_a_run_folder_among_the_images_is_refused(images: Path, place: str) -> None:
    with pytest.raises(ConfigError, match="lies in DATA"):
        train(images, images / place, overrides=TINY, force=True)
    assert not list(images.rglob(".lock"))


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "report.html", "evaluation/test/metrics.json"])
def test_force_never_overwrites_what_foveal_did_not_write(images: Path, tmp_path: Path, name: str) -> None:
    """A folder of a user's own project may well hold a config.yaml, which is no run's."""
    mine = tmp_path / "project" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="no run of foveal") as caught:
            train(images, tmp_path / "project", overrides=TINY, force=force)
        assert name in caught.value.message
        assert mine.read_text() == "years of work"


def test_force_starts_anew_and_keeps_the_users_own_files(trained: Path, images: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    own = [
        run / name for name in ("notes.txt", "bundle/README.md", "evaluation/test/plots/mine.svg", "checkpoints/a.ckpt")
    ]
    for file in own:
        file.write_text("mine")
    with pytest.raises(ArtifactError, match="holds a run already"):
        train(images, run, overrides=TINY)
    before = sha256_file(run / "bundle" / "model.safetensors")
    result = train(images, run, overrides=[*TINY, "train.epochs=1"], force=True)
    assert [file.read_text() for file in own] == ["mine"] * 4
    assert sha256_file(run / "bundle" / "model.safetensors") != before
    assert result.best_epoch == 1
    assert len((run / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_forced_start_that_fails_leaves_nothing_of_the_old_run_to_be_taken_for_the_new(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    run = copy_of(trained, tmp_path / "run")
    with pytest.raises(ArtifactError, match="nowhere"):
        train(images, run, overrides=[*TINY, "model.weights=/nowhere.pth"], force=True)
    assert state_of(run).keys() == {"timings.json"}


def test_a_start_that_failed_can_be_made_again_without_force(images: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_text("path,label\nnothing.png,cat\nnothing2.png,dog\n")
    with pytest.raises(DataError):
        train(broken, tmp_path / "run", overrides=TINY)
    # Nor does it matter if the process was killed while it wrote the first files.
    (tmp_path / "run" / "env.json").write_text("{}")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "origin.json").write_text("{}")
    train(images, tmp_path / "run", overrides=[*TINY, "train.epochs=1"])


def test_what_a_killed_process_left_half_written_is_swept_away(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    halves = [run / "checkpoints" / ".last.ckpt.abc.partial", run / "checkpoints" / ".previous.ckpt.4711"]
    halves += [run / ".timings.json.x1.partial", run / "bundle" / ".model.safetensors.q.partial"]
    own = run / ".notes.partial"
    for file in (*halves, own):
        file.write_text("half")
    train(out=run, resume=True)
    assert not any(half.exists() for half in halves)
    assert own.exists()


def test_a_run_goes_on_only_with_its_own_configuration(trained: Path, images: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    before = state_of(run)
    with pytest.raises(ConfigError, match="another configuration") as caught:
        train(out=run, resume=True, overrides=["train.epochs=9", "seed=5", "optim.lr=0.01", "optim.name=adamw"])
    assert sorted(caught.value.problems) == [
        "seed: the run has 7, and 5 is asked for",
        "train.epochs: the run has 3, and 9 is asked for",
    ]
    assert caught.value.exit_code == 2
    file = tmp_path / "other.yaml"
    file.write_text("train:\n  batch_size: 7\n")
    with pytest.raises(ConfigError, match=r"train\.batch_size: the run has 16, and 7 is asked for"):
        train(out=run, resume=True, config=file)
    with pytest.raises(ConfigError, match="did you mean"):
        train(out=run, resume=True, overrides=["train.epoch=9"])
    assert state_of(run) == before
    # The command that began it, with --resume behind it, is right.
    result = train(images, run, resume=True, overrides=TINY)
    assert result.run == run
    assert train(out=run, resume=True, config=run / "config.yaml").metrics == result.metrics


def test_going_on_and_starting_anew_are_not_asked_for_together(trained: Path, images: Path) -> None:
    before = state_of(trained)
    with pytest.raises(ConfigError, match="--resume"):
        train(images, trained, resume=True, force=True)
    assert state_of(trained) == before


def test_there_must_be_something_to_go_on_with(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a run folder"):
        train(out=tmp_path / "nowhere", resume=True)
    with pytest.raises(ConfigError, match="needs DATA"):
        train(out=tmp_path / "nowhere")
    # With DATA, a script that always says --resume works the first time too.
    result = train(images, tmp_path / "run", resume=True, overrides=[*TINY, "train.epochs=1"])
    assert result.bundle.is_dir()


def test_the_device_of_a_run_must_be_there_to_go_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(trained, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("device: cpu", "device: cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="none on this machine"):
        train(out=run, resume=True)


def test_a_configuration_comes_from_a_file_an_object_and_overrides(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {name: test_resnet, weights: none}\ntrain: {epochs: 4, device: cpu}\n")
    from_file = plan(images, config=file, overrides=["train.epochs=2"]).config
    from_object = plan(images, config=load(Config, file), overrides=["train.epochs=2"]).config
    assert from_file == from_object
    assert (from_file.train.epochs, from_file.model.name) == (2, "test_resnet")


def test_the_plan_writes_nothing_and_keeps_its_word(images: Path, tmp_path: Path) -> None:
    before = state_of(tmp_path)
    planned = plan(images, overrides=[*TINY, "train.epochs=1"])
    assert state_of(tmp_path) == before
    result = train(images, tmp_path / "run", overrides=[*TINY, "train.epochs=1"])
    assert planned.num_images == {split: metrics.num_images for split, metrics in result.metrics.items()}
    assert planned.class_names == CLASSES
    assert planned.config == load(ResolvedConfig, result.run / "config.yaml")
    assert f"{planned.num_parameters:,}" in (result.run / "model.txt").read_text()


def test_a_result_is_at_home_in_a_notebook(trained: Path) -> None:
    result = foveal.train(out=trained, resume=True)
    page = result._repr_html_()
    assert "test: 1" in page
    assert "<script" not in page
    assert result.to_dict()["metrics"]["test"]["class_names"] == list(CLASSES)
