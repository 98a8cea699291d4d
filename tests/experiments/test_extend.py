"""Further classes for a trained model: which images are where, what is kept, and what it is said to have cost."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from foveal.api.extend import ExtendResult, extend, plan_extension
from foveal.config import load
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.experiments.extend.cost import Answers, measure_cost
from foveal.experiments.extend.data import Joined, join, replayed, share_out
from foveal.metrics import SplitMetrics
from foveal.progress import Silence
from foveal.training.config import ResolvedConfig
from foveal.types import SPLITS
from small_runs import CLASSES, columns_of, copy_of

MakeImages = Callable[..., Path]
WISH = {"replay": 6, "distill": 0.5, "overrides": ["train.epochs=2", "train.batch_size=16", "train.precision=fp32"]}

_made: dict[str, ExtendResult] = {}


class Killer(Silence):
    """Ends everything at the first line that begins so, as a kill would: after the checkpoint, before what follows."""

    def __init__(self, *beginnings: str) -> None:
        self.beginnings = beginnings

    def say(self, text: str) -> None:
        if text.startswith(self.beginnings):
            raise KilledError(text)


class KilledError(BaseException):
    """What no code of foveal catches."""


@pytest.fixture(scope="session")
def new_images(make_images: MakeImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two new classes, of which one name comes first and one between the old ones."""
    return make_images(tmp_path_factory.mktemp("new") / "images", ("1", "5"), num_per_class=16, seed=99)


@pytest.fixture
def extended(trained: Path, new_images: Path, tmp_path_factory: pytest.TempPathFactory) -> ExtendResult:
    """An extension of the small run by two classes, with copies of old images and more of an old class among the new.

    Made once; look but do not touch.
    """
    if "done" not in _made:
        folder = tmp_path_factory.mktemp("extended")
        data = shutil.copytree(new_images, folder / "more images")
        manifest = Manifest.read(trained / "manifest.parquet")
        paths = manifest.absolute_paths()
        shutil.copy(paths[manifest.of_split("test")[0]], data / "5" / f"from-test{paths[0].suffix}")
        shutil.copy(paths[manifest.of_split("val")[0]], data / "1" / f"from-val{paths[0].suffix}")
        (data / "2").mkdir()
        for file in sorted((new_images / "1").iterdir())[:3]:
            shutil.move(data / "1" / file.name, data / "2" / file.name)
        _made["data"] = data  # type: ignore[assignment]
        _made["done"] = extend(copy_of(trained, folder / "old"), data, folder / "run 2", **WISH)  # type: ignore[arg-type]
    return _made["done"]


def made_from(extended: ExtendResult) -> tuple[Path, Path]:
    """The old run and the new data of the extension."""
    return extended.run.parent / "old", extended.run.parent / "more images"


def test_old_images_stay_where_they_were_and_none_of_their_test_is_trained_on(extended: ExtendResult) -> None:
    old = Manifest.read(made_from(extended)[0] / "manifest.parquet")
    new = Manifest.read(extended.run / "manifest.parquet")
    assert new.class_names == ("1", "2", "5", "10", "b")

    def contents(manifest: Manifest, split: str) -> set[str]:
        return set(manifest.column("sha256")[manifest.of_split(split)])  # type: ignore[arg-type]

    assert contents(old, "test") <= contents(new, "test")
    assert contents(old, "val") <= contents(new, "val")
    held_out = contents(old, "test") | contents(old, "val")
    assert not held_out & contents(new, "train")
    labels, paths = new.column("label"), [str(path) for path in new.absolute_paths()]
    split = np.array([*SPLITS, None], dtype=object)[new.split_codes()]
    at = {Path(path).stem: split[row] for row, path in enumerate(paths) if "from-" in path}
    assert at == {"from-test": "test", "from-val": "val"}
    more = [row for row, path in enumerate(paths) if "more images/2/" in path]
    assert len(more) == 3
    assert set(split[more]) == {"train"}
    replayed_rows = [row for row in new.of_split("train") if "more images" not in paths[row]]
    counts = {name: int((labels[replayed_rows] == name).sum()) for name in CLASSES}
    assert counts == {"2": 6, "10": 6, "b": 6}
    assert {new.column("sha256")[row] for row in replayed_rows} <= contents(old, "train")
    for name in ("1", "5"):
        assert set(split[labels == name]) == set(SPLITS)
    told = " ".join(extended.notes)
    assert "2 new images are copies of old ones or of their groups, and went where those are" in told
    assert "3 new images are of classes that the model knows ('2'); they are used as more training images" in told
    assert "Replay: 18 of" in told


