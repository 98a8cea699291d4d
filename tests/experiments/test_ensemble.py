"""Ensembles: measured on what no member knows, fitted on validation, and the bundle says what was measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.experiments.ensemble.weights import greedy_weights
from foveal.inference import Predictor
from foveal.metrics import fit_temperature, log_loss, softmax
from foveal.model.bundle import EnsembleBundle, open_bundle, read_bundle, update_bundle, write_bundle
from small_runs import CLASSES, SEED, TINY, copy_of

_made: dict[str, Path] = {}


@pytest.fixture
def runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on one split, of other networks and sizes."""
    if not _made:
        images, folder = trained.parent / "images", tmp_path_factory.mktemp("other runs")
        other = [*TINY, f"seed={SEED}", "model.name=small_cnn", "data.image_size=40", "optim.lr=0.002"]
        foveal.train(images, folder / "other", overrides=other)
        # A copy, because looks are counted in it.
        _made.update(first=copy_of(trained, folder / "run"), other=folder / "other", images=images)
    return [_made["first"], _made["other"]]


def said_by(model: Path, manifest: Manifest, split: Any) -> np.ndarray:
    paths = manifest.absolute_paths()
    found = Predictor(model, device="cpu")([paths[row] for row in manifest.of_split(split)])
    assert isinstance(found, list)
    return np.stack([prediction.probabilities for prediction in found])


def labels_of(manifest: Manifest, split: Any) -> np.ndarray:
    return manifest.label_ids()[manifest.of_split(split)]


@pytest.mark.parametrize("vote", ["soft", "majority", "weighted"])
def test_the_numbers_are_those_of_the_bundle(runs: list[Path], tmp_path: Path, vote: Any) -> None:
    own = [copy_of(run, tmp_path / name) for run, name in zip(runs, ("first", "second"), strict=True)]
    done = foveal.ensemble(own, tmp_path / "out", vote=vote, device="cpu")
    manifest, summary = Manifest.read(tmp_path / "out" / "manifest.parquet"), read(tmp_path / "out" / "summary.json")
    whole = Manifest.read(own[0] / "manifest.parquet")
    for split in ("val", "test"):
        kept = whole.column("sample_id")[whole.of_split(split)].tolist()
        assert manifest.column("sample_id")[manifest.of_split(split)].tolist() == kept
        labels, members = labels_of(manifest, split), np.stack([said_by(run, manifest, split) for run in own])
        weights = np.array([summary["weights"][name] for name in ("first", "second")])
        mixed = np.tensordot(weights, members, axes=1)
        if vote == "majority":
            mixed = (np.eye(3)[members.argmax(axis=2)].sum(axis=0) + members.mean(axis=0)) / 3
        if split == "val":
            temperature = fit_temperature(np.log(mixed), labels)
            assert summary["temperature"] == pytest.approx(temperature, rel=1e-3)
            if vote == "weighted":
                assert weights == pytest.approx(greedy_weights(members, labels), abs=0.02)
        expected = softmax(np.log(mixed), summary["temperature"]) if (weights > 0).all() else mixed
        np.testing.assert_allclose(said_by(tmp_path / "out", manifest, split), expected, atol=1e-4)
        rows = {row["name"]: row for row in summary["rows" if split == "test" else "validation"]}
        written = read(tmp_path / "out" / "evaluation" / split / "metrics.json")
        assert {key: rows["ensemble"][key] for key in written} == written
        assert written["log_loss"] == pytest.approx(log_loss(labels, expected), abs=1e-4)
        for name, member in zip(("first", "second"), members, strict=True):
            assert rows[name]["log_loss"] == pytest.approx(log_loss(labels, member), abs=1e-4)
            assert rows[name]["accuracy"] == pytest.approx((member.argmax(axis=1) == labels).mean())
    for run in own:
        assert [look["verb"] for look in read(run / "evaluation" / "looks.json")["test"]] == ["train", "ensemble"]
    assert done.outcome.best_member in {"first", "second"}
    assert done.outcome.best_member in done.outcome.sentences[0]
    page = done.report.read_text()
    assert "Against the best member" in page
    assert not (tmp_path / "out" / "runs" / "all").exists()
    assert foveal.compare([tmp_path / "out", own[0]], out=tmp_path / "compared", timing=False).comparison.rows


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_same_again_looks_at_nothing_and_other_settings_are_refused(runs: list[Path], tmp_path: Path) -> None:
    own = [copy_of(run, tmp_path / name) for run, name in zip(runs, ("first", "second"), strict=True)]
    first = foveal.ensemble(own, tmp_path / "out", device="cpu")
    looks = (own[0] / "evaluation" / "looks.json").read_bytes()
    again = foveal.ensemble(own, tmp_path / "out", device="cpu")
    assert again.to_dict()["rows"] == json.loads(json.dumps(first.to_dict()["rows"]))
    assert (own[0] / "evaluation" / "looks.json").read_bytes() == looks
    with pytest.raises(ConfigError, match="begun with other settings") as caught:
        foveal.ensemble(own, tmp_path / "out", vote="majority", device="cpu")
    assert caught.value.problems == ("vote: it has 'soft', and 'majority' is asked for",)
    forced = foveal.ensemble(own[::-1], tmp_path / "out", vote="majority", device="cpu", force=True)
    assert [row["name"] for row in forced.outcome.rows] == ["second", "first", "ensemble"]


