"""The model card: README.md in the hub's form, beside every exported model.

Its head is YAML as https://huggingface.co/docs/hub/model-cards describes it. All that came from the user is escaped,
for YAML by its own writer and for Markdown by `foveal.exporting.markdown`. What is not known is said to be not known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from foveal.exported.spec import ExportSpec
from foveal.exporting.card_facts import CardFacts, gather
from foveal.exporting.card_figures import figures, parity_part, speed_part
from foveal.exporting.card_usage import usage
from foveal.exporting.licences import hub_fields, sentence
from foveal.exporting.markdown import code, plain, prose, table, visible
from foveal.exporting.parity_facts import Parity
from foveal.exporting.speed import Speed
from foveal.files import write_text
from foveal.metrics import shown
from foveal.model.bundle import Bundle, EnsembleBundle
from foveal.model.bundle_spec import EnsembleSpec, PreprocessingSpec
from foveal.types import SPLITS
from foveal.version import __version__

CARD_FILE = "README.md"

_LIBRARIES = {".onnx": "onnx", ".safetensors": "timm"}
_METRIC_TYPES = {"accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "macro_f1": "f1",
                 "macro_roc_auc": "roc_auc", "log_loss": "log_loss", "ece": "ece"}  # fmt: skip
_METRIC_WORDS = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro F1",
                 "macro_roc_auc": "Macro ROC AUC", "log_loss": "Log loss",
                 "ece": "Expected calibration error"}  # fmt: skip


def write_model_card(
    folder: Path,
    bundle: Bundle | EnsembleBundle,
    *,
    model_file: str = "model.onnx",
    export: ExportSpec | None = None,
    run: Path | None = None,
    parity: Parity | None = None,
    speed: Speed | None = None,
    name: str = "",
    notes: Sequence[str] = (),
) -> Path:
    """Write README.md.

    Args:
        folder: where to; it holds the model's file.
        bundle: what was exported, of one network or of several.
        model_file: the model's file in the folder; its ending decides how the card says to run it.
        export: what an ONNX file says of itself.
        run: the run folder, or the folder of the experiment that made an ensemble; without it the card says what is not
            known.
        parity: what was proven of the file.
        speed: how fast it was beside the other engines.
        name: what the model is called; the run's folder, if not given.
        notes: sentences in plain text that belong to the limits.

    Returns:
        The file.

    Raises:
        ArtifactError: the run's own files are damaged.
        FovealError: the file cannot be written.
    """
    facts = gather(bundle, run, name)
    head = yaml.safe_dump(_head(facts, model_file), sort_keys=False, allow_unicode=True, width=10_000)
    parts = [
        [f"# {plain(facts.name)}", "", *_what_it_is(facts, export)],
        _licence(facts),
        _intended(facts, notes),
        _training_data(facts),
        figures(facts),
        _leakage(facts),
        ["## What the pixels go through", "", *_pixels(facts)],
        usage(facts, model_file, export),
        parity_part(parity),
        speed_part(speed),
        _versions(facts, export),
    ]
    body = "\n".join(line for part in parts for line in part)
    write_text(folder / CARD_FILE, f"---\n{head}---\n\n{body.rstrip()}\n")
    return folder / CARD_FILE


def _head(facts: CardFacts, model_file: str) -> dict[str, Any]:
    networks = dict.fromkeys(_tag(word) for word in facts.architecture.split(", "))
    head: dict[str, Any] = {
        **hub_fields(facts.spec.weights.licence),
        "library_name": _LIBRARIES.get(Path(model_file).suffix, "pytorch"),
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "foveal", *networks],
    }
    split = next((each for each in ("test", "val") if facts.spec.metrics.get(each)), None)
    if split is None:
        return head
    fingerprint = facts.spec.training_data.fingerprint
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {"name": f"{split} split of its own data, fingerprint {fingerprint[:12]}",
                    "type": f"foveal-{fingerprint[:12]}", "split": split},
        "metrics": _head_metrics(facts.spec.metrics[split]),
    }  # fmt: skip
    return {**head, "model-index": [{"name": visible(facts.name), "results": [result]}]}


def _head_metrics(headline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The bundle's headline metrics: by name, a value and its interval."""
    metrics = []
    for key, held in headline.items():
        value, bounds = held if isinstance(held, list | tuple) else (held, None)
        if value is None or key not in _METRIC_TYPES:
            continue
        words = _METRIC_WORDS[key]
        if bounds:
            words += f", 95% interval {shown(bounds[0])} to {shown(bounds[1])}"
        metrics.append({"type": _METRIC_TYPES[key], "value": round(float(value), 6), "name": words})
    return metrics


