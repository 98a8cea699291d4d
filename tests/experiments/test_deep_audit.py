from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from foveal.config import load
from foveal.data.config import DataConfig
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.scan import scan
from foveal.errors import InterruptedRunError, MissingExtraError
from foveal.experiments import out_of_fold
from foveal.experiments.deep_audit import MIN_INDEPENDENT, DeepResult, deep_findings
from foveal.experiments.out_of_fold import NUM_FOLDS
from foveal.model.build import Architecture, build
from foveal.pixels.policy import Geometry
from foveal.progress import Silence
from foveal.training.config import Config

GEOMETRY = Geometry(size_px=32, store_px=34)
CONFIG = ("train.device=cpu", "data.num_workers=1")


def ingested(folder: Path) -> Ingested:
    manifest = scan(str(folder), DataConfig()).manifest
    return ingest(manifest, Recipe(GEOMETRY), keep_pixels=True, cap_bytes=1 << 30, num_workers=1)


def look(data: Ingested, *overrides: str, clusters: np.ndarray | None = None) -> DeepResult:
    alone = np.full(len(data.manifest), -1)
    return deep_findings(
        data.manifest,
        data.source,
        GEOMETRY,
        alone if clusters is None else clusters,
        config=load(Config, None, (*CONFIG, *overrides)),
        progress=Silence(),
    )


def relabelled(data: Ingested, rows: list[int]) -> Ingested:
    """The same data with the next class as the label of some rows."""
    labels = data.manifest.column("label").copy()
    names = data.manifest.class_names
    for row in rows:
        labels[row] = names[(names.index(labels[row]) + 1) % len(names)]
    return replace(data, manifest=data.manifest.with_columns(label=labels))


def rows_of(result: DeepResult, kind: str) -> list[int]:
    return sorted(int(each.row) for each in result.findings if each.finding == kind and each.row is not None)


@pytest.fixture
def shapes(make_images: Callable[..., Path], tmp_path: Path) -> Path:
    return make_images(tmp_path / "shapes", num_per_class=50, seed=3)


def test_planted_labels_and_pictures_are_found_and_no_others(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_fold, "_QUICK_STEPS", 180)  # such shapes take no more
    white = Image.new("RGB", (32, 32), "white")
    white.save(shapes / "discs" / "white.png")
    data = ingested(shapes)
    names = data.manifest.column("path").tolist()
    planted = [names.index(f"{kind}.png") for kind in ("discs/4", "squares/10", "stripes/20", "stripes/36")]
    planted += [names.index("squares/7.jpg")]
    result = look(relabelled(data, planted))
    assert rows_of(result, "off_domain") == [names.index("discs/white.png")]
    found = rows_of(result, "wrong_label")
    assert len(set(found) & set(planted)) >= 3
    assert len(set(found) - set(planted)) <= 1
    truth = data.manifest.column("label")
    for each in result.findings:
        assert each.severity == "warning"
        assert each.repair == "none"
        if each.row in planted:
            assert each.related_label == truth[each.row]
            assert each.value is not None
            assert 0.0 <= each.value < 0.1
            assert repr(truth[each.row]) in each.detail
    assert [(each["check"], each["status"]) for each in result.checks] == [
        ("off_domain", "done"),
        ("wrong_label", "done"),
    ]
    assert "quick model trained here on 4 folds, out-of-fold accuracy 0." in result.checks[1]["detail"]
    assert result.out_of_fold_accuracy is not None
    assert result.out_of_fold_accuracy > 0.8


def test_copies_share_a_fold_and_so_do_not_speak_for_each_other(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ingested(shapes)
    seen = []

    def note(source, geometry, rows, labels, folds, **_):  # type: ignore[no-untyped-def]
        seen.append((rows, labels, folds))
        return out_of_fold.OutOfFold(np.eye(3)[labels])

    monkeypatch.setattr("foveal.experiments.deep_audit.by_quick_model", note)
    clusters = np.full(len(data.manifest), -1)
    draw = np.random.default_rng(0)
    clusters[draw.permutation(len(clusters))[:60]] = np.repeat(np.arange(12), 5)
    look(data, clusters=clusters)
    ((rows, labels, folds),) = seen
    assert rows.tolist() == data.manifest.usable().tolist()
    for cluster in range(12):
        assert len(set(folds[clusters[rows] == cluster].tolist())) == 1
    counts = np.array(
        [[((folds == fold) & (labels == label)).sum() for label in range(3)] for fold in range(NUM_FOLDS)]
    )
    assert counts.min() >= 10
    assert counts.max() <= 15


def test_small_classes_are_not_judged_and_few_images_not_at_all(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "few", num_per_class=MIN_INDEPENDENT - 1)
    result = look(ingested(folder))
    assert [each["status"] for each in result.checks] == ["skipped", "skipped"]
    assert "33 usable images are too few" in result.checks[0]["detail"]
    make_images(folder, ("discs",), num_per_class=60)
    result = look(ingested(folder))
    assert [each["status"] for each in result.checks] == ["done", "skipped"]
    assert f"Fewer than two classes have the {MIN_INDEPENDENT} independent images" in result.checks[1]["detail"]


def test_a_pretrained_backbone_is_used_where_its_weights_are_at_hand(
    shapes: Path, tmp_path: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    entry = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("c0ffee")
    (entry / "snapshots" / "c0ffee").mkdir(parents=True)
    torch.manual_seed(0)
    published = build(Architecture(name="test_resnet", num_classes=1000, image_size=32)).net.state_dict()
    save_file(published, entry / "snapshots" / "c0ffee" / "model.safetensors")
    monkeypatch.delattr("foveal.experiments.deep_audit.by_quick_model")
    data = ingested(shapes)
    planted = [12, 70, 130]
    result = look(relabelled(data, planted), "model.name=test_resnet")
    assert result.checks[0]["detail"].endswith("and by what test_resnet sees.")
    assert "The pretrained test_resnet and a linear model on 4 folds" in result.checks[1]["detail"]
    # Even random features tell most of these shapes apart.
    assert result.out_of_fold_accuracy is not None
    assert result.out_of_fold_accuracy > 0.6
    assert len(rows_of(result, "wrong_label")) <= 6
    assert no_network == []


def test_without_cleanlab_nothing_is_begun(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ingested(shapes)
    monkeypatch.setattr("foveal.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="cleanlab is needed to find labels that are probably wrong"):
        look(data)


def test_a_signal_stops_it_without_pointing_to_a_run(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise InterruptedRunError("Stopped.", signal_number=15, fix="go on with: foveal train --resume")

    data = ingested(shapes)
    monkeypatch.setattr("foveal.experiments.out_of_fold.fit", stop)
    with pytest.raises(InterruptedRunError) as caught:
        look(data)
    assert caught.value.exit_code == 143
    assert "resume" not in caught.value.fix
