"""Exporting for real: a small trained run becomes a file, and no file comes out that is not what the run says."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import kill_after
from foveal.api.export import export
from foveal.api.export_result import ExportResult
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError, ExportError
from foveal.exported.engine import OnnxPredictor
from foveal.exported.opening import open_export
from foveal.exporting import proven
from foveal.exporting.on_the_way import exported_of
from foveal.files import sha256_file
from foveal.inference import Predictor
from foveal.metrics import SplitMetrics
from foveal.model.build import Architecture, build
from foveal.model.bundle import write_bundle
from foveal.progress import Silence
from small_runs import CLASSES, copy_of, small_run

MakeImages = Callable[..., Path]
QUICK = ("export.num_speed_images=0",)


@pytest.fixture(scope="module")
def trained(make_images: MakeImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one's own, for an export counts as a look at its test images."""
    return copy_of(small_run(make_images, tmp_path_factory), tmp_path_factory.mktemp("to export") / "run")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    out = tmp_path_factory.mktemp("exports") / "an export"
    return export(trained, out, overrides=["export.num_speed_images=4", "export.speed_batch_size=2"])


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_says_what_the_run_says_and_the_record_says_so(trained: Path, exported: ExportResult) -> None:
    assert listing(exported.folder) == ["README.md", "model.onnx", "parity.json"]
    record = json.loads((exported.folder / "parity.json").read_text(encoding="utf-8"))
    assert record["passed"] is True
    assert record["file"] == {
        "name": "model.onnx", "sha256": sha256_file(exported.file), "bytes": exported.file.stat().st_size,
    }  # fmt: skip
    assert record["bundle_sha256"] == sha256_file(trained / "bundle" / "bundle.json")
    assert record["opset"] == open_export(exported.folder).spec.opset
    assert exported.to_dict() == {"folder": str(exported.folder), "path": str(exported.file), **record}
    # By hand, image by image: the test split is small, so that val and train are in as well.
    manifest = Manifest.read(trained / "manifest.parquet")
    assert exported.parity.num_images == len(manifest.usable()) == 90
    paths = [manifest.absolute_paths()[row] for row in manifest.of_split("test")]
    engines = Predictor(trained, device="cpu"), OnnxPredictor(exported.folder)
    said = [np.stack([each.probabilities for each in engine(paths)]) for engine in engines]  # type: ignore[union-attr]
    assert np.abs(said[0] - said[1]).max() <= exported.parity.max_difference < 1e-5
    by_split = {each.split: each for each in exported.parity.splits}
    for split, pair in by_split.items():
        metrics = SplitMetrics.read(trained / "evaluation" / split / "metrics.json")
        assert pair.bundle == pair.file == pytest.approx(metrics.accuracy)
        assert pair.num_learnt == (metrics.num_images if split == "train" else 0)
    assert exported.parity.image_input is not None
    assert exported.parity.image_input.max_difference <= 1e-6
    assert any("Only 90 images" in note for note in exported.parity.notes)


def test_engines_are_timed_side_by_side(exported: ExportResult) -> None:
    speed = exported.speed
    assert speed is not None
    names = [each.name for each in speed.engines]
    assert names[:2] == ["torch", "torch_channels_last"]
    assert "onnx_fp32" in names
    for each in speed.engines:
        low, high = each.time_ratio_interval
        assert 0 < low <= each.time_ratio <= high
        assert each.with_decoding_p50_ms > each.one_p50_ms > 0
    onnx = speed.of("onnx_fp32")
    assert onnx is not None
    assert onnx.size_mib == pytest.approx(exported.file.stat().st_size / 2**20)
    assert speed.fastest == min(speed.engines, key=lambda each: each.one_p50_ms).name
    assert len(exported.speed_table()) == 1 + len(names)
    assert "<table>" in exported._repr_html_()


def test_a_look_at_test_images_is_counted(trained: Path, exported: ExportResult) -> None:
    looks = json.loads((trained / "evaluation" / "looks.json").read_text(encoding="utf-8"))
    assert [each["verb"] for each in looks["test"]].count("export") >= 1


