"""The model card: its head as the hub reads it, its figures as they were measured, and nobody's text as Markdown."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import image_factory
from foveal.errors import FovealError
from foveal.exporting.card_figures import speed_part
from foveal.exporting.licences import hub_fields, sentence, terms_of
from foveal.exporting.markdown import plain, prose, table
from foveal.exporting.model_card import write_model_card
from foveal.exporting.speed import EngineSpeed, Speed
from foveal.metrics import SplitMetrics, shown
from foveal.model.bundle import Bundle, EnsembleBundle, open_bundle, update_bundle
from foveal.model.ensemble_bundle import write_ensemble
from foveal.run_folder import RunFolder
from small_runs import copy_of, small_run

NASTY = ('<img src=x onerror="alert(1)">', "a|b`c`\n# no heading", "=HYPERLINK(1) [x](http://y) \u202e", "www.x.com")


@pytest.fixture(scope="module")
def trained(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; look but do not touch."""
    return small_run(make_images, tmp_path_factory)


def body_of(card: Path) -> str:
    return card.read_text(encoding="utf-8").split("\n---\n", 1)[1]


def section(text: str, heading: str) -> str:
    found = re.search(rf"^#+ {re.escape(heading)}[^\n]*\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def test_the_hub_reads_the_head_and_finds_the_very_figures(trained: Path, tmp_path: Path) -> None:
    card = write_model_card(tmp_path / "a folder", open_bundle(trained), run=trained)
    assert card.name == "README.md"
    data = ModelCard.load(card).data
    metrics = SplitMetrics.read(trained / "evaluation" / "test" / "metrics.json")
    found = {result.metric_type: result for result in data.eval_results}
    assert found["accuracy"].metric_value == pytest.approx(metrics.accuracy, abs=1e-6)
    low, high = metrics.confidence_intervals["accuracy"]
    assert f"{shown(low)} to {shown(high)}" in found["accuracy"].metric_name
    assert found["f1"].metric_value == pytest.approx(metrics.macro_f1, abs=1e-6)
    assert {result.dataset_split for result in data.eval_results} == {"test"}
    assert (data.pipeline_tag, data.library_name, data.license) == ("image-classification", "onnx", "unknown")
    assert "test-resnet" in data.tags


def test_the_card_tells_what_was_measured_of_each_split_and_class(trained: Path, tmp_path: Path) -> None:
    bundle = open_bundle(trained)
    text = body_of(write_model_card(tmp_path, bundle, run=trained))
    metrics = {
        split: SplitMetrics.read(trained / "evaluation" / split / "metrics.json") for split in ("train", "val", "test")
    }
    row = next(line for line in text.splitlines() if line.startswith("| accuracy |"))
    for one in metrics.values():
        low, high = one.confidence_intervals["accuracy"]
        assert f"{shown(one.accuracy)} [{shown(low)}, {shown(high)}]" in row
    by_class = section(text, "Each class of the test split")
    for each in metrics["test"].per_class:
        (cells,) = (line.split(" | ") for line in by_class.splitlines() if line.startswith(f"| {each.name} |"))
        assert cells[1] == str(each.support)
        assert all("[" in cell for cell in cells[2:])
        assert cells[3].startswith(shown(each.recall))
    data = section(text, "Training data")
    assert bundle.spec.training_data.fingerprint in data
    assert (
        f"| all | {metrics['train'].num_images} | {metrics['val'].num_images} | {metrics['test'].num_images} |" in data
    )
    leakage = section(text, "Leakage")
    assert "No test image has" in leakage
    assert "evaluated once" in leakage
    assert f"divided by {bundle.spec.temperature:.4g}" in section(text, "Calibration")
    assert "32 x 32" in section(text, "What the pixels go through")


def test_copies_in_training_and_further_looks_are_said(trained: Path, tmp_path: Path) -> None:
    run = RunFolder(copy_of(trained, tmp_path / "run"))
    run.count_look("test", "evaluate")
    run.count_look("test", "evaluate")
    file = run.evaluation("test") / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["leakage"] = {"num_test_images_with_siblings_in_train": 4, "accuracy_without_them": 0.625}
    file.write_text(json.dumps(metrics))
    leakage = section(body_of(write_model_card(tmp_path, open_bundle(run.path), run=run.path)), "Leakage")
    assert "**4 of" in leakage
    assert "without them the accuracy is 0.62" in leakage
    assert "evaluated 3 times" in leakage


def test_a_bundle_alone_says_what_is_not_known(trained: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(trained / "bundle", tmp_path / "alone"))
    text = body_of(write_model_card(tmp_path, open_bundle(alone)))
    leakage = section(text, "Leakage")
    assert "**unknown**" in leakage
    assert "No test image" not in leakage
    assert "not known here" in leakage
    assert "How many of each class is not known" in section(text, "Training data")
    assert "| accuracy |" in section(text, "Figures")


def test_an_ensemble_says_who_votes(trained: Path, tmp_path: Path) -> None:
    bundle = open_bundle(trained)
    assert isinstance(bundle, Bundle)
    names, weights = ("first <b>", "second"), (0.25, 0.75)
    write_ensemble(tmp_path / "both", [bundle, bundle], names, vote="weighted", weights=weights)
    ensemble = open_bundle(tmp_path / "both")
    assert isinstance(ensemble, EnsembleBundle)
    card = write_model_card(tmp_path, ensemble)
    text = body_of(card)
    assert "2 networks that vote, by the weighted mean" in text
    assert r"first &lt;b&gt; (`test_resnet`, weight 0.25)" in text
    assert "<b>" not in text
    assert ModelCard.load(card).data.eval_results is None or ModelCard.load(card).data.model_name


@pytest.mark.parametrize(
    ("licence", "terms", "words"),
    [
        ("cc-by-nc-4.0", "not_commercial", "NON-COMMERCIAL"),
        ("fair-noncommercial-research-license", "not_commercial", "NON-COMMERCIAL"),
        ("apache-2.0 + cc-by-nc-sa-4.0", "not_commercial", "NON-COMMERCIAL"),
        ("apple-amlr", "research", "FOR RESEARCH ONLY"),
        ("dinov3-license", "own", "Read it"),
        ("unknown", "unknown", "**unknown**"),
        ("mit", "open", "under mit"),
        ("nvidia-open-model-license", "own", "Read it"),
        ("none: trained from a random start", "none", "random weights"),
    ],
)
def test_what_the_licence_of_the_weights_forbids_is_said_loudly(
    licence: str, terms: str, words: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    assert terms_of(licence) == terms
    assert words in sentence(licence)
    update_bundle(tiny_bundle, weights={"source": "pretrained", "tag": "x.in1k", "licence": licence})
    card = write_model_card(tmp_path, open_bundle(tiny_bundle))
    assert words in section(body_of(card), "Licence")
    head = ModelCard.load(card).data
    assert head.license == hub_fields(licence)["license"]


def test_text_of_others_is_shown_and_does_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    update_bundle(tiny_bundle, class_names=NASTY[:3])
    card = write_model_card(tmp_path, open_bundle(tiny_bundle), name=NASTY[0])
    text = card.read_text(encoding="utf-8")
    head = yaml.safe_load(text.split("---\n")[1])
    assert "model-index" not in head or head["model-index"][0]["name"] == NASTY[0]
    body = body_of(card)
    assert "<img" not in body
    assert "](http" not in body
    assert "\n# no heading" not in body
    assert "\u202e" not in body
    assert "[U+202E]".replace("[", r"\[") not in body  # our own mark needs no escape
    rendered = _rendered(body)
    for name in NASTY[:3]:
        visible = name.replace("\n", "[U+000A]").replace("\u202e", "[U+202E]")
        assert visible in rendered


def _rendered(markdown: str) -> str:
    """What a reader of the Markdown sees, as far as escapes and entities go."""
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def test_escapes_leave_letters_alone_and_keep_tables_whole() -> None:
    assert plain("naïve 手 3") == "naïve 手 3"
    assert _rendered(plain(NASTY[1])) == NASTY[1].replace("\n", "[U+000A]")
    assert plain("👩\u200d🔬") == "👩\u200d🔬"
    head, _, row, _ = table(["class", "n"], [[plain("a|b"), "1"]])
    assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"(?<!\\)\|", head))