def test_a_useless_member_is_left_out_of_a_weighted_vote(runs: list[Path], tmp_path: Path) -> None:
    """And where one alone is left, the bundle is its own."""
    useless = copy_of(runs[1], tmp_path / "useless")
    bundle = read_bundle(useless)
    state = {name: 0 * tensor if "fc" in name or "head" in name else tensor for name, tensor in bundle.state().items()}
    spec = bundle.spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    write_bundle(bundle.path, spec, state)
    done = foveal.ensemble([useless, runs[0]], tmp_path / "out", vote="weighted", device="cpu")
    assert done.outcome.weights == {"useless": 0.0, runs[0].name: 1.0}
    assert any("the bundle is its own" in sentence for sentence in done.outcome.sentences)
    manifest = Manifest.read(tmp_path / "out" / "manifest.parquet")
    np.testing.assert_allclose(
        said_by(tmp_path / "out", manifest, "test"), said_by(runs[0], manifest, "test"), atol=1e-5
    )
    assert done.outcome.rows[-1]["log_loss"] == pytest.approx(done.outcome.rows[1]["log_loss"], abs=1e-5)


def test_classes_are_aligned_by_name(runs: list[Path], tmp_path: Path) -> None:
    """The second knows the same classes in another order: with its outputs moved, the vote is the same."""
    turned = copy_of(runs[1], tmp_path / "turned")
    bundle = read_bundle(turned)
    names = (CLASSES[2], CLASSES[0], CLASSES[1])
    state = bundle.state()
    for name in ("head.fc.weight", "head.fc.bias", "fc.weight", "fc.bias"):
        if name in state:
            state[name] = state[name][[2, 0, 1]].clone()
    spec = bundle.spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    write_bundle(bundle.path, spec | {"class_names": names}, state)
    straight = foveal.ensemble(runs, tmp_path / "straight", device="cpu").outcome
    other = foveal.ensemble([runs[0], turned], tmp_path / "other", device="cpu").outcome
    made = open_bundle(tmp_path / "other")
    assert isinstance(made, EnsembleBundle)
    assert {member.spec.class_names for member in made.members} == {CLASSES}
    assert other.rows[-1]["log_loss"] == pytest.approx(straight.rows[-1]["log_loss"], abs=1e-6)
    assert other.rows[1]["accuracy"] == straight.rows[1]["accuracy"]


def test_what_cannot_vote_is_refused_all_at_once(
    runs: list[Path], tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    votes = foveal.ensemble(runs, tmp_path / "ensemble", device="cpu").folder
    unfinished = copy_of(runs[1], tmp_path / "unfinished")
    (unfinished / "bundle" / "bundle.json").unlink()
    with pytest.raises(ArtifactError, match="Not everything that was named can vote") as caught:
        foveal.ensemble([runs[0], votes, unfinished, copy_of(runs[0], tmp_path / "again"), tmp_path / "none"])
    told = "\n".join(caught.value.problems)
    for words in ("is an ensemble itself", "has not come to its end", "would vote twice", "none: "):
        assert words in told
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError, match="at least two models"):
        foveal.ensemble([runs[0]])
    others = copy_of(runs[1], tmp_path / "others")
    update_bundle(others / "bundle", class_names=("2", "b", "new"))
    with pytest.raises(ArtifactError, match="Only models of the same classes can vote") as caught:
        foveal.ensemble([runs[0], others], tmp_path / "out")
    assert caught.value.problems == ("others: lacks '10' and has 'new' besides",)
    with pytest.raises(ConfigError, match="there is no DATA"):
        foveal.ensemble(runs, tmp_path / "out", overrides=["data.columns.label=kind"])
    assert not (tmp_path / "out").exists()


