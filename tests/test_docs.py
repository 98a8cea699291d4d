"""The documentation says what the code does: its commands, keys, Python, links and generated pages are checked."""

import ast
import importlib.util
import inspect
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import typer
import typer.main
import yaml

import foveal
from foveal.api.audit import FILES
from foveal.auditing import findings
from foveal.auditing.kinds import KINDS
from foveal.auditing.repair_policy import read_policy
from foveal.cli import app
from foveal.config import known_keys, load, validate
from foveal.data.facts import MEASURES
from foveal.data.manifest import COLUMNS
from foveal.errors import FovealError
from foveal.exporting.config import read_settings as read_export_settings
from foveal.metrics import SplitMetrics
from foveal.model.bundle import BundleSpec
from foveal.pixels.policy import ALLOWED_FORMATS, REJECTION_CODES
from foveal.run_folder import RunFolder
from foveal.serving.config import ServeConfig, read_serve_config
from foveal.training.config import Config

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KEYS = {key for key, _ in known_keys(Config)}
# Typer's own base of all wrong usage, which has no public name.
USAGE_ERROR = typer.BadParameter.__bases__[0]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_DOTTED = re.compile(r"(?<![\w./-])(?:data|split|audit|augment|model|optim|train|log)(?:\.[a-z_0-9]+)+(?![\w(/])")