def test_sentences_of_our_own_are_easy_to_read_and_still_do_nothing() -> None:
    own = "On a machine, 0.42 of the time (int8): 0.5 %; difference within -0.04 to 0.04."
    assert prose(own) == own
    assert prose("0.1.0+cpu, opset 20") == "0.1.0+cpu, opset 20"
    for name in NASTY:
        text = prose(name)
        assert _rendered(text) == name.replace("\n", "[U+000A]").replace("\u202e", "[U+202E]")
        assert not re.search(r"<img|(?<!\\)[|`*_\]]|\n|http:/|www\.", text)
    for start in ("- a list", "+ a list", "1. a list", "2) a list", "=== a heading", "# a heading"):
        assert prose(start) != start
        assert _rendered(prose(start)) == start


@pytest.mark.parametrize(("num_images", "is_told"), [(20, False), (59, True)])
def test_the_card_tells_a_percentile_where_enough_were_timed(num_images: int, is_told: bool) -> None:
    engine = EngineSpeed.model_construct(
        name="torch", one_p50_ms=1.5, one_p95_ms=7.25, with_decoding_p50_ms=2.0, batch_images_per_second=1234.0,
        size_mib=1.0, time_ratio=1.0, time_ratio_interval=(1.0, 1.0),
    )  # fmt: skip
    speed = Speed.model_construct(
        machine="A(R) CPU", num_threads=1, num_images=num_images, batch_size=8, engines=(engine,), sentence="s",
        advice="a",
    )  # fmt: skip
    text = "\n".join(speed_part(speed))
    assert ("p95" in text) is ("7.2" in text) is is_told
    assert "A(R) CPU" in text
    assert "1,234" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_card_that_cannot_be_written_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((FovealError, OSError)):
        write_model_card(tmp_path / "file", open_bundle(tiny_bundle))