def _tag(text: str) -> str:
    return "".join(sign if sign.isalnum() else "-" for sign in text).strip("-")


def _what_it_is(facts: CardFacts, export: ExportSpec | None) -> list[str]:
    spec = facts.spec
    names = [plain(name) for name in spec.class_names]
    kind = "grades, in this order" if spec.ordered else "classes, in the order of the outputs"
    lines = [
        f"An image classifier: {_network_words(facts)}. It tells {len(names)} {kind}:",
        "",
        *(f"{number}. {name}" for number, name in enumerate(names)),
        "",
    ]
    if export is not None and export.precision == "int8":
        lines += ["Its weights and activations are 8-bit integers, fitted on images of the training split.", ""]
    return lines


def _network_words(facts: CardFacts) -> str:
    if not isinstance(facts.spec, EnsembleSpec):
        return f"`{facts.architecture}` under a {facts.networks[0][2].architecture.head.kind} head"
    ways = {"soft": "by the mean of their probabilities", "weighted": "by the weighted mean of their probabilities",
            "majority": "each for the class that it finds most probable"}  # fmt: skip
    members = ", ".join(
        f"{plain(name)} (`{network.architecture.name}`, weight {weight:.3g})"
        if isinstance(network.architecture.name, str)
        else f"{plain(name)} (weight {weight:.3g})"
        for name, weight, network in facts.networks
    )
    return f"{len(facts.networks)} networks that vote, {ways[facts.spec.vote]}: {members}"


def _licence(facts: CardFacts) -> list[str]:
    """That of the starting weights; of an ensemble those of every member."""
    lines = ["## Licence", ""]
    named = [(name, network.weights) for name, _, network in facts.networks]
    told = {(weights.licence, weights.tag): "" for _, weights in named}
    for licence, tag in told:
        lines += [sentence(licence, tag), ""]
    sources = dict.fromkeys(weights.source for _, weights in named if weights.source not in {"pretrained", "none"})
    if sources:
        lines += [f"The weights came from {', '.join(plain(source) for source in sources)}.", ""]
    lines += ["The licence of the weights is one thing; what the training images allow is another, and is not known "
              "to foveal.", ""]  # fmt: skip
    return lines


def _intended(facts: CardFacts, notes: Sequence[str]) -> list[str]:
    lines = [
        "## Use and limits",
        "",
        f"- It is meant for images like those that it was trained on, each showing one of the {_count(facts)}. Any "
        "other image gets one of them as well, often with a high probability: it does not know what it has not seen.",
        "- The figures below hold for images that come from where the test images came from. Another camera, clinic, "
        "season or selection is other data: measure there first, with `foveal evaluate BUNDLE DATA`.",
        "- Whom a mistake harms, and whether a person looks before anything is done, is for those to decide who use "
        "it. It was not tested for fairness between groups of people.",
    ]
    few = _few(facts)
    if few:
        lines += [f"- Fewer than 20 test images: {', '.join(few)}. Their figures say little."]
    lines += [f"- {prose(note)}" for note in notes]
    return [*lines, ""]


def _count(facts: CardFacts) -> str:
    return f"{len(facts.spec.class_names)} {'grades' if facts.spec.ordered else 'classes'}"


def _few(facts: CardFacts) -> list[str]:
    if "test" not in facts.splits:
        return []
    return [f"{plain(each.name)} ({each.support})" for each in facts.splits["test"].per_class if each.support < 20]


