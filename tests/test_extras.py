"""Optional libraries."""

import subprocess
import sys
from pathlib import Path

import pytest

from foveal.errors import MissingExtraError
from foveal.extras import missing_extra, require


def test_what_is_installed_is_imported() -> None:
    assert require("xml.dom", extra="train", purpose="test").__name__ == "xml.dom"


@pytest.mark.parametrize("module", ["not_there_at_all", "not_there_at_all.below"])
def test_a_missing_library_names_its_purpose_and_its_extra(module: str) -> None:
    with pytest.raises(MissingExtraError, match=f"{module} is needed to serve, and it is not installed") as caught:
        require(module, extra="serve", purpose="serve")
    assert caught.value.fix == "pip install 'foveal[serve]'"


def test_a_library_that_is_there_and_broken_tells_its_own_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("import not_there_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_either"):
        require("broken_library", extra="train", purpose="test")
    assert "broken_library" not in sys.modules


def test_an_import_that_fails_for_want_of_an_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    wanting = ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")
    assert "foveal[train]" in str(missing_extra(wanting))
    assert missing_extra(ModuleNotFoundError("No module named 'foveal.nothing'", name="foveal.nothing")) is None


def test_a_verb_in_python_says_which_extra_it_wants() -> None:
    code = """
import subprocess
import sys
sys.modules["torch"] = None  # what an import finds where it is not installed
import foveal
try:
    foveal.train
except foveal.errors.MissingExtraError as error:
    print(error.fix)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "pip install 'foveal[train]'"
