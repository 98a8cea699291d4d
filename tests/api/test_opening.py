"""RUN_OR_BUNDLE, whatever of both it is."""

from pathlib import Path

import pytest

from foveal.api.explain import plan_explanation
from foveal.api.export import plan_export
from foveal.api.opening import open_any_predictor, open_predictor, refuse_unfinished
from foveal.errors import ArtifactError, ConfigError
from small_runs import CLASSES, copy_of


def test_a_run_and_its_bundle_open_the_same_classifier(trained: Path) -> None:
    for path in (trained, trained / "bundle", str(trained)):
        assert open_predictor(path, device="cpu").class_names == CLASSES


def test_an_unfinished_run_says_how_to_finish_it(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "a run")
    (run / "bundle" / "bundle.json").unlink()
    with pytest.raises(ArtifactError, match="not come to its end") as caught:
        open_predictor(run)
    assert caught.value.fix.endswith(f"foveal train --out '{run}' --resume")
    refuse_unfinished(tmp_path)  # what is no run at all is for others to judge


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="neither a bundle nor a run"):
        open_predictor(tmp_path)
    with pytest.raises(ConfigError, match="--device tpu"):
        open_predictor(tmp_path, device="tpu")


def test_a_path_that_is_not_there_is_said_so_with_what_is_near(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "first run ü").mkdir()
    with pytest.raises(ArtifactError, match="there is no such file or folder") as caught:
        open_predictor(tmp_path / "first rum ü")
    assert str(tmp_path / "first run ü") + "'" in caught.value.fix
    with pytest.raises(ArtifactError, match="no such"):
        open_any_predictor(tmp_path / "gone" / "run", engine="onnx")


@pytest.mark.parametrize(
    ("files", "words"), [(["model.ts"], "TorchScript"), (["config.json", "model.safetensors"], "for timm")]
)
def test_what_was_exported_for_others_is_called_by_its_name(files: list[str], words: str, tmp_path: Path) -> None:
    folder = tmp_path / "an export"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=words) as caught:
        open_any_predictor(folder)
    assert "run or bundle that it was made from" in caught.value.fix


def test_an_exported_model_is_refused_where_a_run_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    for verb in (open_predictor, plan_export, lambda path: plan_explanation(path, ["a.png"], out=tmp_path / "out")):
        with pytest.raises(ArtifactError, match="is an exported model"):
            verb(tmp_path)  # type: ignore[operator]
