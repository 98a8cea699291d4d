"""RUN_OR_BUNDLE, whatever of both it is."""

from pathlib import Path

import pytest

from foveal.api.opening import open_predictor, refuse_unfinished
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