@dataclass(frozen=True)
class Piece:
    """A fenced block, or a span within a line, and the page that it stands on."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: {self.text.strip()[:100]}"


def pieces(page: Path) -> Iterator[Piece]:
    text = page.read_text(encoding="utf-8")
    for language, body in _FENCE.findall(text):
        yield Piece(page, language, body)
    for body in _SPAN.findall(_FENCE.sub("", text)):
        yield Piece(page, "span", body)


ALL = [piece for page in PAGES for piece in pieces(page)]


def commands(piece: Piece) -> Iterator[list[str]]:
    """The arguments of each `foveal ...` in a piece, behind prompts and pipes, continued lines joined."""
    if piece.language not in {"bash", "sh", "console", "span"}:
        return
    for line in piece.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|><&")
        lexer.whitespace_split = True
        part: list[str] = []
        for word in [*lexer, "|"]:
            if set(word) <= set("|><&"):
                if part[:1] == ["foveal"] or part[:2] == [".venv/bin/foveal"]:
                    yield part[1:]
                part = []
            else:
                part.append(word)


def faults_of_command(arguments: list[str], *, whole: bool) -> list[str]:
    """What is wrong with a command: an unknown verb, flag, key or value; with `whole`, missing arguments too."""
    group = typer.main.get_command(app)
    verb, rest = (arguments or [""])[0], arguments[1:]
    if verb.startswith("-"):
        return [] if verb in {"--help", "-h", "--version"} else [f"no such flag: {verb}"]
    command = group.commands.get(verb)
    if command is None:
        return [f"no such verb: {verb}"]
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    flags |= {"--help", "-h"}
    faults = [f"no such flag: {word}" for word in rest if word.startswith("-") and len(word) > 1 and word not in flags]
    overrides = [after for before, after in itertools.pairwise(rest) if before == "--set"]
    overrides = [text for text in overrides if text != "section.key=value"]
    try:
        _read_settings(verb, overrides)
    except FovealError as error:
        faults += error.problems
    if whole and not faults and "--help" not in rest:
        try:
            command.make_context(verb, list(rest))
        except USAGE_ERROR as error:
            faults.append(f"{type(error).__name__}: {error}")
    return faults


def _read_settings(verb: str, overrides: list[str]) -> None:
    """What `--set` changes is the configuration; `clean` has a policy, `export` and `serve` a section of their own."""
    if verb == "clean":
        read_policy(None, overrides)
    elif verb == "export":
        read_export_settings(None, overrides)
    elif verb in {"serve", "Server"}:
        read_serve_config(None, overrides)
    else:
        load(Config, None, overrides)


@pytest.mark.parametrize("piece", [piece for piece in ALL if any(commands(piece))], ids=str)
def test_commands_exist(piece: Piece) -> None:
    whole = piece.language != "span"
    assert not [fault for command in commands(piece) for fault in faults_of_command(command, whole=whole)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("foveal trian photos --out r", "no such verb: trian"),
        ("foveal train photos --outt r", "no such flag: --outt"),
        ("ls | foveal train photos --out r --set train.epoch=3", "train.epoch: no such key"),
        ("foveal train photos --out r --set train.epochs=none", "train.epochs: expected"),
        ("foveal clean audits/a --out c.parquet --set near_duplicates=keep_one", "near_duplicates: no such key"),
        ("foveal split photos --out m.parquet --no-near-duplicate", "no such flag: --no-near-duplicate"),
        ("foveal evaluate runs/first --split tests", "is not one of"),
        ("foveal predict runs/first", "inputs"),
    ],
)
def test_a_wrong_command_would_be_found(line: str, fault: str) -> None:
    (command,) = commands(Piece(ROOT / "README.md", "bash", line))
    assert fault in " ".join(faults_of_command(command, whole=True))


def test_there_are_commands_to_check() -> None:
    found = [command[0] for piece in ALL for command in commands(piece) if command]
    assert {command.name or command.callback.__name__ for command in app.registered_commands} <= set(found)  # type: ignore[union-attr]
    assert len(found) > 40


def test_keys_in_the_text_exist() -> None:
    sections = {key[:place] for key in KEYS for place, letter in enumerate(key) if letter == "."}
    known = KEYS | sections
    unknown = [
        f"{piece}: {key}"
        for piece in ALL
        if piece.language == "span" and not piece.text.startswith("foveal.")
        for key in _DOTTED.findall(piece.text)
        if key not in known and not key.endswith((".jsonl", ".txt", ".safetensors", ".onnx", ".ts"))
    ]
    assert not unknown


@pytest.mark.parametrize("piece", [piece for piece in ALL if piece.language == "python"], ids=str)
def test_python_compiles_and_calls_what_exists(piece: Piece) -> None:
    tree = ast.parse(piece.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "foveal":
            assert hasattr(foveal, node.attr), f"foveal.{node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_foveal(node.func.value):
            signature = inspect.signature(getattr(foveal, node.func.attr))
            signature.bind(*node.args, **{keyword.arg or "": None for keyword in node.keywords})
            for keyword in node.keywords:
                if keyword.arg == "overrides":
                    _read_settings(node.func.attr, ast.literal_eval(keyword.value))
                if keyword.arg == "policy":
                    read_policy(ast.literal_eval(keyword.value))


def _is_foveal(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "foveal"


@pytest.mark.parametrize("piece", [piece for piece in ALL if piece.language == "yaml"], ids=str)
def test_yaml_is_a_configuration(piece: Piece) -> None:
    validate(Config, yaml.safe_load(piece.text), origin=str(piece.page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_configuration_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert _module(ROOT / "docs" / "generate.py").render() == page, "run `make docs`"


def test_every_key_says_what_it_means() -> None:
    assert not [key for key, field in known_keys(Config) if len(field.description or "") < 15]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("data.md", [*COLUMNS, *ALLOWED_FORMATS, *REJECTION_CODES]),
        ("auditing.md", [*KINDS, *findings.COLUMNS, *findings.SEVERITIES, *findings.REPAIRS, *FILES, *MEASURES]),
        ("evaluation.md", list(SplitMetrics.model_fields)),
        ("prediction.md", list(BundleSpec.model_fields)),
        ("serve.md", list(ServeConfig.model_fields)),
        ("training.md", [name for name, value in vars(RunFolder).items() if isinstance(value, property)]),
    ],
)
def test_nothing_is_left_out(page: str, names: list[str]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    if page == "training.md":
        run = RunFolder(Path("RUN"))
        names = [str(getattr(run, name).relative_to(run.path)) for name in names]
    missing = [name for name in names if not re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text)]
    assert not missing


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[<>=\[;, ]", each)[0] for each in wanted} - {"foveal"}
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert not [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", text)]


def test_citation_and_changelog_know_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == foveal.__version__
    assert foveal.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_example_recipe_is_valid() -> None:
    load(Config, ROOT / "examples" / "recipe.yaml")


def test_the_example_puts_the_least_certain_first(
    tiny_bundle: Path, make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "images", num_per_class=3)
    (images / "=broken.jpg").write_text("no image", encoding="utf-8")
    queue = tmp_path / "queue.csv"
    script = ROOT / "examples" / "review_queue.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tiny_bundle), str(images), str(queue)])
    runpy.run_path(str(script), run_name="__main__")
    header, first, *rest = [line.split(",") for line in queue.read_text(encoding="utf-8").splitlines()]
    assert header == ["path", "predicted", "probability", "reason"]
    assert "broken" in first[0]
    assert "text" in ",".join(first[3:])
    predictor = foveal.Predictor(tiny_bundle)
    margins = []
    for path, *_ in rest:
        prediction = predictor(path)
        second, best = sorted(prediction.probabilities)[-2:]
        margins.append(best - second)
    assert len(margins) == 9
    assert margins == sorted(margins)


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
