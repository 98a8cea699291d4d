"""A folder in the hub's form that timm loads back: config.json and model.safetensors, of one network of timm's zoo.

`timm.create_model("local-dir:FOLDER", pretrained=True)` gives the same network. That is proven before anything is
written under its final name: the folder is loaded by timm itself, and every tensor and every logit must be equal.
"""

import json
import math
import secrets
import shlex
import shutil
from pathlib import Path
from typing import Any

import torch

from foveal.errors import ExportError
from foveal.exporting.licences import terms_of
from foveal.exporting.model_card import CARD_FILE, write_model_card
from foveal.extras import require
from foveal.files import atomic_writer, fsync_folder, write_json
from foveal.model.build import Classifier
from foveal.model.bundle import WEIGHTS_FILE, Bundle, EnsembleBundle
from foveal.model.bundle_spec import PreprocessingSpec
from foveal.model.config import in_words
from foveal.model.heads import is_plain

CONFIG_FILE = "config.json"
HUB_FILES = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)

_CROP_MODES = {"crop": "center", "pad": "border", "squash": "squash"}
_NUM_PROVEN = 4


def write_hub_folder(bundle: Bundle | EnsembleBundle, folder: Path, *, run: Path | None = None, name: str = "") -> Path:
    """Write config.json, model.safetensors and README.md, proven by loading them back with timm.

    Args:
        bundle: of one network of timm's zoo under a plain head.
        folder: where to; other files in it stay.
        run: the run folder, for the model card.
        name: what the model card calls the model.

    Returns:
        The folder.

    Raises:
        ExportError: timm has no form for it, or does not give the same network back.
        ArtifactError: the bundle's weights are damaged.
        FovealError: the folder cannot be written.
    """
    single = _expressible(bundle)
    timm = require("timm", extra="train", purpose="write a folder that timm loads")
    classifier = single.build()
    staging = folder.parent / f".{folder.name[:32]}.{secrets.token_hex(6)}.partial"
    try:
        staging.mkdir(parents=True)
        with (single.path / WEIGHTS_FILE).open("rb") as source, atomic_writer(staging / WEIGHTS_FILE) as target:
            shutil.copyfileobj(source, target)
        write_json(staging / CONFIG_FILE, _config(single, classifier, staging))
        _prove(timm, staging, single, classifier)
        write_model_card(staging, single, model_file=WEIGHTS_FILE, run=run, name=name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in HUB_FILES:
            (staging / file).replace(folder / file)
        fsync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _expressible(bundle: Bundle | EnsembleBundle) -> Bundle:
    """The bundle of one network, if timm's form can say all of it.

    Raises:
        ExportError: with all reasons why not.
    """
    onnx = f"foveal export {shlex.quote(str(bundle.path))} --to onnx --out DIR, which takes every model"
    if isinstance(bundle, EnsembleBundle):
        raise ExportError(
            f"An ensemble of {len(bundle.members)} networks is no model of timm.",
            fix=f"export one of its members, such as {shlex.quote(str(bundle.members[0].path))}; or take {onnx}.",
        )
    architecture, problems = bundle.spec.architecture, []
    if not isinstance(architecture.name, str):
        problems.append(f"it joins several networks ({in_words(architecture.name)}), and timm knows them one by one")
    elif architecture.library != "timm":
        problems.append(f"{architecture.name} is from {architecture.library}, and timm has no such name")
    if architecture.classical is not None:
        problems.append(f"its head is classical ({architecture.classical.kind}), and timm's are layers")
    elif not is_plain(architecture.head):
        problems.append("its head is composed of layers of its own, and timm's are one layer")
    if problems:
        raise ExportError("timm has no form for this model.", problems=problems, fix=f"take {onnx}.")
    return bundle


def _config(bundle: Bundle, classifier: Classifier, staging: Path) -> dict[str, Any]:
    """What config.json holds, by timm's own writer, and with what the bundle says of preprocessing and classes."""
    hub: Any = require("timm.models._hub", extra="train", purpose="write a folder that timm loads")
    spec, look = bundle.spec, bundle.spec.preprocessing
    file = staging / "written-by-timm.json"
    side = look.size_px
    hub.save_config_for_hf(
        classifier.net,
        str(file),
        model_config={"label_names": list(spec.class_names)},
        # A bundle leaves out Inception's second head, which is for training alone.
        model_args={"aux_logits": False} if classifier.auxiliary is not None else None,
        data_config={
            "input_size": (3, side, side),
            "interpolation": look.interpolation,
            "crop_pct": crop_share(look),
            "crop_mode": _CROP_MODES[look.fit],
            "mean": look.mean,
            "std": look.std,
        },
    )
    written: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    # What the zoo says of its own weights is not true of these.
    for key in ("tag", "origin_url", "paper_name", "paper_ids", "notes", "description", "label_descriptions"):
        written["pretrained_cfg"].pop(key, None)
    written["pretrained_cfg"].pop("license", None)
    if terms_of(spec.weights.licence) not in {"none", "unknown"}:
        written["pretrained_cfg"]["license"] = spec.weights.licence
    written["foveal"] = {
        "foveal_version": spec.foveal_version,
        "temperature": spec.temperature,
        "preprocessing": look.model_dump(mode="json"),
        "training_data": spec.training_data.model_dump(mode="json"),
    }
    return written


def crop_share(look: PreprocessingSpec) -> float:
    """The square's side as a share of what the shorter side is scaled to, timm's `crop_pct`; timm rounds down."""
    share = look.size_px / look.store_px
    while math.floor(look.size_px / share) < look.store_px:
        share = math.nextafter(share, 0.0)
    return share


def _prove(timm: Any, staging: Path, bundle: Bundle, classifier: Classifier) -> None:
    """Load the folder as its users will, and compare.

    Raises:
        ExportError: timm does not load it, or gives another network.
    """
    name = in_words(bundle.spec.architecture.name)
    fix = f"take foveal export {shlex.quote(str(bundle.path))} --to onnx --out DIR, and report this."
    try:
        net = timm.create_model(f"local-dir:{staging}", pretrained=True).eval()
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ExportError(f"timm does not load {name} back: {str(error).splitlines()[0]}", fix=fix) from error
    expected, found = classifier.net.state_dict(), net.state_dict()
    problems = [f"{key}: it is in one of them alone" for key in sorted(expected.keys() ^ found.keys())]
    problems += [f"{key}: it differs" for key in expected if key in found and not _equal(expected[key], found[key])]
    if not problems:
        side = bundle.spec.preprocessing.size_px
        square = torch.rand(_NUM_PROVEN, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            ours = classifier.net.eval()((square - classifier.mean) / classifier.std)
            theirs = net((square - classifier.mean) / classifier.std)
        if not torch.equal(ours, theirs):
            problems.append(f"the logits of the same pixels differ by up to {float((ours - theirs).abs().max()):.3g}")
    if problems:
        raise ExportError(f"What timm loads back is not the {name} of the bundle.", problems=problems, fix=fix)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
