"""The command line: help, exit codes, JSON alone on stdout, one message and no traceback."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from foveal.cli import app
from foveal.training.config import ResolvedConfig
from foveal.version import __version__
from piles import write_pile
from small_runs import CLASSES, copy_of, flags, small_run

MakeImages = Callable[..., Path]
COMMANDS = {command.name or command.callback.__name__: command for command in app.registered_commands}  # type: ignore[union-attr]
COMMON = {"--config", "--set", "--seed", "--device", "--json", "--dry-run", "--force", "--debug", "--help", "-h"}
TAKES = {
    "train": COMMON,
    "demo": COMMON - {"--config", "--dry-run"},  # its configuration is its own, and its images are not there yet
    "evaluate": COMMON - {"--force"},  # writes over its own earlier results and nothing else
    "predict": COMMON - {"--config", "--set", "--seed"},  # the bundle says everything
    "models": {"--json", "--debug", "--help", "-h"},
    "audit": COMMON,
    "clean": COMMON - {"--config", "--seed", "--device"},  # it has a policy, and draws nothing
    "serve": COMMON - {"--seed", "--device", "--force"},  # it draws nothing, and computes on the CPU
    "split": COMMON - {"--device"},
    "preview": COMMON - {"--device"},
    "tune": COMMON,
    "crossval": COMMON,
    "ensemble": COMMON,
    "compare": COMMON,
    "extend": COMMON,
    "probe": COMMON,
    "explain": COMMON - {"--config", "--set", "--seed"},  # the bundle says everything
    "bench": COMMON - {"--config", "--set", "--seed", "--force"},  # measures, and writes one file at most
    "export": COMMON - {"--device"},  # proven on the CPU, where exported models run
}


class Ran:
    """What a command printed and how it ended."""

    def __init__(self, *words: object, stdin: str | None = None) -> None:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    def failed(self, code: int) -> str:
        """The one message of a failure: nothing on stdout, no traceback."""
        assert self.code == code, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        assert self.err.count("foveal: ") == 1
        return " ".join(self.err[self.err.index("foveal: ") :].split())


@pytest.fixture
def trained(make_images: MakeImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(make_images, tmp_path_factory)


@pytest.fixture
def images(tmp_path: Path, make_images: MakeImages) -> Path:
    return make_images(tmp_path / "images", CLASSES, num_per_class=8)


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Splits of which test holds a picture of train: mirrored, under another name and in another format."""
    folder = write_pile(tmp_path / "leaking", {"train": 12, "val": 6, "test": 6}, CLASSES)
    with Image.open(folder / "train" / "b" / "4.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "test" / "b" / "other.webp", lossless=True)
    return folder


def options_of(verb: str) -> set[str]:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    found = {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
    return found | {"--help", "-h"}


@pytest.mark.parametrize("verb", TAKES)
def test_help_has_two_examples_that_can_be_typed(verb: str) -> None:
    shown = Ran(verb, "--help")
    assert shown.code == 0
    examples = [line.strip() for line in shown.out.partition("Examples:")[2].splitlines() if line.strip()]
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example.rpartition(" | ")[2])
        assert words[:2] == ["foveal", verb]
        assert {word for word in words if word.startswith("--")} <= options_of(verb)


@pytest.mark.parametrize("verb", TAKES)
def test_a_verb_takes_the_common_flags_and_at_most_eight_of_its_own(verb: str) -> None:
    assert options_of(verb) & COMMON == TAKES[verb]
    assert len(options_of(verb) - COMMON) <= 8


def test_the_verbs_are_those_of_the_python_package() -> None:
    import foveal

    assert set(COMMANDS) == set(TAKES)
    assert set(TAKES) <= set(foveal.__all__)
    assert all(callable(getattr(foveal, name)) for name in TAKES)
    with pytest.raises(AttributeError, match="nonsense"):
        foveal.nonsense  # noqa: B018


def test_help_and_version_cost_nothing() -> None:
    """No torch, no timm, no matplotlib: help comes at once."""
    program = (
        "import sys\nsys.argv = ['foveal', *sys.argv[1:]]\nfrom foveal.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "names = {'torch', 'timm', 'lightning', 'matplotlib', 'sklearn', 'scipy', 'pyarrow', 'numpy'}\n"
        "heavy = names & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}, ended with {code}' if heavy or code else 0)\n"
    )
    for argument in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"foveal {__version__}"


@pytest.mark.parametrize("words", [("nonsense",), ("train", "--epochs", "3"), ("evaluate",), ("predict", "run")])
def test_wrong_usage_ends_with_2(words: tuple[str, ...]) -> None:
    ran = Ran(*words)
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_wrong_keys_are_told_all_at_once(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {epoch: 3}\noptim: {lr: fast}\n")
    ran = Ran("train", images, "--out", tmp_path / "r", "--config", file, "--set", "data.fit=crap", "--seed", "-1")
    message = ran.failed(2)
    assert "4 problems" in message
    for words in ("train.epoch: no such key; did you mean train.epochs?", "optim.lr", "data.fit", "seed"):
        assert words in message
    assert not (tmp_path / "r").exists()
    assert "needs DATA" in Ran("train", "--out", tmp_path / "r").failed(2)
    assert "--out" in Ran("train", images).failed(2)
    assert "none on this machine" in Ran("train", images, "--out", tmp_path / "r", "--device", "mps").failed(2)


def test_faults_of_a_table_are_told_all_at_once_with_their_lines(images: Path, tmp_path: Path) -> None:
    rows = ["path;label", "2/0.png;2", "2/1.jpg;", "2/0.png;2", "10/0.png;10", "gone.png;b", "10/0.png;2"]
    table = images / "table.csv"
    table.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    ran = Ran("train", table, "--out", tmp_path / "r", *flags())
    message = ran.failed(1)
    for line in ("line 3", "line 4", "line 6", "line 7"):
        assert line in message
    table.write_text("file,kind\n2/0.png,2\n")
    message = Ran("train", table, "--out", tmp_path / "r", *flags()).failed(1)
    assert "data.columns.path=file" in message


def test_a_class_of_one_image_and_an_empty_class_are_named(images: Path, tmp_path: Path) -> None:
    for extra in list((images / "10").iterdir())[1:]:
        extra.unlink()
    assert "class '10': 1 samples" in Ran("train", images, "--out", tmp_path / "r", *flags()).failed(1)
    (images / "lynx").mkdir()
    message = Ran("train", images, "--out", tmp_path / "r", *flags()).failed(1)
    assert "class 'lynx': 0 images" in message


def test_weights_that_are_not_at_hand_are_said_at_once(images: Path, tmp_path: Path, no_network: list[object]) -> None:
    words = ["train", images, "--out", tmp_path / "r", *flags("model.weights=pretrained")]
    message = Ran(*words).failed(1)
    assert "not in the local cache (" in message
    assert "--set model.weights=none" in message
    assert "--set model.weights=PATH" in message
    assert no_network == []  # HF_HUB_OFFLINE is set: it is not even tried


def test_the_dry_run_shows_all_and_writes_nothing(images: Path, tmp_path: Path) -> None:
    ran = Ran("train", images, "--dry-run", *flags("optim.lr=auto", "data.image_size=auto"))
    assert ran.code == 0
    text, _, plan = ran.out.partition("\n\n")
    assert "auto" not in text
    assert ResolvedConfig.model_validate(yaml.safe_load(text)).optim.lr == 2e-3
    assert re.search(r"^images +\d+ train, \d+ val, \d+ test$", plan, re.MULTILINE)
    for word in (
        "classes",
        "model",
        "steps",
        "memory",
        f"foveal train {images} --out RUN --set model.name=test_resnet",
    ):
        assert word in plan
    found = json.loads(Ran("train", images, "--dry-run", "--json", *flags()).out)
    assert found["config"]["model"]["name"] == "test_resnet"
    assert sum(found["num_images"].values()) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    assert "--resume" in Ran("train", images, "--dry-run", "--resume").failed(2)


def test_every_verb_gives_json_alone_on_stdout(
    trained: Path, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(trained, tmp_path / "run")
    photo = next((images / "2").glob("*.png"))
    commands: dict[str, list[object]] = {
        "run": ["train", "--out", run, "--resume"],
        "metrics": ["evaluate", run, "--split", "val", "--seed", "3"],
        "counts_as_look": ["evaluate", run, "--dry-run"],
        "num_ok": ["predict", run, photo, "--out", tmp_path / "p.csv"],
        "num_inputs": ["predict", run, photo, photo, "--dry-run"],
        "models": ["models", "test_vit*"],
    }
    for key, words in commands.items():
        ran = Ran(*words, "--json")
        assert ran.code == 0, ran.err
        assert key in json.loads(ran.out)
    assert "--out" in Ran("predict", run, photo, "--json").failed(2)


def test_every_verb_ends_with_what_it_wrote_and_the_next_command(trained: Path, tmp_path: Path, images: Path) -> None:
    run = copy_of(trained, tmp_path / "my run")
    photo = next((images / "2").glob("*.png"))
    for words, wrote in (
        (["train", "--out", run, "--resume"], "report.html"),
        (["evaluate", run, "--split", "val"], "evaluation/val"),
        (["predict", run, photo, "--out", tmp_path / "p.csv"], "p.csv"),
        (["models", "test_vit*"], "test_vit"),
    ):
        ran = Ran(*words)
        shown, _, commands = ran.out.partition("Next:")
        assert wrote in shown
        (command,) = (line for line in commands.splitlines() if line.strip())
        assert shlex.split(command)[0] == "foveal"
        if words[0] != "models":
            assert str(run) in shlex.split(command)  # one word, in spite of the blank
    ran = Ran("predict", run, photo)
    assert next(csv.DictReader(io.StringIO(ran.out)))["status"] == "ok"
    assert "Next:" in ran.err
    assert "Next:" not in ran.out


def test_an_audit_ends_with_3_where_something_must_be_mended_first(leaking: Path, tmp_path: Path) -> None:
    out = tmp_path / "my audit"
    ran = Ran("audit", leaking, "--out", out)
    assert ran.code == 3
    first = ran.out.splitlines()[0]
    assert first.split()[:2] == ["blocking", "1"]
    assert "1 of 19 test images" in first
    commands = [shlex.split(line) for line in ran.out.partition("Try next:")[2].strip().splitlines()]
    assert commands[0] == ["foveal", "clean", str(out), "--out", str(out / "clean.parquet")]
    assert Ran(*commands[0][1:]).code == 0
    # What was mended does not block any more; the row that has moved is all that is new.
    again = Ran("audit", out / "clean.parquet", "--out", tmp_path / "again")
    assert again.code == 0
    assert "blocking" not in again.out


def test_an_audit_of_sound_data_ends_with_0_and_needs_force_to_be_written_over(images: Path, tmp_path: Path) -> None:
    words = ["audit", images, "--out", tmp_path / "a"]
    ran = Ran(*words)
    assert ran.code == 0
    assert "blocking" not in ran.out
    assert f"Report: {tmp_path / 'a' / 'report.html'}" in ran.out
    assert "an audit already" in Ran(*words).failed(1)
    assert Ran(*words, "--force").code == 0
    assert "lies in DATA" in Ran("audit", images, "--out", images / "a").failed(2)


def test_a_blocking_audit_gives_json_alone_too(leaking: Path, tmp_path: Path) -> None:
    ran = Ran("audit", leaking, "--out", tmp_path / "a", "--json")
    assert ran.code == 3
    found = json.loads(ran.out)
    assert found["is_blocking"]
    assert found["leakage"]["test"]["by_class"]["b"] == [7, 1]
    assert found["leakage"]["val"]["num_with_siblings_in_train"] == 0
    assert found == {
        **json.loads((tmp_path / "a" / "summary.json").read_text()),
        **{name: found[name] for name in ("folder", "report")},
    }


def test_the_verbs_about_data_show_in_a_dry_run_what_they_would_do_and_write_nothing(
    leaking: Path, tmp_path: Path
) -> None:
    audit = tmp_path / "a"
    assert Ran("audit", leaking, "--out", audit).code == 3
    before = sorted(tmp_path.rglob("*"))
    for words, shown in (
        (["audit", leaking, "--out", tmp_path / "b"], "samples     73"),
        (["clean", audit, "--out", tmp_path / "c.parquet"], "rows "),
        (["split", leaking, "--out", tmp_path / "s.parquet"], "train"),
        (["preview", leaking, "--out", tmp_path / "p.png", *flags()], "policy "),
    ):
        ran = Ran(*words, "--dry-run")
        assert ran.code == 0, ran.err
        assert shown in ran.out
        command = shlex.split(ran.out.partition("Next:")[2].strip())
        assert command[:2] == ["foveal", words[0]]
        assert str(words[1]) in command
        assert "--dry-run" not in command
        assert isinstance(json.loads(Ran(*words, "--dry-run", "--json").out), dict)
        assert sorted(path for path in tmp_path.rglob("*") if "cache-of-foveal" not in path.parts) == [
            path for path in before if "cache-of-foveal" not in path.parts
        ]


def test_the_second_look_at_the_test_split_is_warned_of(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    assert "looked at 2 times" in Ran("evaluate", run).out
    assert "looked at" not in Ran("evaluate", run, "--split", "val").out


def test_predictions_come_from_stdin_and_go_to_stdout(trained: Path, images: Path) -> None:
    names = [str(path) for path in sorted((images / "b").iterdir())]
    ran = Ran("predict", trained, "-", "--format", "jsonl", stdin="\n".join(names))
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["path"] for row in rows] == names
    assert list(rows[0])[-3:] == ["p_2", "p_10", "p_b"]


def test_a_name_that_is_not_utf8_comes_through(trained: Path, tmp_path: Path, images: Path) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe photo.png")
    shutil.copy(next((images / "2").glob("*.png")), odd)
    result = CliRunner().invoke(app, ["predict", str(trained), odd])
    assert result.exit_code == 0
    assert os.fsencode(odd) in result.stdout_bytes
    assert json.loads(Ran("predict", trained, odd, "--out", tmp_path / "p.csv", "--json").out)["num_ok"] == 1


def test_predict_ends_with_1_only_where_nothing_could_be_predicted(trained: Path, images: Path, tmp_path: Path) -> None:
    photo = next((images / "2").glob("*.png"))
    assert Ran("predict", trained, photo, tmp_path / "none.png").code == 0
    ran = Ran("predict", trained, tmp_path / "none.png")
    assert ran.code == 1
    assert "no such file" in ran.out


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path: Path) -> None:
    ran = Ran("train", tmp_path, "--out", tmp_path / "r", "--set", "train.epoch=3", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert "did you mean train.epochs" in ran.err


def test_an_error_of_the_system_is_one_line_too(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    (run / "evaluation" / "test" / "metrics.json").unlink()
    (run / "log.jsonl").unlink()
    (run / "log.jsonl").symlink_to("/dev/full")
    assert "No space left on device" in Ran("train", "--out", run, "--resume").failed(1)


def send_at(name: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Let a function of foveal send this process a signal before it does its work."""
    module, _, attribute = name.rpartition(".")
    whole = getattr(import_module(module), attribute)

    def called(*args: Any, **kwargs: Any) -> Any:
        for _ in range(times):
            os.kill(os.getpid(), number)
        return whole(*args, **kwargs)

    monkeypatch.setattr(name, called)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("stage", ["decoding", "evaluating"])
def test_a_signal_outside_of_the_training_loop_ends_with_its_code(
    trained: Path,
    images: Path,
    tmp_path: Path,
    stage: str,
    number: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    again: list[object]
    if stage == "decoding":
        run = tmp_path / "run"
        again = ["train", images, "--out", run, *flags("train.epochs=1")]
        with monkeypatch.context() as patch:
            send_at("foveal.experiments.preparing.ingest", number, patch)
            message = Ran(*again).failed(code)
        assert "the same command begins again" in message
    else:
        run = copy_of(trained, tmp_path / "run")
        (run / "evaluation" / "test" / "metrics.json").unlink()
        again = ["train", "--out", run, "--resume"]
        with monkeypatch.context() as patch:
            send_at("foveal.experiments.outcome.write_evaluation", number, patch)
            message = Ran(*again).failed(code)
        assert shlex.join(["foveal", *map(str, again)]) in message
    assert signal.getsignal(signal.SIGTERM) == before
    # What the message says is true.
    if number == signal.SIGTERM:
        assert Ran(*again).code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_training_saves_and_says_how_to_go_on(
    images: Path, tmp_path: Path, number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        send_at("foveal.training.step.derive_seed", number, patch)
        message = Ran("train", images, "--out", run, *flags("train.epochs=2", "train.batch_size=8")).failed(code)
    assert "everything is saved" in message
    assert f"foveal train --out {run} --resume" in message
    assert (run / "checkpoints" / "last.ckpt").is_file()
    if number == signal.SIGTERM:
        done = Ran("train", "--out", run, "--resume")
        assert done.code == 0
        assert "epoch 1, step 1 of" in done.err
    else:
        with monkeypatch.context() as patch:
            send_at("foveal.training.step.derive_seed", number, patch, times=2)
            message = Ran("train", "--out", run, "--resume").failed(code)
        assert "everything is saved" not in message
        assert "stopped." in message


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m foveal models 'test_vit*' | true; echo ${{PIPESTATUS[0]}}"
    # Buffered, as it is unless somebody asks for the contrary: then the fault shows only when the buffer is emptied.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.strip() == "0"
    assert "Broken" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_demo_on_a_handful_of_digits_says_where_it_all_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn import datasets

    digits = datasets.load_digits()
    digits.images, digits.target = digits.images[:200], digits.target[:200]
    monkeypatch.setattr(datasets, "load_digits", lambda: digits)
    tiny = [word for setting in ("model.name=test_resnet", "train.epochs=1") for word in ("--set", setting)]
    ran = Ran("demo", "--out", tmp_path / "my demo", *tiny)
    assert ran.code == 0
    assert f"Report: {tmp_path / 'my demo' / 'run' / 'report.html'}" in ran.out
    commands = ran.out.partition("Try next:")[2]
    assert len(commands.strip().splitlines()) == 3
    assert all(shlex.split(line)[0] == "foveal" for line in commands.strip().splitlines())
    assert "not empty" in Ran("demo", "--out", tmp_path / "my demo", *tiny).failed(1)
    evaluate = shlex.split(commands.strip().splitlines()[0])[1:]
    assert Ran(*evaluate).code == 0
    found = json.loads(Ran("demo", "--out", tmp_path / "my demo", *tiny, "--force", "--json").out)
    assert Path(found["report"]).is_file()
