"""Models side by side: quality, costs, and whether the images can tell them apart."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.experiments.compare.answers import Aligned, Answers, Question, align, ask
from foveal.experiments.compare.costs import (
    BATCH_SIZE,
    MAX_ROUNDS,
    Speed,
    measure_speed,
    size_of,
    total_seconds,
    training_seconds,
)
from foveal.experiments.compare.models import Entry
from foveal.experiments.compare.result import MAIN_COLUMNS, Comparison, Pair, Repeated
from foveal.experiments.shared_data import runs_in
from foveal.experiments.summary import Row, mean_and_std, metrics_row
from foveal.files import read_json, write_csv, write_json
from foveal.inference import Predictor
from foveal.metrics import PairedComparison, SplitMetrics, compare_every_pair, holm
from foveal.model.devices import choose_device
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder, describe_environment
from foveal.types import SPLITS

_VOTES = "a vote is not trained: see its members"
_NO_EPOCHS = "a probe trains in no epochs: see its total time"
_NO_RUN = "only the folder of its run holds the times of a training"
_ASIDE = "kept_aside_"
_COST_KEYS = ("latency_{}_p50_ms", "latency_{}_p95_ms", "network_{}_p50_ms", "network_{}_p95_ms")


def compare_models(
    entries: Sequence[Entry],
    question: Question,
    folder: ExperimentFolder,
    progress: Progress,
    *,
    data: str | None = None,
    is_timed: bool = True,
) -> Comparison:
    """Ask every model, compare each with each, and measure what they cost; everything is written to `folder`.

    Args:
        entries: the models.
        question: which images they are asked about.
        folder: prepared, and held by this process.
        progress: where to show it.
        data: how the question's data were named.
        is_timed: whether latency and throughput are measured.

    Raises:
        DataError: the models were evaluated on different images, or the images cannot be had.
        ArtifactError: an evaluation or bundle is damaged.
    """
    with folder.stage("predictions"):
        answers = {entry.name: ask(entry, entries, question, progress) for entry in entries}
        aligned = align(answers)
    with folder.stage("paired tests"):
        pairs, pair_notes = _pairs(entries, aligned, question.seed)
    with folder.stage("costs"):
        sizes, speeds = _costs(entries, aligned, question.device, progress, is_timed=is_timed)
    rows = [
        _row(
            entry,
            answers[entry.name],
            sizes[entry.name],
            {kind: found[entry.name] for kind, found in speeds.items()},
            is_other_data=data is not None,
        )
        for entry in entries
    ]
    comparison = Comparison(
        split=question.split,
        data=data,
        rows=rows,
        metrics={name: each.metrics for name, each in answers.items()},
        aligned=aligned,
        pairs=pairs,
        repeated=_repeated(entries, rows, question.split if data is None else ""),
        front=pareto_front(rows),
        notes=[*_notes(entries, answers, question, len(pairs), data), *pair_notes],
        machine=_machine(question, speeds),
    )
    write_json(folder.summary, comparison.to_dict())
    cells = [[_cell(row, column) for column in MAIN_COLUMNS] for row in rows]
    write_csv(folder.path / "models.csv", MAIN_COLUMNS, cells)
    return comparison


def pareto_front(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the models that no other beats in accuracy or latency without losing in the other.

    Args:
        rows: with `name`, `accuracy` and `latency_cpu_p50_ms`; those that were not timed take no part.
    """
    timed = [row for row in rows if row.get("latency_cpu_p50_ms") is not None]

    def is_beaten(row: Mapping[str, Any]) -> bool:
        accuracy, milliseconds = row["accuracy"], row["latency_cpu_p50_ms"]
        return any(
            other["accuracy"] >= accuracy
            and other["latency_cpu_p50_ms"] <= milliseconds
            and (other["accuracy"] > accuracy or other["latency_cpu_p50_ms"] < milliseconds)
            for other in timed
        )

    return [row["name"] for row in timed if not is_beaten(row)]


def _pairs(entries: Sequence[Entry], aligned: Aligned, seed: int) -> tuple[list[Pair], list[str]]:
    """Every two models that are not repetitions of each other, on the images that neither was trained on."""
    wanted = [(a, b) for a, b in combinations(entries, 2) if not (a.group and a.group == b.group)]
    notes: list[str] = []
    found: list[tuple[str, str, PairedComparison]] = []
    if all(seen is None or not seen.any() for seen in aligned.was_trained_on.values()):
        # All on the same images: each model is measured once, on the same resamples.
        rows = [aligned.probabilities[entry.name] for entry in entries]
        every = compare_every_pair(aligned.labels, rows, groups=aligned.groups, seed=seed)
        by_names = {(a.name, b.name): paired for (a, b), paired in zip(combinations(entries, 2), every, strict=True)}
        found = [(a.name, b.name, by_names[a.name, b.name]) for a, b in wanted]
    else:
        for a, b in wanted:
            unseen = np.flatnonzero(~(_seen(aligned, a.name) | _seen(aligned, b.name)))
            if not len(unseen):
                notes.append(f"{a.name} and {b.name} are not tested: one or the other was trained on every image.")
                continue
            found.append((a.name, b.name, _on(aligned, unseen, a.name, b.name, seed)))
            if len(unseen) < len(aligned):
                notes.append(
                    f"{a.name} and {b.name} are tested on {len(unseen):,} of {len(aligned):,} images: the others were "
                    "in the training of one of them."
                )
    if len(found) > 1:
        adjusted = holm([paired.mcnemar_p for _, _, paired in found])
        found = [(a, b, paired.adjusted(p)) for (a, b, paired), p in zip(found, adjusted, strict=True)]
    return [Pair(*each) for each in found], notes