def test_the_python_of_the_card_runs_and_says_what_the_bundle_says(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from foveal.exporting.hub_folder import write_hub_folder
    from foveal.exporting.on_the_way import exported_of
    from foveal.inference import Predictor
    from foveal.progress import Silence

    image = next((trained.parent / "images").rglob("*.png"))
    expected: Any = Predictor(trained, device="cpu")(image)
    bundle = open_bundle(trained)
    folders = [exported_of(trained, Silence()), write_hub_folder(bundle, tmp_path / "hub", run=trained)]
    for folder in folders:
        (code,) = re.findall(r"```python\n(.*?)```", body_of(folder / "README.md"), re.DOTALL)
        with Image.open(image) as opened:
            opened.save(folder / "photo.jpg", format="PNG")  # the same pixels under the name that the card has
        monkeypatch.chdir(folder)
        capsys.readouterr()
        exec(compile(code, "README.md", "exec"), {})
        predicted, probability = capsys.readouterr().out.rsplit(maxsplit=1)
        assert predicted == expected.predicted
        assert float(probability) == pytest.approx(expected.probability, abs=2e-5)


def test_the_python_of_the_card_follows_the_profile_of_a_telephone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foveal.exporting.on_the_way import exported_of
    from foveal.inference import Predictor
    from foveal.progress import Silence

    folder = Path(shutil.copytree(exported_of(trained, Silence()), tmp_path / "an export"))
    (code,) = re.findall(r"```python\n(.*?)```", body_of(folder / "README.md"), re.DOTALL)
    photo, plain_photo = folder / "photo.jpg", tmp_path / "without.jpg"
    photo.write_bytes(image_factory.icc_jpeg(image_factory.adobe_rgb_profile()))
    plain_photo.write_bytes(image_factory.saved(image_factory.scene(), "JPEG", quality=100, subsampling=0))
    expected, without = Predictor(trained, device="cpu")([photo, plain_photo])  # type: ignore[misc]
    assert abs(expected.probability - without.probability) > 1e-4  # the profile counts
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out.rsplit(maxsplit=1)
    assert said[0] == expected.predicted
    assert float(said[1]) == pytest.approx(expected.probability, abs=2e-5)