def test_a_file_of_another_network_is_stopped_and_leaves_no_trace(
    trained: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written here is a faultless file, of the same network with one weight changed."""
    run = copy_of(trained, tmp_path / "run")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model.onnx", "parity.json"):
        (out / name).write_text("{}", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    make = proven.make_cores

    def changed(bundle: object) -> object:
        import onnx

        (core,) = make(bundle)  # type: ignore[arg-type]
        weights = max(core.model.graph.initializer, key=lambda each: len(each.raw_data))
        values = onnx.numpy_helper.to_array(weights).copy()
        values.flat[: values.size // 50] += 0.5
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        return [core]

    monkeypatch.setattr(proven, "make_cores", changed)
    with pytest.raises(ExportError) as raised:
        export(run, out, overrides=QUICK, force=True)
    assert raised.value.exit_code == 4
    assert "does not say what the bundle says" in raised.value.message
    assert "probabilities differ by up to" in str(raised.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert listing(tmp_path) == ["out", "run", "tiny-bundle"]


def test_what_is_wrong_is_said_before_anything_is_made(
    trained: Path, exported: ExportResult, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="--data DATA"):
        export(tiny_bundle, out)
    with pytest.raises(ConfigError, match="--int8 is for --to onnx"):
        export(trained, out, to="torchscript", int8=True)
    with pytest.raises(ConfigError, match="num_image"):
        export(trained, out, overrides=["export.num_image=300"])
    with pytest.raises(ConfigError, match="would change nothing"):
        export(trained, out, overrides=["data.val_fraction=0.2"])
    with pytest.raises(ArtifactError, match="an exported model already"):
        export(exported.folder, out)
    with pytest.raises(ArtifactError, match="holds an export already"):
        export(trained, exported.folder)
    with pytest.raises(ArtifactError, match="lies in the bundle"):
        export(trained, trained / "bundle" / "export")
    with pytest.raises(ArtifactError, match="is not empty"):
        export(trained, trained, force=True)
    assert not out.exists()


def test_a_run_whose_images_are_gone_says_so_and_other_images_will_do(
    trained: Path, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(trained, tmp_path / "run")
    manifest = Manifest.read(run / "manifest.parquet")
    Manifest(manifest.table, tmp_path / "gone", manifest.class_names).write(run / "manifest.parquet")
    with pytest.raises(DataError, match="90 cannot be read") as raised:
        export(run, tmp_path / "out", overrides=QUICK)
    assert "--data DATA" in str(raised.value)
    others = make_images(tmp_path / "others", CLASSES, num_per_class=4, seed=9)
    monkeypatch.chdir(tmp_path)
    done = export("run/bundle", "run/an export", data=others, overrides=[*QUICK, "export.resize=outside"])
    assert done.parity.num_images == 12
    assert done.parity.image_input is None
    assert open_export(Path("run/an export")).spec.resize == "outside"
    assert done.parity.splits[0].num_learnt == 0  # the run's manifest knows what was learnt


def test_odd_class_names_three_images_and_no_photograph_at_all(tmp_path: Path) -> None:
    names = ('a "quoted" one', "a\nline", "<img src=x onerror=alert(1)>")
    architecture = Architecture(name="test_resnet", num_classes=3, image_size=32)
    spec = {
        "architecture": {"name": "test_resnet"},
        "class_names": names,
        "preprocessing": {
            "policy_version": 1, "max_pixels": 1_000_000, "size_px": 32, "store_px": 32, "fit": "pad",
            "interpolation": "bilinear", "background": (9, 8, 7), "mean": architecture.mean, "std": architecture.std,
        },
        "temperature": 0.7,
        "training_data": {"fingerprint": "0" * 64, "num_images": {}},
        "weights": {"source": "none", "licence": "none: trained from a random start"},
    }  # fmt: skip
    bundle = write_bundle(tmp_path / "bundle", spec, build(architecture).net.state_dict()).path
    rng = np.random.default_rng(0)
    table = ["path,label"]
    for at, name in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (40 + at, 30, 3), dtype=np.uint8)).save(tmp_path / f"{at}.png")
        quoted = name.replace('"', '""')
        table.append(f'{at}.png,"{quoted}"')
    (tmp_path / "three.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    done = export(bundle, tmp_path / "out", data=tmp_path / "three.csv", overrides=QUICK)
    assert done.parity.num_images == 3
    assert OnnxPredictor(tmp_path / "out").class_names == names
    assert [row[0] for row in done.parity_table()[2:]] == [names[0], repr(names[1]), names[2]]
    assert "<img" not in done._repr_html_()
    assert any("not known" in note for note in done.parity.notes)

    said: list[str] = []

    class Listening(Silence):
        def say(self, text: str) -> None:
            said.append(text)

    kept = exported_of(bundle, Listening())
    assert any("noise" in text for text in said)
    told = json.loads((kept / "parity.json").read_text(encoding="utf-8"))
    assert (told["is_real"], told["accuracy"], told["speed"]) == (False, None, None)
    stamp = (kept / "model.onnx").stat().st_mtime_ns
    assert exported_of(bundle, Listening()) == kept
    assert exported_of(kept, Listening()) == kept
    assert (kept / "model.onnx").stat().st_mtime_ns == stamp


def test_int8_and_torchscript_are_proven_from_their_files_too(trained: Path, tmp_path: Path) -> None:
    small = export(trained, tmp_path / "int8", int8=True, overrides=[*QUICK, "export.int8_points=5"])
    record = json.loads((small.folder / "parity.json").read_text(encoding="utf-8"))
    assert (record["precision"], record["file"]["name"]) == ("int8", "model.int8.onnx")
    # Of 63 training images all are calibrated on but none is in the gate.
    num_train = len(Manifest.read(trained / "manifest.parquet").of_split("train"))
    assert record["num_calibration_images"] == min(128, num_train)
    assert small.parity.num_images == 90 - record["num_calibration_images"]
    script = export(trained, tmp_path / "ts", to="torchscript", overrides=QUICK)
    assert listing(script.folder) == ["README.md", "model.ts", "parity.json"]
    assert script.parity.passed
    assert script.parity.max_difference < 1e-5


def test_an_export_that_is_killed_leaves_nothing_under_its_name(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kill_after("foveal.exporting.proven::_write", 1, ["export", str(trained), "--out", "out", "--to", "torchscript"])
    assert len(list(tmp_path.glob(".out.*.partial/export/model.ts"))) == 1
    assert len(list(tmp_path.iterdir())) == 1
    assert not (tmp_path / "out").exists()