def _on(aligned: Aligned, rows: NDArray[np.int64], first: str, second: str, seed: int) -> PairedComparison:
    probabilities = [aligned.probabilities[name][rows] for name in (first, second)]
    groups = None if aligned.groups is None else aligned.groups[rows]
    (paired,) = compare_every_pair(aligned.labels[rows], probabilities, groups=groups, seed=seed)
    return paired


def _seen(aligned: Aligned, name: str) -> NDArray[np.bool_]:
    seen = aligned.was_trained_on[name]
    return np.zeros(len(aligned), dtype=bool) if seen is None else seen


def _costs(
    entries: Sequence[Entry], aligned: Aligned, device: str, progress: Progress, *, is_timed: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Speed]]]:
    """Sizes by model, and speeds by device ("cpu", "gpu") and model."""
    predictors = {entry.name: Predictor(entry.bundle.path, device="cpu") for entry in entries}
    sizes = {name: size_of(predictor) for name, predictor in predictors.items()}
    if not is_timed:
        return sizes, {}
    spread = np.linspace(0, len(aligned) - 1, min(MAX_ROUNDS, len(aligned))).astype(int)
    paths = aligned.paths()
    images = [paths[row] for row in spread]
    speeds = {"cpu": measure_speed(predictors, images, torch.device("cpu"), progress)}
    gpu = choose_device("auto" if device == "cpu" else device)
    if device != "cpu" and gpu.type != "cpu":
        predictors = {entry.name: Predictor(entry.bundle.path, device=gpu.type) for entry in entries}
        speeds["gpu"] = measure_speed(predictors, images, gpu, progress)
    return sizes, speeds


def _row(
    entry: Entry, answers: Answers, sizes: Mapping[str, Any], speeds: Mapping[str, Speed], *, is_other_data: bool
) -> Row:
    metrics = answers.metrics
    cpu = speeds.get("cpu")
    if cpu is not None and cpu.latency_ms is not None:
        metrics = metrics.with_latency(*cpu.latency_ms)
    num_right = sum(metrics.confusion_matrix[at][at] for at in range(len(metrics.class_names)))
    timings = training_seconds(_runs_behind(entry))
    if entry.kind == "probe":  # nothing is trained in epochs: what counts is the whole experiment, all heads together
        timings |= total_seconds([entry.path])
    why = _VOTES if entry.kind == "ensemble" else _NO_EPOCHS if entry.kind == "probe" else _NO_RUN
    unknown = {key: why for key, value in timings.items() if value is None}
    facts: dict[str, Any] = {
        "kind": entry.kind,
        "path": str(entry.path),
        "architecture": entry.architecture,
        "image_size_px": max(network.spec.preprocessing.size_px for network in entry.networks),
        **sizes,
        "num_right": num_right,
        "num_wrong": metrics.num_images - num_right,
        **_by_split(entry, None if is_other_data else metrics, unknown),
        **timings,
    }
    for kind in ("cpu", "gpu"):
        facts |= _timed_facts(kind, speeds.get(kind), unknown, was_timed=bool(speeds))
    row = metrics_row(entry.name, metrics, **facts)
    row["undefined"] = {**row["undefined"], **unknown}
    return row


def _runs_behind(entry: Entry) -> list[Path]:
    """The runs whose trainings made a model: its own, or the folds of a cross-validation."""
    if entry.home is None:
        return []
    return runs_in(entry.path) if entry.kind == "crossval" else [entry.home.path]


def _timed_facts(kind: str, speed: Speed | None, unknown: dict[str, str], *, was_timed: bool) -> Row:
    """The figures of one device, by the names that tell the devices apart; why there is none goes to `unknown`."""
    keys = [key.format(kind) for key in _COST_KEYS]
    rate, joules = f"images_per_second_{kind}", f"joules_per_1000_images_{kind}"
    if speed is None:
        why = "not timed, as was asked" if not was_timed else "there is no GPU here, or --device leaves it out"
        unknown |= dict.fromkeys([*keys, rate, joules], why)
        return dict.fromkeys([*keys, rate, joules])
    values = [*(speed.latency_ms or (None, None)), *(speed.network_ms or (None, None))]
    if speed.latency_ms is None:
        unknown |= dict.fromkeys(keys[:2], speed.undefined["latency_ms"])
    if speed.joules_per_1000_images is None:
        unknown[joules] = speed.undefined["joules_per_1000_images"]
    figures = zip([*keys, rate, joules], [*values, speed.images_per_second, speed.joules_per_1000_images], strict=True)
    return {key: None if value is None else round(value, 4) for key, value in figures}


