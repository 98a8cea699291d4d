"""The folder for the hub: read back by timm alone, and equal to the last bit; what timm cannot say is refused."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from foveal.errors import ExportError
from foveal.exporting.hub_folder import write_hub_folder
from foveal.inference import Predictor
from foveal.model.build import Architecture, build
from foveal.model.bundle import Bundle, EnsembleBundle, open_bundle, write_bundle
from foveal.model.config import HeadConfig

NAMES = ('<img src=x onerror="alert(1)">', "=HYPERLINK(1)", "two\nlines")


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def make(name: Any, size_px: int = 32, *, fit: str = "crop", store_px: int = 0, **architecture: Any) -> Bundle:
        torch.manual_seed(0)
        classifier = build(Architecture(name=name, num_classes=3, image_size=size_px, **architecture))
        with torch.no_grad():
            for parameter in classifier.net.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        spec = {
            "architecture": classifier.architecture.spec(),
            "class_names": NAMES,
            "preprocessing": {
                "policy_version": 1, "max_pixels": 120_000_000, "size_px": size_px,
                "store_px": store_px or (size_px if fit != "crop" else round(1.07 * size_px)), "fit": fit,
                "interpolation": "bilinear", "background": (255, 255, 255), "mean": (0.1, 0.2, 0.3),
                "std": (0.5, 0.6, 0.7),
            },
            "temperature": 1.5,
            "training_data": {"fingerprint": "0" * 64, "num_images": {"train": 24, "val": 6, "test": 6}},
            "weights": {"source": "pretrained", "tag": "x.in1k", "licence": "cc-by-nc-4.0"},
        }  # fmt: skip
        return write_bundle(tmp_path / f"bundle of {name}", spec, classifier.net.state_dict())

    return make


@pytest.mark.parametrize(
    ("name", "size_px"),
    [("resnet18", 32), ("efficientnet_b0", 32), ("vit_small_patch16_224", 48), ("test_convnext", 64), ("test_vit", 48)],
)
def test_timm_reads_the_same_network_back(
    name: str, size_px: int, make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    bundle = make_bundle(name, size_px, store_px=size_px + 4)  # an even rest, which timm halves as foveal does
    folder = write_hub_folder(bundle, tmp_path / "for the hub")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert not list(tmp_path.glob(".*partial"))
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    classifier = bundle.build()
    ours, theirs = classifier.net.state_dict(), net.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    cfg = net.pretrained_cfg
    assert tuple(cfg["label_names"]) == NAMES
    assert cfg["num_classes"] == 3
    assert cfg["license"] == "cc-by-nc-4.0"
    data = timm.data.resolve_model_data_config(net)
    assert tuple(data["input_size"]) == (3, size_px, size_px)
    assert (tuple(data["mean"]), tuple(data["std"])) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    # timm's own transform on a square image, where both scale alike, and its network: foveal's own answer.
    pixels = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    transform = timm.data.create_transform(**data, is_training=False)
    with torch.inference_mode():
        logits = net(transform(Image.fromarray(pixels))[None])
    expected = Predictor(bundle.path, device="cpu")(pixels)
    found = torch.softmax(logits / 1.5, dim=1)[0].numpy()
    assert found == pytest.approx(expected.probabilities, abs=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_timm_is_told_how_an_image_becomes_square(fit: str, make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = make_bundle("test_resnet", 40, fit=fit)
    net = timm.create_model(f"local-dir:{write_hub_folder(bundle, tmp_path / 'hub')}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 120, 3), dtype=np.uint8)
    ((square,),) = Predictor(bundle.path, device="cpu").prepare(pixels).values()
    theirs = transform(Image.fromarray(pixels)) * torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    theirs = (theirs + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).mul(255).round().permute(1, 2, 0).numpy()
    inner = slice(10, 30) if fit == "pad" else slice(None)  # the rest of the square is filled up
    assert np.array_equal(theirs[inner], square[inner])


@pytest.mark.parametrize("size_px", [8, 97, 224, 331, 384])
def test_the_share_of_the_crop_gives_timm_the_very_side(size_px: int) -> None:
    from math import floor

    from foveal.exporting.hub_folder import crop_share
    from foveal.model.bundle_spec import PreprocessingSpec

    for store_px in range(size_px, 2 * size_px):
        look = PreprocessingSpec(
            policy_version=1, max_pixels=10, size_px=size_px, store_px=store_px, fit="crop", interpolation="bicubic",
            background=(0, 0, 0), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0),
        )  # fmt: skip
        assert floor(size_px / crop_share(look)) == store_px


def test_what_timm_has_no_form_for_is_refused_with_every_reason(
    make_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    cases = [
        (make_bundle("small_cnn"), "small_cnn is from foveal"),
        (make_bundle(("test_resnet", "test_vit"), 48), "it joins several networks"),
        (make_bundle("test_resnet", 32, head=HeadConfig(layers=(8,), kind="dense")), "its head is composed"),
    ]
    for bundle, words in cases:
        with pytest.raises(ExportError, match="timm has no form") as refused:
            write_hub_folder(bundle, tmp_path / "hub")
        assert words in str(refused.value)
        assert f"foveal export {shlex.quote(str(bundle.path))} --to onnx" in refused.value.fix
    assert not (tmp_path / "hub").exists()


def test_a_folder_that_timm_reads_otherwise_is_not_written(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = timm.create_model

    def other(*names: Any, **kwargs: Any) -> Any:
        net = real(*names, **kwargs)
        if str(names[0]).startswith("local-dir:"):
            next(net.parameters()).data[0] += 1e-6
        return net

    bundle = make_bundle("test_resnet")
    monkeypatch.setattr(timm, "create_model", other)
    with pytest.raises(ExportError, match="not the test_resnet") as refused:
        write_hub_folder(bundle, tmp_path / "hub")
    assert any("it differs" in problem for problem in refused.value.problems)
    assert not (tmp_path / "hub").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_an_ensemble_is_refused_with_its_members(tiny_bundle: Path, tmp_path: Path) -> None:
    single = open_bundle(tiny_bundle)
    assert isinstance(single, Bundle)
    ensemble = EnsembleBundle(tmp_path, single.spec, (single, single))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="ensemble of 2 networks") as refused:
        write_hub_folder(ensemble, tmp_path / "hub")
    assert str(tiny_bundle) in refused.value.fix
