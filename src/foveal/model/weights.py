"""Weights to start from: the zoo's, none, or a file of one's own; never by running what a file brings along."""

import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from foveal.errors import ArtifactError
from foveal.model.build import Classifier, pretrained_facts
from foveal.model.tensors import first_line, read_tensors

UNKNOWN_LICENCE = "unknown"
REACH_SECONDS = 4.0


@dataclass(frozen=True)
class WeightsOrigin:
    """Where weights came from, as a bundle records it.

    Attributes:
        source: "pretrained", "none" or the path of the file.
        tag: the zoo's name of the weights, such as resnet18.a1_in1k; empty otherwise.
        licence: what the zoo or the bundle says; the licence of weights is not that of the code.
        num_loaded: tensors that were taken over.
        not_loaded: names of the model's tensors that kept their random start, such as a head of other classes.
    """

    source: str
    tag: str
    licence: str
    num_loaded: int
    not_loaded: tuple[str, ...]

    def sentence(self) -> str:
        """What happened, for a person."""
        if self.source == "none":
            return "Weights: random start (model.weights=none)."
        kept = f", {len(self.not_loaded)} kept their random start ({_some(self.not_loaded)})" if self.not_loaded else ""
        name = self.tag or self.source
        return f"Weights: {self.num_loaded} tensors from {name}{kept}. Licence: {self.licence}."


def load_weights(classifier: Classifier, name: str, weights: str) -> WeightsOrigin:
    """Fill a fresh classifier.

    Args:
        classifier: the model to fill, in place.
        name: the zoo's name, with its tag if one was asked for.
        weights: "pretrained", "none", or a path to a run, a bundle, a .safetensors or a .pth/.pt/.ckpt of tensors.

    Raises:
        ArtifactError: the weights are not at hand, are damaged, hold more than tensors, or fit nowhere.
    """
    if weights == "none":
        return WeightsOrigin("none", "", "none: trained from a random start", 0, ())
    if weights == "pretrained":
        facts = pretrained_facts(name)
        state, tag = _pretrained_state(classifier, name, facts)
        licence = str(facts.get("license") or UNKNOWN_LICENCE)
        return _fill(classifier, state, WeightsOrigin("pretrained", tag, licence, 0, ()))
    return load_own(classifier, Path(weights).expanduser())


def load_own(classifier: Classifier, path: Path) -> WeightsOrigin:
    """Fill a classifier from a file or folder of one's own; layers of another shape keep their random start.

    Raises:
        ArtifactError: see `load_weights`.
    """
    from foveal.model.bundle import is_bundle, read_bundle

    if is_bundle(path):
        bundle = read_bundle(path)
        origin = WeightsOrigin(str(path), bundle.spec.weights.tag, bundle.spec.weights.licence, 0, ())
        return _fill(classifier, bundle.state(), origin)
    if not path.is_file():
        fault = (
            "the folder holds no bundle; a run has one once its training is over" if path.is_dir() else "nothing there"
        )
        raise ArtifactError(
            f"model.weights={path}: {fault}.",
            fix="give pretrained, none, or the path of a run folder, a bundle, a .safetensors or a .pth file.",
        )
    return _fill(classifier, read_tensors(path), WeightsOrigin(str(path), "", UNKNOWN_LICENCE, 0, ()))


def _fill(classifier: Classifier, state: dict[str, torch.Tensor], origin: WeightsOrigin) -> WeightsOrigin:
    own = classifier.net.state_dict()
    prefixes = ("", "net.", "model.", "module.", "_orig_mod.", "backbone.")
    prefix = max(prefixes, key=lambda p: sum(k.startswith(p) and k[len(p) :] in own for k in state))
    offered = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    fitting = {k: v for k, v in offered.items() if k in own and own[k].shape == v.shape}
    if not any(v.is_floating_point() for v in fitting.values()):
        raise ArtifactError(
            f"Nothing in {origin.source} fits {classifier.architecture.name}.",
            fix="choose the model.name that the weights were trained with.",
        )
    classifier.net.load_state_dict(fitting, strict=False)
    missing = tuple(k for k in own if k not in fitting)
    return WeightsOrigin(origin.source, origin.tag, origin.licence, len(fitting), missing)


