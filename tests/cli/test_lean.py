"""The command line's process goes without pandas, and takes it from nobody who asks for it."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("pandas") is None, reason="there is no pandas to keep out")

_AUDIT = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
for name in ("cat", "dog"):
    for number in range(6):
        Path(f"photos/{name}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([number, len(name)]).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}/{number}.png")
from foveal.cli import main
sys.argv = ["foveal", "audit", "photos"]
try:
    main()
except SystemExit as end:
    print("ended with", end.code)
print("pandas" in sys.modules)
"""
_AFTERWARDS = """
from foveal.cli.lean import keep_pandas_out
keep_pandas_out()
import sys
import pyarrow
pyarrow.array(["a"])
pyarrow.scalar("a")
assert "pandas" not in sys.modules and not any(type(each).__name__ == "_Absent" for each in sys.meta_path)
import pandas
frame = pandas.DataFrame({"a": [1.0, None]})
print(pyarrow.Table.from_pandas(frame)["a"].null_count, pyarrow.table({"a": [2]}).to_pandas()["a"][0])
"""


def run(program: str, folder: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=str(folder), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_audit_never_imports_it(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOVEAL_CACHE_DIR", f"{tmp_path}/cache")
    lines = run(_AUDIT, tmp_path)
    assert any(line.startswith("ended with") for line in lines)
    assert lines[-1] == "False"


def test_whoever_wants_it_later_gets_it_and_so_does_arrow(tmp_path: object) -> None:
    assert run(_AFTERWARDS, tmp_path) == ["1 2"]
