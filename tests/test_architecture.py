"""The house rules that can be read from the source: which module may know which, and what an import may cost."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import foveal
from foveal.config import Section

ROOT = Path(foveal.__file__).parent
MAX_LINES = 450
HEAVY = {
    *("torch", "torchvision", "timm", "lightning", "kornia", "safetensors", "huggingface_hub"),
    *("matplotlib", "sklearn", "pyarrow", "scipy", "pandas", "jinja2"),
    *("onnx", "onnxruntime", "onnxscript", "fastapi", "starlette", "uvicorn"),
}
LAYERS: dict[str, float] = {
    **dict.fromkeys(("errors", "types", "files", "file_lock", "extras", "version"), 0),
    **dict.fromkeys(("config", "machine", "run_folder", "progress"), 1),
    "pixels": 1.5,
    "data": 2,
    "auditing": 2.5,
    **dict.fromkeys(("model", "inference", "prediction", "prediction_journal"), 3),
    **dict.fromkeys(("predictions", "exported", "metrics"), 3),
    "training": 4,
    **dict.fromkeys(("evaluation", "explaining", "exporting"), 5),
    "experiments": 5.5,
    **dict.fromkeys(("report", "serving"), 6),
    **dict.fromkeys(("api", "cli", "__main__", "__init__"), 7),
}


def module_name(file: Path) -> str:
    parts = ["foveal", *file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in SOURCES.items()}


def imports_of(name: str) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in a module, also for types alone and within functions, with its line."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield (below if below in SOURCES else str(node.module)), node.lineno


def arrows_of(name: str) -> Iterator[tuple[str, int]]:
    return ((target, line) for target, line in imports_of(name) if target.partition(".")[0] == "foveal")


def layer_of(name: str) -> float:
    return LAYERS[name.split(".")[1] if "." in name else "__init__"]


def test_every_part_has_its_layer() -> None:
    assert {name.split(".")[1] for name in SOURCES if "." in name} <= set(LAYERS)
    assert len(SOURCES) > 80


def test_no_arrow_points_up() -> None:
    upward = [
        f"{name}:{line} ({layer_of(name):g}) imports {target} ({layer_of(target):g})"
        for name in SOURCES
        for target, line in arrows_of(name)
        if layer_of(target) > layer_of(name)
    ]
    assert upward == []


def test_no_two_modules_need_each_other() -> None:
    graph = {name: {target for target, _ in arrows_of(name)} - {"foveal"} for name in SOURCES if name != "foveal"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_metrics_need_numpy_and_nothing_below_but_the_ground() -> None:
    standard = set(sys.stdlib_module_names)
    foreign = [
        f"{name}:{line} imports {target}"
        for name in SOURCES
        if name.startswith("foveal.metrics")
        for target, line in imports_of(name)
        if not (
            target.partition(".")[0] in {*standard, "numpy", "pydantic"}
            or target.startswith("foveal.metrics")
            or (target.startswith("foveal.") and layer_of(target) == 0)
        )
    ]
    assert foreign == []


def test_only_the_command_line_prints() -> None:
    """The command line speaks by typer's echo, in one place; nothing else speaks at all."""
    speaking = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {"print", "echo"}
    }
    assert speaking - {"foveal.progress"} == {"foveal.cli.shell"}


def test_files_stay_small() -> None:
    sizes = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in SOURCES.items()}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


def imported(*arguments: str) -> set[str]:
    """The modules that a fresh interpreter imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("train", "--help"), ("predict", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    names = imported("-m", "foveal", *arguments)
    assert "foveal.cli" in names
    assert {name.partition(".")[0] for name in names} & HEAVY == set()
    # Of foveal itself, no more than the ground and the configuration.
    assert {name for name in names if name.startswith("foveal.") and layer_of(name) in (2, 3, 4, 5, 5.5, 6)} == set()


def test_importing_foveal_costs_nothing_and_knows_its_verbs() -> None:
    added = imported("-c", "import foveal; dir(foveal)") - imported("-c", "pass")
    assert {name.partition(".")[0] for name in added} & (HEAVY | {"numpy", "PIL", "pydantic", "yaml"}) == set()
    assert dir(foveal) == sorted(foveal.__all__)
    for name in foveal.__all__:
        assert getattr(foveal, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = foveal.trian  # type: ignore[attr-defined]


WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not to be imported here")

sys.meta_path.insert(0, Blocker())
"""

SERVER = """
import io, sys
from PIL import Image
from foveal.pixels.policy import PixelPolicy, decode, to_square, to_store
from foveal.metrics import softmax
from foveal.model.bundle import read_bundle

spec = read_bundle(__import__("pathlib").Path(sys.argv[1])).spec
content = io.BytesIO()
Image.effect_noise((90, 60), 80).save(content, "PNG")
geometry, policy = spec.preprocessing.geometry(), spec.preprocessing.policy()
print(to_square(to_store(decode(content.getvalue(), policy).pixels, geometry), geometry).shape, spec.class_names)
"""


def test_a_server_needs_neither_torch_nor_what_comes_with_it(tiny_bundle: Path) -> None:
    """It reads a bundle and makes the model's input with the light package alone."""
    code = WITHOUT.format(blocked=HEAVY) + SERVER
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.stderr == ""
    assert done.stdout == "(32, 32, 3) ('discs', 'squares', 'stripes')\n"


@pytest.mark.parametrize(
    "name", [name for name in SOURCES if layer_of(name) <= 1 or name.startswith(("foveal.metrics", "foveal.data.pix"))]
)
def test_what_lies_low_names_no_heavy_library_at_its_top(name: str) -> None:
    top = [node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name if isinstance(node, ast.Import) else str(node.module) for node in top for alias in node.names}
    assert {each.partition(".")[0] for each in names} & HEAVY == set()


def sections() -> list[type[Section]]:
    for module in pkgutil.walk_packages(foveal.__path__, "foveal."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[Section]] = []
    waiting = [Section]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += [each for each in below if each.__module__.startswith("foveal.")]
        waiting += below
    return found


def test_every_key_of_every_section_is_described() -> None:
    found = sections()
    assert len(found) > 15
    bare = [
        f"{each.__name__}.{key}" for each in found for key, field in each.model_fields.items() if not field.description
    ]
    # A resolved section narrows the types and keeps the descriptions of the wish.
    resolved = {name for name in bare if name.startswith("Resolved")}
    described = {
        f"{each.__name__}.{key}" for each in found for key, field in each.model_fields.items() if field.description
    }
    assert {name for name in resolved if name.removeprefix("Resolved") not in described} == set()
    assert set(bare) - resolved == set()


def test_every_section_is_closed_and_cannot_be_changed() -> None:
    for each in sections():
        assert each.model_config.get("extra") == "forbid", each
        assert each.model_config.get("frozen"), each