def test_runs_of_other_splits_are_refused_with_counts(runs: list[Path], tmp_path: Path) -> None:
    """One's test images are in another's training: the number would be a lie."""
    other = copy_of(runs[1], tmp_path / "other split")
    before = (other / "evaluation" / "looks.json").read_bytes()
    manifest = Manifest.read(other / "manifest.parquet")
    codes = manifest.column("split").copy()
    test, train = manifest.of_split("test"), manifest.of_split("train")
    codes[test[:4]], codes[train[:4]] = "train", "test"
    manifest.with_columns(split=codes).write(other / "manifest.parquet")
    with pytest.raises(DataError, match="the number would be too good") as caught:
        foveal.ensemble([runs[0], other], tmp_path / "out", device="cpu")
    first = runs[0].name
    assert (
        f"4 of the {len(test)} test images of {first} are images that other split trained on" in caught.value.problems
    )
    assert "--data DATA" in caught.value.fix
    assert not (tmp_path / "out" / "bundle").exists()
    assert (other / "evaluation" / "looks.json").read_bytes() == before


def test_bundles_take_data_of_their_own(runs: list[Path], tmp_path: Path, make_images: Callable[..., Path]) -> None:
    bundles = []
    for at, run in enumerate(runs):
        bundles.append(tmp_path / f"bundle{at}")
        copy_of(run / "bundle", bundles[-1])
    with pytest.raises(ConfigError, match="Bundles bring no images of their own"):
        foveal.ensemble(bundles, tmp_path / "out", device="cpu")
    flat = make_images(tmp_path / "flat", CLASSES, num_per_class=4, seed=77)
    with pytest.raises(DataError, match="DATA brings no val and no test split") as caught:
        foveal.ensemble(bundles, tmp_path / "out", data=flat, device="cpu")
    assert "foveal split" in caught.value.fix
    data = tmp_path / "new data"
    make_images(data / "val", CLASSES, num_per_class=5, seed=78)
    make_images(data / "test", CLASSES, num_per_class=6, seed=79)
    done = foveal.ensemble(bundles, tmp_path / "out", data=data, vote="weighted", device="cpu")
    assert [row["num_images"] for row in done.outcome.rows] == [18] * 3
    assert any("taken on trust" in sentence for sentence in done.outcome.sentences)
    # What a run learnt from is known, and refused as test; and the corrected command is not refused for that.
    known = Manifest.read(runs[0] / "manifest.parquet")
    paths = known.absolute_paths()
    for row in known.of_split("train")[:2]:
        target = data / "test" / known.column("label")[row] / f"copied-{paths[row].name}"
        target.write_bytes(paths[row].read_bytes())
    with pytest.raises(DataError, match="the number would be too good") as caught:
        foveal.ensemble(runs, tmp_path / "out2", data=data, device="cpu")
    assert caught.value.problems[0].startswith("2 of the 20 test images of DATA are images that")
    assert not (tmp_path / "out2" / "bundle").exists()
    assert foveal.ensemble(runs, tmp_path / "out2", vote="majority", device="cpu").bundle.is_dir()


def test_an_experiment_stands_for_the_run_that_it_chose(runs: list[Path], tmp_path: Path) -> None:
    """As a probe's folder does: its bundle is a copy of one of its runs, which knows the images."""
    probe = tmp_path / "probe"
    copy_of(runs[1], probe / "runs" / "knn")
    copy_of(runs[1] / "bundle", probe / "bundle")
    (probe / "experiment.json").write_text('{"verb": "probe"}')
    foveal.ensemble([copy_of(runs[0], tmp_path / "run"), probe], tmp_path / "out", device="cpu")
    foveal.ensemble([tmp_path / "run", runs[1]], tmp_path / "plain", device="cpu")
    losses = [read(tmp_path / name / "evaluation" / "test" / "metrics.json")["log_loss"] for name in ("out", "plain")]
    assert losses[0] == losses[1]
    assert open_bundle(tmp_path / "out").spec.members[1].name == "probe"  # type: ignore[union-attr]


def test_the_command(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["ensemble", *map(str, runs), "--vote", "weighted", "--out", "my ensemble"]
    planned = CliRunner().invoke(app, [*command, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "small_cnn, 40 px" in planned.stdout
    assert not (tmp_path / "my ensemble").exists()
    found = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert found.exit_code == 0, found.output
    assert "foveal predict 'my ensemble' PHOTOS" in found.stdout
    evaluated = CliRunner().invoke(app, ["evaluate", "my ensemble", str(_made["images"]), "--out", "e"])
    assert evaluated.exit_code == 0, evaluated.output