def _pretrained_state(classifier: Classifier, name: str, facts: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    import timm

    tag = f"{facts.get('architecture', name)}.{facts['tag']}" if facts.get("tag") else name
    _check_at_hand(tag, facts)
    size = classifier.architecture.image_size
    kwargs = {"img_size": size} if facts.get("fixed_input_size") else {}
    try:
        net = timm.create_model(name, pretrained=True, num_classes=classifier.architecture.num_classes, **kwargs)
    except Exception as error:
        raise _not_at_hand(tag, facts, first_line(error)) from error
    head = set(_head_names(facts))
    state = net.state_dict()
    return {k: v for k, v in state.items() if k.rpartition(".")[0] not in head}, tag


def _head_names(facts: dict[str, Any]) -> tuple[str, ...]:
    names = facts.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def weights_cached(facts: dict[str, Any]) -> bool:
    """Whether the zoo's weights of this model are on this machine."""
    if facts.get("hf_hub_id"):
        from huggingface_hub import try_to_load_from_cache

        files = (
            [facts["hf_hub_filename"]] if facts.get("hf_hub_filename") else ["model.safetensors", "pytorch_model.bin"]
        )
        return any(isinstance(try_to_load_from_cache(facts["hf_hub_id"], file), str) for file in files)
    url = str(facts.get("url") or "")
    return bool(url) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name).is_file()


def _check_at_hand(tag: str, facts: dict[str, Any]) -> None:
    """Say at once, rather than after minutes of retries, that weights can be had neither here nor from the hub.

    Raises:
        ArtifactError: they are not cached and the hub does not answer, or the zoo has none.
    """
    if not (facts.get("hf_hub_id") or facts.get("url") or facts.get("file")):
        raise ArtifactError(
            f"timm's zoo has no pretrained weights for {tag}.",
            fix="train from a random start with --set model.weights=none, or choose another model.name.",
        )
    if weights_cached(facts):
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise _not_at_hand(tag, facts, "HF_HUB_OFFLINE is set")
    host = urlparse(os.environ.get("HF_ENDPOINT") or "https://huggingface.co") if facts.get("hf_hub_id") else None
    host = host or urlparse(str(facts["url"]))
    if _proxied():
        return
    if fault := _unreachable(host.hostname or "", host.port or 443):
        raise _not_at_hand(tag, facts, f"{host.hostname} cannot be reached: {fault}")


def _unreachable(host: str, port: int) -> str:
    """Why a host does not answer within `REACH_SECONDS`; empty where it does.

    In a thread, since a timeout of the socket holds for one address only, and not for looking up the name.
    """
    faults = [f"no answer within {REACH_SECONDS:g} seconds"]

    def reach() -> None:
        try:
            socket.create_connection((host, port), timeout=REACH_SECONDS).close()
            faults.clear()
        except (OSError, UnicodeError) as error:  # a name of letters that no host has is the latter
            faults[0] = str(error)

    thread = threading.Thread(target=reach, daemon=True, name="reach")
    thread.start()
    thread.join(REACH_SECONDS)
    return faults[0] if faults else ""


def _proxied() -> bool:
    return any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"))


def _not_at_hand(tag: str, facts: dict[str, Any], why: str) -> ArtifactError:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = HF_HUB_CACHE if facts.get("hf_hub_id") else Path(torch.hub.get_dir()) / "checkpoints"
    return ArtifactError(
        f"The pretrained weights of {tag} are not in the local cache ({folder}) and could not be downloaded ({why}).",
        fix="train from a random start with --set model.weights=none, give a file with --set model.weights=PATH, "
        f"or copy {folder} from a machine that has them.",
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
