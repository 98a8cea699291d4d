"""Speed as ratios, measured in turns in one run; `make bench`. docs/benchmarks.md says what is compared and why.

Misses are printed as misses, and never fail the command: a busy machine is no fault of the code.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from deploy import deployed
from harness import FOVEAL, HERE, Bench
from images import ROOT, cifar10_archive, real_images
from measuring import Figure, NotMeasuredError, import_seconds, ratios, run_json, seconds_of
from planted_scoring import TARGETS, WRONG_LABEL_PRECISION
from training_parts import against_bare_loop, against_fastai, frozen_features, waiting_for_data

RESULTS = HERE / "results" / "latest.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: written by bench/run.py --write-docs -->", "<!-- end of figures -->"
HEAVY = ("torch", "torchvision", "timm", "lightning", "kornia", "matplotlib", "sklearn", "scipy", "pandas", "pyarrow")


def help_time(bench: Bench) -> list[Figure]:
    """The wall time of `foveal --help`, and what it imports."""
    ours, bare = [], []
    for _ in range(max(10, bench.rounds)):
        ours.append(seconds_of([*FOVEAL, "--help"], bench.environment))
        bare.append(seconds_of([sys.executable, "-c", "pass"], bench.environment))
    modules = import_seconds([*FOVEAL, "--help"], bench.environment)
    heavy = sorted(name for name in modules if name in HEAVY)
    detail = {"foveal --help seconds": ours, "python -c pass seconds": bare, "packages": list(modules)}
    return [
        Figure(key="c", name="foveal --help, seconds", values=ours, at_most=0.5, unit="s", detail=detail),
        Figure(key="c", name="foveal --help / python -c pass", values=ratios(ours, bare), detail=detail),
        Figure(key="c", name="heavy modules imported by --help", values=[len(heavy)], at_most=0, unit="",
               detail={"heavy": heavy, "looked for": list(HEAVY)}),
    ]  # fmt: skip


def predict_time(bench: Bench) -> list[Figure]:
    """The wall time of `foveal predict` on one image, and the import of torch in it."""
    image = next(path for path in sorted(bench.images.rglob("*")) if path.is_file())
    bundle, table = bench.quick_run(0) / "bundle", bench.scratch / "one.csv"
    commands = {
        "predict": [*FOVEAL, "predict", str(bundle), str(image), "--out", str(table)],
        "import torch": [sys.executable, "-c", "import torch"],
        "import torch and timm": [sys.executable, "-c", "import torch, timm"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    seconds_of(commands["predict"], bench.environment)  # so that all read from a warm file cache
    for _ in range(max(5, bench.rounds)):
        for name, command in commands.items():
            seconds[name].append(seconds_of(command, bench.environment))
    detail: dict[str, Any] = {f"{name} seconds": values for name, values in seconds.items()}
    by_package = import_seconds(commands["predict"], bench.environment)
    detail["import seconds by package, traced"] = dict(list(by_package.items())[:12])
    torch, both = (ratios(seconds[name], seconds["predict"]) for name in ("import torch", "import torch and timm"))
    ours = [by_package.get("foveal", 0.0) / median(seconds["predict"])]
    name = "predict one image, share of importing"
    return [
        Figure(key="d", name=f"{name} torch and timm", values=both, at_least=0.5, detail=detail),
        Figure(key="d", name=f"{name} torch alone", values=torch, detail=detail),
        Figure(key="d", name=f"{name} foveal's own modules", values=ours, detail=detail),
    ]


def second_run(bench: Bench) -> list[Figure]:
    """The decode stage of two equal runs."""
    decoded, wall, shares = [], [], []
    for number in (0, 1):
        run = bench.quick_run(number)
        events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        decoded.append(next(event["num_decoded"] for event in events if event["event"] == "decode"))
        timings = json.loads((run / "timings.json").read_text(encoding="utf-8"))
        wall.append(timings["decode"]["wall_seconds"])
        shares.append(wall[-1] / sum(stage["wall_seconds"] for stage in timings.values()))
    detail = {"num_decoded": decoded, "decode seconds": wall, "decode share of the run": shares}
    return [
        Figure(key="e", name="files decoded by the second run", values=[decoded[1]], at_most=0, unit="", detail=detail),
        Figure(key="e", name="decode stage, second / first run", values=ratios(wall[1:], wall[:1]), detail=detail),
        Figure(key="e", name="decode stage, share of the second run", values=shares[1:], detail=detail),
    ]


def audit_speed(bench: Bench) -> list[Figure]:
    """`foveal audit` against CleanVision on 10,000 images of CIFAR-10, and on all 60,000."""
    if cifar10_archive() is None:
        raise NotMeasuredError("there is no cifar10.tar.gz in $FOVEAL_DATA")
    script = [sys.executable, str(HERE / "audit_speed.py"), "--rounds", str(min(3, bench.rounds))]
    said = run_json(script, bench.environment)
    scale = said["scale"]
    detail = {
        f"{name} seconds": said[name]
        for name in ("foveal", "foveal pass alone", "cleanvision", "cleanvision checks alone")
    }
    peaks = [peak / (1 << 30) for peak in scale["60,000 peak bytes"]]
    return [
        Figure(key="f", name="audit of 10,000 images, CleanVision's checks alone / foveal's pass and checks alone",
               values=ratios(said["cleanvision checks alone"], said["foveal pass alone"]), at_least=10, detail=detail),
        Figure(key="f", name="the same, both from start to end, with foveal's page and tables",
               values=ratios(said["cleanvision"], said["foveal"]), detail=detail),
        Figure(key="f", name="audit of 10,000 images, seconds", values=said["foveal"], unit="s"),
        Figure(key="f", name="audit, 60,000 images / 10,000", values=ratios(scale["60,000"], scale["10,000"]),
               at_most=7, detail=scale),
        Figure(key="f", name="audit of 60,000 images, peak memory in GiB", values=peaks, at_most=1, unit="GiB"),
    ]  # fmt: skip


def planted_set(bench: Bench) -> list[Figure]:
    """What an audit finds of what was planted into `sign_digits`."""
    said = bench.planted()
    figures = [
        Figure(key="g", name=f"planted, recall of {kind}", values=[recall], at_least=TARGETS[kind], unit="share",
               detail={"missed": said["missed"][kind]})
        for kind, recall in said["recall"].items()
    ]  # fmt: skip
    precision = said["wrong_label_precision"] or 0.0
    share = said["share_of_images_in_extra_pairs"]
    return [
        *figures,
        Figure(key="g", name="planted, precision of wrong labels", values=[precision], at_least=WRONG_LABEL_PRECISION,
               unit="share"),
        Figure(key="g", name="planted, images in pairs that were not planted, to be judged by eye", values=[share],
               unit="share", detail={"pairs": said["num_extra_pairs"]}),
    ]  # fmt: skip


def planted_training(bench: Bench) -> list[Figure]:
    """Trained on the planted set with leaks reported and with leaks dropped: the accuracy on test."""
    training = bench.planted("--train")["training"]
    return [
        Figure(key="h", name=f"planted, test accuracy with data.leaks={leaks}", values=[said["accuracy"]],
               unit="share", detail=said)
        for leaks, said in training.items()
    ]  # fmt: skip


def million_rows(bench: Bench) -> list[Figure]:
    """A manifest of a million rows through the search for duplicates, `clean` and `split`."""
    said = run_json([sys.executable, str(HERE / "million_rows.py")], bench.environment)
    stages = said["stages"]
    return [
        *(Figure(key="i", name=f"{said['num_rows']:,} rows, {name}, peak memory in GiB", at_most=2, unit="GiB",
                 values=[stage["peak_bytes"] / (1 << 30)], detail=stage) for name, stage in stages.items()),
        *(Figure(key="i", name=f"{said['num_rows']:,} rows, {name}, seconds", values=[stage["seconds"]], unit="s")
          for name, stage in stages.items()),
        *(Figure(key="i", name=f"{said['num_rows']:,} rows, recall of planted {kind} copies",
                 values=[said[f"recall {kind}"]], unit="share", detail=said) for kind in ("exact", "near")),
    ]  # fmt: skip


PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "a": against_bare_loop,
    "b": against_fastai,
    "c": help_time,
    "d": predict_time,
    "e": second_run,
    "f": audit_speed,
    "g": planted_set,
    "h": planted_training,
    "i": million_rows,
    "j": frozen_features,
    "k": waiting_for_data,
    "m": deployed,
}


def measure(parts: Sequence[str], rounds: int, steps: int | None) -> tuple[list[Figure], dict[str, str]]:
    """Run the parts; one that cannot be measured is named with its reason."""
    figures: list[Figure] = []
    not_measured: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as scratch:
        bench = Bench(rounds, steps, Path(scratch))
        for key in parts:
            print(f"{key}. {PARTS[key].__doc__}", file=sys.stderr, flush=True)
            try:
                figures += PARTS[key](bench)
            except NotMeasuredError as reason:
                not_measured[key] = str(reason)
    return figures, not_measured


def markdown(figures: Sequence[Figure], not_measured: dict[str, str], machine: dict[str, Any]) -> str:
    """The table, the same for the terminal and for the page."""
    lines = ["| | figure | median | lowest to highest | rounds | target | |", "|---|---|---|---|---|---|---|"]
    lines += [figure.row() for figure in figures]
    lines += [f"| {key} | not measured: {reason} | | | | | |" for key, reason in not_measured.items()]
    load = ", ".join(f"{machine[name][0]:.1f} {name[5:]}" for name in ("load_before", "load_after"))
    images = "real images" if machine["real_images"] else "generated images"
    lines += ["", f"{machine['date']}, {machine['cpu']}, {machine['num_cpus']} cores, Python {machine['python']}, "
              f"torch {machine['packages']['torch']}, {images}. Load of the machine: {load}."]  # fmt: skip
    return "\n".join(lines)


def write_page(table: str) -> None:
    """Put the table between the marks of docs/benchmarks.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="which parts, as in a,c")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of a training round; a few, for trying the harness")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    wanted = parser.parse_args()
    parts = [key.strip() for key in wanted.only.split(",")]
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    from foveal.run_folder import describe_environment

    machine: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "load_before": os.getloadavg()}
    figures, not_measured = measure(parts, wanted.rounds, wanted.steps)
    machine |= describe_environment(seed=0, device="cpu")
    machine |= {"load_after": os.getloadavg(), "real_images": real_images() is not None}
    table = markdown(figures, not_measured, machine)
    print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"machine": machine, "figures": [figure.to_dict() for figure in figures], "not_measured": not_measured}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if wanted.write_docs:
        write_page(table)


if __name__ == "__main__":
    main()
