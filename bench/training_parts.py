"""The parts of `bench/run.py` that are about training."""

import sys
from contextlib import ExitStack

from harness import HERE, Bench
from images import real_images
from measuring import Figure, NotMeasuredError, ratios, run_json
from peers import peer_python
from turns import Contestant, in_turns

MODELS = ("resnet18", "mobilenetv3_small_100", "efficientnet_b0")
BARE_STEPS = 12
"""Steps a round against the bare loop, about half an epoch; both sides have the same, and no workers to start."""


def against_bare_loop(bench: Bench) -> list[Figure]:
    """The training loop, foveal's and a bare PyTorch one."""
    figures: list[Figure] = []
    script = [sys.executable, str(HERE / "foveal_loop.py"), str(bench.images), "--rounds", str(bench.rounds)]
    script += ["--steps", str(bench.steps or BARE_STEPS)]
    for model in MODELS:
        said = run_json([*script, "--model", model], bench.environment)
        rows = [said]
        if said["precision"] != "fp32":  # else it is the default on this machine
            rows.append(run_json([*script, "--model", model, "--precision", "fp32"], bench.environment))
        figures += [
            Figure(
                key="a",
                name=f"training {model}, foveal / bare PyTorch loop, {row['precision']}",
                values=ratios(row["foveal"], row["bare"]),
                at_least=0.95,
                detail={"foveal images/s": row["foveal"], "bare images/s": row["bare"]},
            )
            for row in rows
        ]
    return figures


def against_fastai(bench: Bench) -> list[Figure]:
    """The training loop, foveal's and fastai's, as processes of their own that take turns."""
    return [figure for model in MODELS for figure in _against_fastai(bench, model, str(peer_python()))]


def _against_fastai(bench: Bench, model: str, python: str) -> list[Figure]:
    options = [str(bench.images), "--model", model, *(("--steps", str(bench.steps)) if bench.steps else ())]
    ours = [sys.executable, str(HERE / "foveal_loop.py"), *options, "--on-request"]
    with ExitStack() as stack:
        fastai = stack.enter_context(Contestant([python, str(HERE / "fastai_loop.py"), *options], bench.environment))
        foveal = stack.enter_context(Contestant(ours, bench.environment))
        sides = {"fastai": fastai.round, "foveal": foveal.round}
        precision = foveal.facts["precision"]
        if precision != "fp32":
            in_fp32 = stack.enter_context(Contestant([*ours, "--precision", "fp32"], bench.environment))
            sides["foveal fp32"] = in_fp32.round
        rates = in_turns(sides, bench.rounds)
    detail = {f"{name} images/s": values for name, values in rates.items()}
    names = {"foveal": f"training {model}, foveal / fastai, both at their defaults ({precision}, fp32)"}
    if "foveal fp32" in rates:
        names["foveal fp32"] = f"training {model}, foveal / fastai, both in fp32"
    return [
        Figure(key="b", name=words, values=ratios(rates[name], rates["fastai"]), at_least=1.5, detail=detail)
        for name, words in names.items()
    ]


def frozen_features(bench: Bench) -> list[Figure]:
    """Ten epochs of a frozen backbone, with its features computed once and without."""
    said = bench.script("frozen_features", str(bench.images), "--rounds", str(min(2, bench.rounds)))
    lost = [said["val_accuracy"]["uncached"] - said["val_accuracy"]["again"]]
    detail = {name: said[name] for name in ("seconds", "val_accuracy", "num_train", "num_val", "weights", "settings")}
    return [
        Figure(key="j", name="ten epochs of a frozen resnet18, uncached / with features at hand",
               values=said["times_as_fast"]["again"], at_least=10, detail=detail),
        Figure(key="j", name="the same, uncached / with features that are computed first",
               values=said["times_as_fast"]["first"], detail=detail),
        Figure(key="j", name="the same, accuracy on validation without the features", unit="share",
               values=[said["val_accuracy"]["uncached"]], detail=detail),
        Figure(key="j", name="the same, accuracy lost by the features", values=[abs(lost[0])], unit="share",
               at_most=1 / said["num_val"], detail=detail),
    ]  # fmt: skip


def waiting_for_data(bench: Bench) -> list[Figure]:
    """The share of time that training waits for images of 500x375 pixels."""
    if real_images() is None:
        raise NotMeasuredError("there is no sign_digits in $FOVEAL_DATA")
    said = bench.script("waiting", str(bench.images))
    first, *later = said["data_wait_share"]
    return [
        Figure(key="k", name="waiting for data, share of the first epoch", values=[first], unit="share", detail=said),
        Figure(key="k", name="waiting for data, share of each later epoch", values=later, at_most=0.05, unit="share",
               detail=said),
    ]  # fmt: skip
