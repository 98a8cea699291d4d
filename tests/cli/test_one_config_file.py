"""One configuration file for a whole project: every verb takes it, checks all of it, and reads its own sections."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from foveal.cli import app
from foveal.config import load, project
from foveal.exporting.config import ExportSettings, read_settings
from foveal.serving.config import read_serve_config
from foveal.training.config import Config, read_config
from small_runs import small_run

WHOLE = """
seed: 3
data: {val_fraction: 0.2}
train:
  # epochs: 8
optim: {name: sgd}
export: {num_images: 300}
serve: {max_images: 3, allowed_hosts: [lab.example]}
"""
BROKEN = """
seed: 3
optim: {name: sgd, lr: quick}
train: {epoch: 3}
export: {num_image: 300}
serve: {max_images: none, queue_size: 0, train: {}}
exprot: {num_images: 300}
max_upload_mib: 3
serve.max_batch: 4
"""
PROBLEMS = {
    "optim.lr: expected a valid number or 'auto', and came 'quick'",
    "train.epoch: no such key; did you mean train.epochs?",
    "export.num_image: no such key; did you mean export.num_images?",
    "serve.max_images: expected a valid integer, and came 'none'",
    "serve.queue_size: expected greater than or equal to 1, and came 0",
    "serve.train: no such key",
    "exprot: no such key; did you mean export?",
    "max_upload_mib: no such key; did you mean serve.max_upload_mib?",
    "serve.max_batch: no such key; write `max_batch:` below `serve:`",
}
ARGUMENTS = {
    "audit": ["DATA"],
    "compare": ["RUN", "OTHER", "--data", "DATA"],
    "crossval": ["DATA"],
    "ensemble": ["RUN", "OTHER", "--data", "DATA", "--out", "OUT"],
    "evaluate": ["RUN", "DATA"],
    "export": ["RUN", "--data", "DATA"],
    "extend": ["RUN", "--data", "DATA", "--out", "OUT"],
    "preview": ["DATA", "--out", "sheet.png"],
    "probe": ["DATA"],
    "serve": ["RUN"],
    "split": ["DATA", "--out", "OUT"],
    "train": ["DATA", "--out", "OUT"],
    "tune": ["DATA", "--space", "OUT", "--out", "OUT"],
}


@pytest.fixture(scope="module")
def trained(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(make_images, tmp_path_factory)


def verbs_with_a_file() -> set[str]:
    command: Any = typer.main.get_command(app)
    return {
        name
        for name, verb in command.commands.items()
        if any("--config" in parameter.opts for parameter in verb.params)
    }


def test_no_verb_is_forgotten_here() -> None:
    assert set(ARGUMENTS) == verbs_with_a_file()


def problems_of(verb: str, trained: Path, folder: Path, *settings: str) -> set[str]:
    """What is wrong with the configuration, as the verb tells it before anything else."""
    places = {"DATA": folder / "data", "OUT": folder / "out", "RUN": trained, "OTHER": folder / "other"}
    words = [str(places.get(each, each)) for each in ARGUMENTS[verb]]
    done = CliRunner().invoke(app, [verb, *words, "--config", str(folder / "project.yaml"), *settings])
    assert done.exit_code == 2, done.output
    assert "The configuration from" in done.output, done.output
    return {line.removeprefix("  - ") for line in done.output.splitlines() if line.startswith("  - ")}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_every_verb_takes_the_sections_of_all_and_tells_every_mistake(verb: str, trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "project.yaml"
    shutil.copytree(trained, tmp_path / "other")
    file.write_text(BROKEN, encoding="utf-8")
    assert problems_of(verb, trained, tmp_path) == PROBLEMS
    # Nothing is wrong with a whole file, so that the one mistake of the command line is all there is to tell.
    file.write_text(WHOLE, encoding="utf-8")
    slip, told = ("serve.max_image=1", "serve.max_images") if verb == "serve" else ("train.epoch=1", "train.epochs")
    problem = f"{slip.partition('=')[0]}: no such key; did you mean {told}?"
    assert problems_of(verb, trained, tmp_path, "--set", slip) == {problem}


@pytest.mark.parametrize("verb", ["train", "audit", "export", "serve"])
def test_an_override_that_the_verb_does_not_read_is_told_with_the_verb_that_does(
    verb: str, trained: Path, tmp_path: Path
) -> None:
    """In a file it is for the other verb; typed for this one it is a mistake, and would silently change nothing."""
    (tmp_path / "project.yaml").write_text(WHOLE, encoding="utf-8")
    elsewhere = {
        "serve.max_images=4": "serve is read by foveal serve alone, and would change nothing here",
        "export.num_images=400": "export is read by foveal export alone, and would change nothing here",
        "train.epochs=4": "train is read by foveal train and the other verbs that take images alone, "
        "and would change nothing here",
    }
    reads = {"train": {"train"}, "audit": {"train"}, "export": {"train", "export"}, "serve": {"serve"}}[verb]
    settings = [word for text in elsewhere for word in ("--set", text)]
    assert problems_of(verb, trained, tmp_path, *settings) == {
        f"--set {text}: {words}" for text, words in elsewhere.items() if text.partition(".")[0] not in reads
    }


def test_each_reads_its_own_sections_and_nothing_of_the_others(tmp_path: Path) -> None:
    file = tmp_path / "project.yaml"
    file.write_text(WHOLE, encoding="utf-8")
    training, exporting, serving = read_config(file), read_settings(file), read_serve_config(file)
    assert (training.seed, training.optim.name) == (exporting.seed, exporting.optim.name) == (3, "sgd")
    assert type(training) is Config
    assert (exporting.export.num_images, serving.max_images) == (300, 3)
    assert type(read_config(ExportSettings(seed=5))) is Config
    # A run's own configuration is none of a project, and stays closed.
    with pytest.raises(Exception, match="export: no such key"):
        load(Config, file)


def test_every_section_is_known_with_its_reader(tmp_path: Path) -> None:
    roots = [reader.model() for reader in project.READERS]
    sections = {name for root in roots for name in root.model_fields}
    assert sections >= {
        "seed",
        "data",
        "split",
        "audit",
        "augment",
        "model",
        "optim",
        "train",
        "log",
        "export",
        "serve",
    }
    for root in roots:
        others = dict(project.other_sections(root))
        assert set(others) == sections - set(root.model_fields)
        assert all(section in others[section].model_fields for section in others)


CODE = """
import json, sys
from foveal.serving.config import read_serve_config
print(read_serve_config(sys.argv[1]).max_images)
from foveal.training.config import read_config
print(read_config(sys.argv[1]).seed)
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def test_checking_the_sections_of_others_brings_none_of_their_libraries(tmp_path: Path) -> None:
    (tmp_path / "project.yaml").write_text(WHOLE, encoding="utf-8")
    command = [sys.executable, "-c", CODE, str(tmp_path / "project.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    images, seed, modules = done.stdout.splitlines()
    assert (images, seed) == ("3", "3")
    heavy = {"torch", "timm", "onnx", "onnxruntime", "fastapi", "starlette", "uvicorn", "pyarrow", "scipy", "PIL"}
    assert set(json.loads(modules)) & heavy == set()
