"""What `foveal serve` is given, as exported models with names; runs and bundles are exported on the way."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveal.errors import ArtifactError, FovealError
from foveal.exported.opening import find_export, is_export
from foveal.progress import Terminal
from foveal.run_folder import is_run_folder
from foveal.serving.messages import ServedExport

_PLAIN_NAMES = {"bundle", "export", "exported", "onnx"}
"""Folders that are called so in many places: the folder above has the better name."""


def find_models(paths: Sequence[Path], *, is_exporting: bool = True) -> tuple[ServedExport, ...]:
    """The exported models, exporting what is none yet.

    Args:
        paths: exports, runs and bundles, the default first.
        is_exporting: False for naming runs and bundles as they are, as for a dry run.

    Raises:
        ArtifactError: some are none of these, or an export is not possible here; all at once.
    """
    problems = [problem for path in paths if (problem := _problem(path))]
    if problems:
        raise ArtifactError("Not everything can be served.", problems=problems, fix=_how_to_export(paths))
    found = []
    for name, path in zip(names_of(paths), paths, strict=True):
        if is_export(path):
            found.append(ServedExport(name, str(find_export(path).resolve())))
        else:
            found.append(ServedExport(name, str(_exported(path) if is_exporting else path)))
    return tuple(found)


def names_of(paths: Sequence[Path]) -> list[str]:
    """What models are called: as their folders are, made unique by a number.

    Args:
        paths: files or folders, in order.
    """
    names: list[str] = []
    for path in paths:
        whole = path.resolve()
        folder = whole.parent if whole.is_file() else whole
        if folder.name in _PLAIN_NAMES and folder.parent.name:
            folder = folder.parent
        plain = name = folder.name or "model"
        number = 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names


def _problem(path: Path) -> str | None:
    if is_export(path):
        return None
    if not path.exists():
        return f"{path}: there is no such file or folder"
    if not _is_model(path):
        return f"{path}: neither an exported model, nor a run or a bundle"
    if find_spec("torch") is None or find_spec("onnx") is None:
        return f"{path}: a run or a bundle, which must be exported first, and torch and onnx are not installed here"
    return None


def _is_model(path: Path) -> bool:
    """Whether it is a run or a bundle."""
    return is_run_folder(path) or any((path / place / "bundle.json").is_file() for place in (".", "bundle"))


def _how_to_export(paths: Sequence[Path]) -> str:
    run = next((path for path in paths if not is_export(path) and _is_model(path)), None)
    if run is None:
        return "check the paths; what can be served is written by: foveal export RUN --to onnx --out DIR"
    return f"on a machine with foveal[train,export]: foveal export {shlex.quote(str(run))} --to onnx --out DIR"


def _exported(path: Path) -> Path:
    """Export in a process of its own, so that this one never holds torch.

    Raises:
        FovealError: as the export does.
    """
    command = [sys.executable, "-P", "-m", "foveal.serving.finding", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    try:
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise ArtifactError(f"The export of {path} ended with exit code {done.returncode}.") from error
    if "path" in said:
        return Path(said["path"])
    raise ArtifactError(said["message"], problems=said["problems"], fix=said["fix"])


def main(path: Path) -> dict[str, Any]:
    """What the process of its own says at its end, as plain values."""
    from foveal.exporting.on_the_way import exported_of

    try:
        return {"path": str(exported_of(path, Terminal()).resolve())}
    except FovealError as error:
        return {"message": error.message, "problems": list(error.problems), "fix": error.fix}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(Path(sys.argv[1]))) + "\n")