def _by_split(entry: Entry, own: SplitMetrics | None, unknown: dict[str, str]) -> Row:
    """Loss and accuracy of the images that the model was made with: `own`, or as they were found before."""
    facts: Row = {}
    for split in SPLITS:
        is_now = own is not None and own.split == split
        loss, accuracy = (own.log_loss, own.accuracy) if own is not None and is_now else _headline(entry, split)
        for key, value in ((f"{split}_loss", loss), (f"{split}_accuracy", accuracy)):
            facts[key] = value
            if value is None:
                unknown[key] = f"the {split} split was not evaluated where the model was made"
    return facts


def _headline(entry: Entry, split: str) -> tuple[float | None, float | None]:
    folder = entry.evaluation(split)
    if folder is not None and (folder / "metrics.json").is_file():
        found = SplitMetrics.read(folder / "metrics.json")
        return found.log_loss, found.accuracy
    carried = entry.bundle.spec.metrics.get(split, {})
    # Each is a value and its interval.
    with suppress(TypeError, KeyError, IndexError, ValueError):
        return float(carried["log_loss"][0]), float(carried["accuracy"][0])
    return None, None


def _repeated(entries: Sequence[Entry], rows: Sequence[Row], split: str) -> list[Repeated]:
    groups: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        if entry.group:
            groups.setdefault(entry.group, []).append(number)
    found = []
    for numbers in groups.values():
        members = tuple(entries[number].name for number in numbers)
        mean, std = mean_and_std([rows[number] for number in numbers])
        name = f"{entries[numbers[0]].architecture}: mean of {len(members)} seeds"
        found.append(Repeated(name, members, mean, std))
    return found + [_folds(entry, split) for entry in entries if entry.kind == "crossval"]


def _folds(entry: Entry, split: str) -> Repeated:
    """The folds of a cross-validation one by one: on the test split that was kept aside, or each on its own fold."""
    rows = read_json(entry.path / "summary.json")["rows"]
    members = tuple(str(row["name"]) for row in rows)
    aside = [{key.removeprefix(_ASIDE): value for key, value in row.items() if key.startswith(_ASIDE)} for row in rows]
    if split == "test" and all(aside):
        name, rows = f"{entry.name}: mean of {len(rows)} folds", aside
    else:
        name = f"{entry.name}: mean of {len(rows)} folds, each on the images that it had not seen"
    return Repeated(name, members, *mean_and_std(rows))


def _notes(
    entries: Sequence[Entry], answers: Mapping[str, Answers], question: Question, num_pairs: int, data: str | None
) -> list[str]:
    """What there is to know about the figures."""
    notes = []
    new = [name for name, each in answers.items() if each.is_new]
    if data is not None:
        notes.append(f"All models were evaluated now on {data}, the images of no run in particular.")
        unknown = [entry.name for entry in entries if answers[entry.name].was_trained_on is None]
        if unknown:
            notes.append(
                f"Whether {', '.join(unknown)} learnt from some of these images is not known: a bundle does not list "
                "what it was trained on."
            )
        for name, each in answers.items():
            seen = 0 if each.was_trained_on is None else int(each.was_trained_on.sum())
            if seen:
                notes.append(
                    f"{name} was trained on {seen:,} of these {len(each.images):,} images: its row flatters it."
                )
    elif not new:
        notes.append(
            f"All predictions are those of earlier evaluations; nothing looked at the {question.split} split anew."
        )
    else:
        looked = [f"{name} (look {answers[name].num_looks})" if answers[name].num_looks else name for name in new]
        notes.append(
            f"Evaluated now, for there were no predictions of the {question.split} split: {', '.join(looked)}."
        )
    if num_pairs > 1:
        notes.append(
            f"{num_pairs} pairs were tested, and of twenty that are alike one would seem to differ by chance: the "
            "p-values of the verdicts are corrected for that (Holm, 1979). The intervals are those of each pair by "
            "itself."
        )
    if question.split == "test" and len(entries) > 1:
        notes.append(
            "Whoever picks the best of these by its test figures has tuned on the test split, and the picked figure is "
            "a little too good: choose with --split val, and read test once."
        )
    return notes


def _machine(question: Question, speeds: Mapping[str, Mapping[str, Speed]]) -> dict[str, Any]:
    found = describe_environment(seed=question.seed, device=question.device)
    gpu = torch.cuda.get_device_name() if "gpu" in speeds and torch.cuda.is_available() else None
    return {
        "cpu": found["cpu"],
        "num_cpus": found["num_cpus"],
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "batch_size": BATCH_SIZE,
        "precision": "fp32",
        "torch": torch.__version__,
    }


def _cell(row: Mapping[str, Any], column: str) -> Any:
    if column in {"accuracy_low", "accuracy_high"}:
        bounds = row["confidence_intervals"].get("accuracy")
        return "" if bounds is None else bounds[column == "accuracy_high"]
    value = row.get(column)
    return "" if value is None else value
