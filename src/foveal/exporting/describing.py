"""What an exported model says of itself, from the bundle that it was made from."""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from foveal.exported.spec import FORMAT_VERSION, ExportedMember, ExportSpec, LookSpec
from foveal.exporting.assembly import heatmap_of
from foveal.files import sha256_file
from foveal.model.bundle import BUNDLE_FILE, Bundle, EnsembleBundle
from foveal.model.bundle_spec import PreprocessingSpec
from foveal.model.config import in_words
from foveal.version import __version__

if TYPE_CHECKING:
    from foveal.exporting.cores import Core

_LIBRARIES = ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def networks_of(bundle: Bundle | EnsembleBundle) -> tuple[Bundle, ...]:
    """The one network, or the members."""
    return bundle.members if isinstance(bundle, EnsembleBundle) else (bundle,)


def architecture_of(bundle: Bundle | EnsembleBundle) -> str:
    """The network's name in words, or those of the members."""
    return ", ".join(in_words(network.spec.architecture.name) for network in networks_of(bundle))


def bundle_sha256(bundle: Bundle | EnsembleBundle) -> str:
    """The SHA-256 of bundle.json, which holds those of the weights."""
    return sha256_file(bundle.path / BUNDLE_FILE)


def library_versions() -> dict[str, str]:
    """Versions of what makes an export."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe(
    bundle: Bundle | EnsembleBundle,
    cores: "Sequence[Core]",
    *,
    precision: Literal["fp32", "int8"],
    resize: Literal["inside", "outside"],
) -> ExportSpec:
    """The description that goes into an ONNX file.

    Args:
        bundle: what is exported.
        cores: its networks as ONNX, in order.
        precision: what they compute in.
        resize: whether the graph takes images of any size.
    """
    spec, networks = bundle.spec, networks_of(bundle)
    looks = looks_of(networks)
    places = {(look.geometry(), look.policy()): place for place, look in enumerate(looks)}
    shares, vote = [(architecture_of(bundle), 1.0)], None
    if isinstance(bundle, EnsembleBundle):
        shares = [(each.name, each.weight) for each in bundle.spec.members]
        vote = bundle.spec.vote
    has_heatmap, reason = heatmap_of(cores)
    return ExportSpec(
        format_version=FORMAT_VERSION,
        foveal_version=__version__,
        libraries=library_versions(),
        bundle_sha256=bundle_sha256(bundle),
        architecture=architecture_of(bundle),
        class_names=spec.class_names,
        ordered=spec.ordered,
        precision=precision,
        opset=opset_of(cores[0]),
        resize=resize,
        temperature=spec.temperature,
        looks=tuple(
            LookSpec(input="square" if len(looks) == 1 else f"square_{place}", preprocessing=look)
            for place, look in enumerate(looks)
        ),
        vote=vote,
        members=tuple(
            ExportedMember(
                name=name,
                weight=weight,
                temperature=network.spec.temperature,
                look=places[network.spec.preprocessing.geometry(), network.spec.preprocessing.policy()],
            )
            for (name, weight), network in zip(shares, networks, strict=True)
        ),
        heatmap=has_heatmap,
        heatmap_reason=reason,
        training_data=spec.training_data,
        weights=spec.weights,
        metrics=spec.metrics,
    )


def looks_of(networks: Sequence[Bundle]) -> tuple[PreprocessingSpec, ...]:
    """The kinds of square that networks see, each once, in the order in which a predictor has them."""
    found: dict[object, PreprocessingSpec] = {}
    for network in networks:
        look = network.spec.preprocessing
        found.setdefault((look.geometry(), look.policy()), look)
    return tuple(found.values())


def opset_of(core: "Core") -> int:
    """Version of ONNX's own operators that a network is written in."""
    return max(int(each.version) for each in core.model.opset_import if re.fullmatch("(ai\\.onnx)?", each.domain))