def _training_data(facts: CardFacts) -> list[str]:
    data = facts.spec.training_data
    lines = [
        "## Training data",
        "",
        f"Fingerprint (SHA-256 over hashes, boxes, labels and splits): {code(data.fingerprint)}",
        "",
    ]
    if data.box_margin:
        lines += [f"The samples are boxes of photographs, with a margin of {data.box_margin:.0%} on each side.", ""]
    splits = [split for split in SPLITS if split in data.num_images]
    if facts.class_counts:
        rows = [
            [plain(name), *(f"{facts.class_counts[split][at]:,}" for split in splits)]
            for at, name in enumerate(facts.spec.class_names)
        ]
        rows += [["all", *(f"{data.num_images[split]:,}" for split in splits)]]
        lines += table(["class", *(f"{split} images" for split in splits)], rows)
        lines += [f"{facts.num_set_aside:,} rows of the manifest were set aside and used nowhere.",
                  _grouped(facts.num_grouped or 0), ""]  # fmt: skip
    else:
        lines += [", ".join(f"{data.num_images[split]:,} {split} images" for split in splits) + ".",
                  "How many of each class is not known: the run was not at hand when this card was written.",
                  ""]  # fmt: skip
    return lines


def _grouped(num_grouped: int) -> str:
    if not num_grouped:
        return "No groups, such as patients, were declared: each image counted for itself."
    return f"{num_grouped:,} images share a group with others, such as a patient, or a photograph and its copies."


def _leakage(facts: CardFacts) -> list[str]:
    lines = ["## Leakage, and how often the test was looked at", ""]
    metrics = facts.splits.get("test")
    if metrics is None or metrics.leakage is None:
        why = (
            "the run with its manifest was not at hand when this card was written"
            if metrics is None
            else prose(metrics.undefined.get("leakage", "it was not looked for"))
        )
        lines += [
            f"Whether test images have copies or relatives among the training images is **unknown**: {why}. "
            "Unknown is not none.",
            "",
        ]
    elif number := metrics.leakage.num_test_images_with_siblings_in_train:
        rest = metrics.leakage.accuracy_without_them
        without = "no image is left without them" if rest is None else f"without them the accuracy is {shown(rest)}"
        lines += [f"**{number:,} of {metrics.num_images:,} test images have a copy, or a member of their group, among "
                  f"the training images; {without}.**", ""]  # fmt: skip
    else:
        lines += ["No test image has the same bytes as a training image, or shares a group or photograph with one, as "
                  "far as they are declared in the manifest.", ""]  # fmt: skip
    if facts.num_looks is None:
        counted = "; the runs of the members count it." if isinstance(facts.spec, EnsembleSpec) else "."
        lines += [f"How often the test split was evaluated is not known here{counted}", ""]
    else:
        times = {1: "once", 2: "twice"}.get(facts.num_looks, f"{facts.num_looks:,} times")
        lines += [f"The test split was evaluated {times}. A test that was looked at before decisions were taken is a "
                  "test no longer, and its figures are too good.", ""]  # fmt: skip
    return lines


def _pixels(facts: CardFacts) -> list[str]:
    lines: list[str] = []
    for number, look in enumerate(facts.looks):
        if len(facts.looks) > 1:
            lines += [f"Square {number}:", ""]
        lines += [*_pixels_of(look), ""]
    return lines


def _pixels_of(look: PreprocessingSpec) -> list[str]:
    size, background = look.size_px, "rgb({}, {}, {})".format(*look.background)
    fits = {
        "crop": f"scaled with its aspect kept until the shorter side has {look.store_px} px, and the {size} x {size} "
        "px in the middle cut out (a longer side of more than four times the shorter is first cut to that)",
        "pad": f"scaled with its aspect kept until the longer side has {size} px, and filled up with {background}",
        "squash": f"scaled to {size} x {size} px, its aspect lost",
    }
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (look.mean, look.std))
    return [
        f"1. Decoded by pixel policy {look.policy_version}: turned upright by EXIF, the first frame of animations, "
        f"transparency over {background}, every colour mode to sRGB with 8 bits.",
        f"2. The image is {fits[look.fit]}; filter: {look.interpolation}, antialiased, as Pillow does it.",
        f"3. Divided by 255, minus ({mean}), divided by ({std}), for red, green and blue.",
    ]


def _versions(facts: CardFacts, export: ExportSpec | None) -> list[str]:
    lines = ["## Versions", "", f"- Trained and bundled by foveal {prose(facts.spec.foveal_version)}; this card: "
             f"foveal {__version__}."]  # fmt: skip
    if export is not None:
        made = ", ".join(f"{name} {version}" for name, version in export.libraries.items())
        lines += [f"- ONNX opset {export.opset}, {export.precision}; made with {prose(made)}.",
                  f"- SHA-256 of the bundle.json that it was made from: {code(export.bundle_sha256)}"]  # fmt: skip
    return [*lines, ""]