def test_it_is_an_ordinary_run_that_keeps_network_and_preprocessing(extended: ExtendResult) -> None:
    old = json.loads((made_from(extended)[0] / "bundle" / "bundle.json").read_text())
    new = json.loads((extended.run / "bundle" / "bundle.json").read_text())
    assert new["class_names"] == ["1", "2", "5", "10", "b"]
    assert new["preprocessing"] == old["preprocessing"]
    assert new["architecture"] == old["architecture"]
    config = load(ResolvedConfig, extended.run / "config.yaml")
    assert config.train.distillation.weight == 0.5
    assert config.seed == 7, "the old run's"
    assert config.optim.lr != 0.01, "found anew for weights to start from"
    names = {path.name for path in extended.run.iterdir()}
    assert {"config.yaml", "manifest.parquet", "report.html", "extend.html", "extend.json", "summary.json"} <= names
    looks = json.loads((made_from(extended)[0] / "evaluation" / "looks.json").read_text())
    assert [look["verb"] for look in looks["test"]][-1] == "extend"


def test_before_and_after_are_what_the_tables_of_predictions_say(extended: ExtendResult) -> None:
    old = made_from(extended)[0]
    was = columns_of(old / "evaluation" / "test" / "predictions.parquet")
    now = columns_of(extended.run / "evaluation" / "test" / "predictions.parquet")
    before = SplitMetrics.read(old / "evaluation" / "test" / "metrics.json")
    said = {Path(path).name + label: (label, predicted) for path, label, predicted in zip(
        now["path"], now["label"], now["predicted"], strict=True
    ) if "more images" not in path}  # fmt: skip
    assert len(said) == len(was["path"]) == extended.cost.comparison.num_images
    found = {each.name: each for each in extended.cost.classes}
    for old_class in before.per_class:
        theirs = [predicted for label, predicted in said.values() if label == old_class.name]
        assert found[old_class.name].before == pytest.approx(old_class.recall)
        assert found[old_class.name].after == pytest.approx(np.mean([each == old_class.name for each in theirs]))
        assert found[old_class.name].num_taken_for_new == sum(each in {"1", "5"} for each in theirs)
    assert extended.cost.comparison.first["accuracy"] == pytest.approx(before.accuracy)
    accuracy = np.mean([label == predicted for label, predicted in said.values()])
    assert extended.cost.comparison.second["accuracy"] == pytest.approx(accuracy)
    summary = json.loads((extended.run / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["before", "after"]
    assert summary["rows"][0]["accuracy"] == pytest.approx(before.accuracy)
    assert summary["sentences"][0] == extended.sentences[0]
    assert extended.sentences[0].startswith("The two new classes cost the three old ones ")
    assert extended.sentences[0].replace("&", "&amp;") in (extended.run / "extend.html").read_text()


def test_killed_and_gone_on_with_it_comes_to_the_same_weights(extended: ExtendResult, tmp_path: Path) -> None:
    old, data = made_from(extended)
    for killer in (Killer("Replay:"), Killer("epoch   1/2"), Killer("nothing")):
        try:
            done = extend(old, data, tmp_path / "again", **WISH, progress=killer)  # type: ignore[arg-type]
        except KilledError:
            continue
    ours, theirs = (load_file(run / "bundle" / "model.safetensors") for run in (tmp_path / "again", extended.run))
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert done.cost.to_dict() == extended.cost.to_dict()
    log = (tmp_path / "again" / "log.jsonl").read_text()
    assert log.count('"event": "resume"') == 1


def test_the_same_command_again_does_nothing_and_another_is_refused(extended: ExtendResult) -> None:
    old, data = made_from(extended)
    before = (extended.run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    again = extend(old, data, extended.run, **WISH)  # type: ignore[arg-type]
    assert again.sentences == extended.sentences
    assert (extended.run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="begun with other settings") as refused:
        extend(old, data, extended.run, **{**WISH, "replay": "all"})  # type: ignore[arg-type]
    assert refused.value.problems == ("replay: it has 6, and 'all' is asked for",)


def test_what_cannot_be_is_refused_before_any_work(trained: Path, new_images: Path, tmp_path: Path) -> None:
    images = Manifest.read(trained / "manifest.parquet").images_root
    with pytest.raises(DataError, match="no class that the model does not know"):
        extend(trained, images, tmp_path / "a")
    with pytest.raises(ConfigError, match="--old DATA"):
        extend(shutil.copytree(trained / "bundle", tmp_path / "alone"), new_images, tmp_path / "b")
    with pytest.raises(ConfigError) as refused:
        plan_extension(trained, new_images, overrides=["data.image_size=64", "model.name=resnet18"])
    assert refused.value.problems == (
        "data.image_size: the model has 32, and 64 is asked for",
        "model.name: the model has 'test_resnet', and 'resnet18' is asked for",
    )
    for weight in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ConfigError, match="a weight is a number"):
            extend(trained, new_images, tmp_path / "a", distill=weight)
    with pytest.raises(ConfigError, match="replay=some"):
        extend(trained, new_images, tmp_path / "a", replay="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="lies in DATA"):
        extend(trained / "bundle", new_images, images / "run", old=images)
    # What was refused above holds no work, so that a corrected command may have its folder.
    with pytest.raises(DataError, match="does not exist"):
        extend(trained, new_images.parent / "nowhere", tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("{}")
    with pytest.raises(ArtifactError, match="holds no extension"):
        extend(trained, new_images, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "summary.json").read_text() == "{}"


def test_a_bundle_learns_with_old_images_that_bring_no_split(trained: Path, new_images: Path, tmp_path: Path) -> None:
    images = Manifest.read(trained / "manifest.parquet").images_root
    alone = shutil.copytree(trained / "bundle", tmp_path / "alone")
    done = extend(alone, new_images, tmp_path / "run", old=images, overrides=["train.epochs=1"])
    manifest = Manifest.read(done.run / "manifest.parquet")
    for name in manifest.class_names:
        splits = manifest.column("split")[manifest.column("label") == name].tolist()
        assert set(splits) == set(SPLITS), name
    assert "not exactly those that the model was trained on" in done.notes[0]


def table(
    names: Sequence[str],
    splits: Sequence[str | None],
    root: str = "/old",
    *,
    groups: Sequence[str | None] | None = None,
) -> Manifest:
    """A manifest of one image a row, each of its own content."""
    paths = [f"{name}/{number}.png" for number, name in enumerate(names)]
    return Manifest.build(
        Path(root),
        path=paths,
        label=names,
        split=splits,
        sha256=[f"{root}{path}" for path in paths],
        group=groups or [None] * len(names),
    )


OLD = table(["a"] * 20 + ["c"] * 20, (["train"] * 14 + ["val"] * 3 + ["test"] * 3) * 2)


def shared(joined: Joined) -> tuple[np.ndarray, tuple[str, ...]]:
    found = share_out(joined, ("a", "c"), val_fraction=0.15, test_fraction=0.15, seed=3)
    assert found.manifest.column("split")[: joined.num_old].tolist() == OLD.column("split").tolist()
    return found.manifest.column("split")[joined.num_old :], found.notes


def test_one_new_class_is_drawn_and_its_groups_are_not_cut() -> None:
    groups = [f"g{number // 4}" for number in range(40)]
    splits, notes = shared(join(OLD, table(["b"] * 40, [None] * 40, "/new", groups=groups)))
    assert sorted(splits.tolist()).count("train") == 28
    assert all(len(set(splits[start : start + 4])) == 1 for start in range(0, 40, 4))
    assert set(splits) == set(SPLITS)
    assert notes == ()


def test_a_given_split_is_kept_but_not_against_an_old_image_of_the_same_group() -> None:
    given = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    new = table(["b"] * 12, given, "/new", groups=["p1", *[None] * 11])
    old = OLD.with_columns(group=[None] * 39 + ["p1"])
    splits, notes = shared(join(old, new))
    assert splits.tolist() == ["test", *given[1:]]
    assert "1 of them had been given another split" in notes[0]


def test_the_same_picture_under_another_class_is_told() -> None:
    new = table(["b"] * 10, [None] * 10, "/new")
    shas = new.column("sha256").tolist()
    shas[:2] = OLD.column("sha256")[[3, 25]].tolist()
    _, notes = shared(join(OLD, new.with_columns(sha256=shas)))
    (told,) = (note for note in notes if "another class" in note)
    assert told.startswith("2 new images are among the old under another class, byte for byte, such as ")
    assert "'a' there, 'b' here" in told
    assert not any("another class" in note for note in shared(join(OLD, new))[1])


def test_what_a_given_split_lacks_is_drawn_from_its_train() -> None:
    splits, _ = shared(join(OLD, table(["b"] * 20, ["train"] * 20, "/new")))
    assert {name: splits.tolist().count(name) for name in SPLITS} == {"train": 14, "val": 3, "test": 3}


def test_images_that_both_name_count_once_and_may_not_change_their_class() -> None:
    again = Manifest.build(Path("/old/a"), path=["0.png", "new.png"], label=["a", "b"])
    joined = join(OLD, again)
    assert len(joined.manifest) == 41
    assert joined.notes == ("1 images of the new data are among the old, and count once.",)
    assert str(joined.manifest.absolute_paths()[-1]) == "/old/a/new.png"
    with pytest.raises(DataError, match="1 images have another class"):
        join(OLD, Manifest.build(Path("/old/a"), path=["0.png"], label=["b"]))


def test_replay_draws_so_many_of_each_class_from_train_alone_and_nested() -> None:
    joined = join(OLD, table(["b"] * 6, ["train"] * 6, "/new"))
    manifest, is_old = joined.manifest, joined.is_old
    drawn = {}
    for number in (0, 3, 9, 100, None):
        rows, sentence = replayed(manifest, is_old, number, seed=5)
        chosen = manifest.take(rows)
        assert sorted(chosen.column("split")[is_old[rows]].tolist()).count("val") == 6
        assert (~is_old[rows]).sum() == 6
        again = [row for row in rows if is_old[row] and manifest.column("split")[row] == "train"]
        labels = manifest.column("label")[again].tolist()
        expected = 14 if number is None else min(14, number)
        assert (labels.count("a"), labels.count("c")) == (expected, expected)
        drawn[number] = set(again)
        assert ("forget" in sentence) == (number == 0)
    assert drawn[3] < drawn[9] < drawn[100] == drawn[None]
    assert set(replayed(manifest, is_old, 3, seed=6)[0].tolist()) != set(
        replayed(manifest, is_old, 3, seed=5)[0].tolist()
    )


def test_the_sentence_says_cost_gain_or_neither() -> None:
    draw = np.random.default_rng(0)
    labels = [("a", "c")[number % 2] for number in range(200)]
    ids = [str(number) for number in range(200)]
    place = {"a": 0, "b": 1, "c": 2}

    def answers(share_right: float, names: tuple[str, ...]) -> Answers:
        rows = []
        for label in labels:
            right = draw.random() < share_right
            said = label if right else ("b" if "b" in names else {"a": "c", "c": "a"}[label])
            rows.append([0.8 if name == said else 0.2 / (len(names) - 1) for name in names])
        return Answers(ids, labels, names, np.array(rows))

    for was, now, begins in (
        (0.95, 0.6, "The new class cost the two old ones 0."),
        (0.6, 0.95, "The new class cost the two old ones nothing: their accuracy rose by 0."),
    ):
        cost = measure_cost(answers(was, ("a", "c")), answers(now, ("a", "b", "c")), None, seed=0)
        assert cost.sentence().startswith(begins)
        assert [each.name for each in cost.classes if each.is_new] == ["b"]
    same = answers(0.9, ("a", "c"))
    wider = np.zeros((200, 3))
    wider[:, [place["a"], place["c"]]] = same.probabilities
    risen = wider.copy()
    wrong = int(np.flatnonzero(wider.argmax(axis=1) != [place[label] for label in labels])[0])
    risen[wrong] = np.eye(3)[place[labels[wrong]]]
    cost = measure_cost(same, Answers(ids, labels, ("a", "b", "c"), risen), None, seed=0)
    assert cost.sentence().startswith("With the new class the accuracy of the two old ones rose by 0.01")
    assert cost.sentence().endswith("this cannot be told apart from nothing.")
    assert cost.further_sentences() == ["No test image is of b, so nothing is known of how often that is right."]
    cost = measure_cost(same, Answers(ids, labels, ("a", "b", "c"), wider), None, seed=0)
    assert cost.sentence().endswith("of accuracy on 200 test images; this cannot be told apart from nothing.")
    assert cost.lost == ()
    assert cost.num_taken_for_new == 0
