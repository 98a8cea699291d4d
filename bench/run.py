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

from images import ROOT, find_or_generate, real_images
from measuring import Figure, NotMeasuredError, import_seconds, ratios, run_json, seconds_of
from peers import peer_python

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "latest.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: written by bench/run.py --write-docs -->", "<!-- end of figures -->"
HEAVY = ("torch", "torchvision", "timm", "lightning", "kornia", "matplotlib", "sklearn", "scipy", "pandas", "pyarrow")
FOVEAL = [sys.executable, "-m", "foveal"]
QUICK = ["model.name=resnet18", "model.weights=none", "data.image_size=32", "train.epochs=1", "train.batch_size=64"]


class Bench:
    """What the measurements share.

    Args:
        rounds: how often each comparison is repeated.
        steps: training steps a round, or None for whole epochs.
        scratch: a folder for images, caches and runs.
    """

    def __init__(self, rounds: int, steps: int | None, scratch: Path) -> None:
        self.rounds, self.scratch = rounds, scratch
        self.steps = ["--steps", str(steps)] if steps else []
        self.images = find_or_generate(scratch)
        self.environment = {**os.environ, "FOVEAL_CACHE_DIR": str(scratch / "cache")}
        self._runs: list[Path] = []

    def quick_run(self, number: int) -> Path:
        """The first or second of two equal runs on an empty cache folder, trained when asked for."""
        while len(self._runs) <= number:
            run = self.scratch / f"run{len(self._runs)}"
            settings = [text for setting in QUICK for text in ("--set", setting)]
            run_json([*FOVEAL, "train", str(self.images), "--out", str(run), "--json", *settings], self.environment)
            self._runs.append(run)
        return self._runs[number]

    def loop(self, *options: str) -> dict[str, Any]:
        """One run of `foveal_loop.py`."""
        command = [sys.executable, str(HERE / "foveal_loop.py"), str(self.images), *self.steps, *options]
        return run_json(command, self.environment)


def against_bare_loop(bench: Bench) -> list[Figure]:
    """The training loop, foveal's and a bare PyTorch one."""
    figures: list[Figure] = []
    for precision in ("auto", "fp32"):
        if figures and figures[0].name.endswith("fp32"):
            break  # fp32 is the default on this machine
        said = bench.loop("--precision", precision, "--rounds", str(bench.rounds))
        figures.append(
            Figure(
                key="a",
                name=f"training, foveal / bare PyTorch loop, {said['precision']}",
                values=ratios(said["foveal"], said["bare"]),
                at_least=0.95,
                detail={"foveal images/s": said["foveal"], "bare images/s": said["bare"]},
            )
        )
    return figures


def against_fastai(bench: Bench) -> list[Figure]:
    """The training loop, foveal's and fastai's, both as processes of their own."""
    python = peer_python()
    fastai_command = [str(python), str(HERE / "fastai_loop.py"), str(bench.images), *bench.steps]
    sides: dict[str, Callable[[], float]] = {
        "fastai": lambda: median(run_json(fastai_command, bench.environment)["fastai"]),
        "foveal": lambda: median(bench.loop("--alone", "--rounds", "1")["foveal"]),
        "foveal fp32": lambda: median(bench.loop("--alone", "--rounds", "1", "--precision", "fp32")["foveal"]),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(bench.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            rates[name].append(sides[name]())
    detail = {f"{name} images/s": values for name, values in rates.items()}
    names = {"foveal": "training, foveal / fastai, both at their defaults", "foveal fp32": "the same, both in fp32"}
    return [
        Figure(key="b", name=words, values=ratios(rates[name], rates["fastai"]), at_least=1.5, detail=detail)
        for name, words in names.items()
    ]


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


PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "a": against_bare_loop,
    "b": against_fastai,
    "c": help_time,
    "d": predict_time,
    "e": second_run,
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="cut training rounds short; for trying the harness")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    wanted = parser.parse_args()
    parts = [key.strip() for key in wanted.only.split(",")]
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    from foveal.run_folder import describe_environment

    machine = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "load_before": os.getloadavg()}
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
