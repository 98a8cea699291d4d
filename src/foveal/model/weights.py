"""Weights to start from: the zoo's, none, or a file of one's own; never by running what a file brings along."""

import os
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from foveal.errors import ArtifactError
from foveal.model.build import Classifier
from foveal.model.config import Names, each_name
from foveal.model.heads import ComposedNet
from foveal.model.joint import JointNet
from foveal.model.tensors import first_line, read_tensors
from foveal.model.zoo import create_net, library_of, pretrained_facts

UNKNOWN_LICENCE = "unknown"
FROM_RANDOM = "none: trained from a random start"
"""In place of a licence."""
REACH_SECONDS = 4.0
_PREFIXES = ("net.", "model.", "module.", "_orig_mod.", "classifier.net.")
"""What other programs, and our own checkpoints of a whole classifier, put before every name."""
_BACKBONE = "backbone."
_AUXILIARY = "AuxLogits."


@dataclass(frozen=True)
class WeightsOrigin:
    """Where weights came from, as a bundle records it.

    Attributes:
        source: "pretrained", "none" or the path of the file.
        tag: the zoo's name of the weights, such as resnet18.a1_in1k; empty otherwise.
        licence: what the zoo or the bundle says; the licence of weights is not that of the code.
        num_loaded: tensors that were taken over.
        not_loaded: names of the model's tensors that kept their random start, such as a head of other classes.
        left_over: names of the source's tensors that found no place in the model.
        note: what else is to be said, as that the source's classes are others.
    """

    source: str
    tag: str
    licence: str
    num_loaded: int
    not_loaded: tuple[str, ...]
    left_over: tuple[str, ...] = ()
    note: str = ""

    def sentence(self) -> str:
        """What happened, for a person."""
        if self.source == "none":
            return "Weights: random start (model.weights=none)."
        told = ""
        if self.not_loaded:
            told += f", {len(self.not_loaded)} kept their random start ({_some(self.not_loaded)})"
        if self.left_over:
            told += f", {len(self.left_over)} of the source found no place ({_some(self.left_over)})"
        note = f" {self.note}" if self.note else ""
        return (
            f"Weights: {self.num_loaded} tensors from {self.tag or self.source}{told}.{note} Licence: {self.licence}."
        )


def load_weights(
    classifier: Classifier, name: Names, weights: Names, *, class_names: Sequence[str] | None = None
) -> WeightsOrigin:
    """Fill a fresh classifier.

    Args:
        classifier: the model to fill, in place.
        name: the zoo's name, with its tag if one was asked for; several, where several backbones have one head.
        weights: "pretrained", "none", or a path to a run, a bundle, a .safetensors or a .pth/.pt/.ckpt of tensors; for
            several backbones one for all, or one for each.
        class_names: the model's classes in order; a bundle's last layer is taken over only where its classes are the
            same in the same order, or grown where all of them are among these.

    Raises:
        ArtifactError: the weights are not at hand, are damaged, hold more than tensors, or fit nowhere.
    """
    if weights == "none":
        return WeightsOrigin("none", "", FROM_RANDOM, 0, ())
    if isinstance(classifier.net, JointNet) and (weights == "pretrained" or not isinstance(weights, str)):
        starts = (weights,) * len(each_name(name)) if isinstance(weights, str) else weights
        return _fill_branches(classifier, classifier.net, each_name(name), starts)
    (weights,) = each_name(weights)
    if weights == "pretrained":
        (name,) = each_name(name)
        facts = pretrained_facts(name)
        state, tag = _pretrained_state(classifier, name, facts)
        licence = str(facts.get("license") or UNKNOWN_LICENCE)
        return _fill(classifier, state, WeightsOrigin("pretrained", tag, licence, 0, ()))
    return load_own(classifier, Path(weights).expanduser(), class_names=class_names)


def _fill_branches(classifier: Classifier, net: JointNet, names: Sequence[str], starts: Sequence[str]) -> WeightsOrigin:
    """Fill each backbone of a joint network from what is its own; the head keeps its random start."""
    if set(starts) == {"none"}:
        return WeightsOrigin("none", "", FROM_RANDOM, 0, ())
    origins: list[WeightsOrigin] = []
    for name, start, (prefix, branch) in zip(names, starts, net.named_branches(), strict=True):
        if start == "none":
            missing = tuple(prefix + key for key in branch.state_dict())
            origins.append(WeightsOrigin("none", "", FROM_RANDOM, 0, missing))
            continue
        # A classifier of that branch alone, whose tensors are the joint one's.
        architecture = classifier.architecture.model_copy(
            update={"name": name.partition(".")[0], "further_normalisations": ()}
        )
        own = load_weights(Classifier(architecture, branch), name, start)
        origins.append(replace(own, not_loaded=tuple(prefix + key for key in own.not_loaded)))
    head = tuple(f"head.{key}" for key in net.head.state_dict())
    return WeightsOrigin(
        source=" + ".join(dict.fromkeys(origin.source for origin in origins)),
        tag=" + ".join(origin.tag or origin.source for origin in origins) if any(o.tag for o in origins) else "",
        licence=" + ".join(dict.fromkeys(origin.licence for origin in origins)),
        num_loaded=sum(origin.num_loaded for origin in origins),
        not_loaded=(*(key for origin in origins for key in origin.not_loaded), *head),
        left_over=tuple(key for origin in origins for key in origin.left_over),
        note=" ".join(dict.fromkeys(origin.note for origin in origins if origin.note)),
    )


def load_own(classifier: Classifier, path: Path, *, class_names: Sequence[str] | None = None) -> WeightsOrigin:
    """Fill a classifier from a file or folder of one's own; layers of another shape keep their random start.

    Raises:
        ArtifactError: see `load_weights`.
    """
    from foveal.model.bundle import is_bundle, read_bundle

    if is_bundle(path):
        bundle = read_bundle(path)
        others = class_names is not None and tuple(class_names) != bundle.spec.class_names
        state, origin = (
            bundle.state(),
            WeightsOrigin(str(path), bundle.spec.weights.tag, bundle.spec.weights.licence, 0, ()),
        )
        if class_names is not None and (grown := _grown(classifier, state, bundle.spec.class_names, class_names)):
            num_old = len(bundle.spec.class_names)
            num_new = len(class_names) - num_old
            note = (
                f"Its {num_old} classes are among these {len(class_names)}: their rows of the last layer are kept, and "
                + ("1 new one starts small." if num_new == 1 else f"{num_new} new ones start small.")
            )
            return _fill(classifier, state | grown, replace(origin, note=note))
        note = "Its classes are not these in this order, so the last layer starts anew." if others else ""
        return _fill(classifier, state, replace(origin, note=note), fresh_classes=others)
    if not path.is_file():
        fault = (
            "the folder holds no bundle; a run has one once its training is over" if path.is_dir() else "nothing there"
        )
        raise ArtifactError(
            f"model.weights={path}: {fault}.",
            fix="give pretrained, none, or the path of a run folder, a bundle, a .safetensors or a .pth file.",
        )
    origin = _fill(classifier, read_tensors(path), WeightsOrigin(str(path), "", UNKNOWN_LICENCE, 0, ()))
    if class_names is not None and not classifier.class_tensors() & set(origin.not_loaded):
        note = "A file names no classes: its last layer was taken over as if they were these, in this order."
        return replace(origin, note=note)
    return origin


def _grown(
    classifier: Classifier, state: dict[str, torch.Tensor], old_names: Sequence[str], class_names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The last layer of a bundle with rows for further classes; empty where it cannot be grown."""
    from foveal.model.grow import can_grow, grown_tensors

    return grown_tensors(classifier, state, old_names, class_names) if can_grow(old_names, class_names) else {}


def _fill(
    classifier: Classifier, state: dict[str, torch.Tensor], origin: WeightsOrigin, *, fresh_classes: bool = False
) -> WeightsOrigin:
    """Take over what fits by name and shape, whatever stands before the names on either side."""
    own = classifier.net.state_dict()
    places = _places(state, own, is_composed=isinstance(classifier.net, ComposedNet))
    kept_out = classifier.class_tensors() if fresh_classes else frozenset()
    fitting = {
        place: state[key]
        for key, place in places.items()
        if place not in kept_out and state[key].shape == own[place].shape
    }
    if not any(tensor.is_floating_point() for tensor in fitting.values()):
        raise ArtifactError(
            f"Nothing in {origin.source} fits {classifier.architecture.in_words}.",
            fix="choose the model.name that the weights were trained with"
            + (", or give a list with weights for each backbone." if isinstance(classifier.net, JointNet) else "."),
        )
    classifier.net.load_state_dict(fitting, strict=False)
    missing = tuple(key for key in own if key not in fitting)
    # Sorted, for a file of safetensors names them in another order every time.
    left_over = tuple(sorted(key for key in state if places.get(key) not in fitting))
    return replace(origin, num_loaded=len(fitting), not_loaded=missing, left_over=left_over)


def _places(state: Iterable[str], own: Mapping[str, object], *, is_composed: bool) -> dict[str, str]:
    """The model's name for each of the source's tensors that has one: whichever way of naming finds most of them.

    Files of other programs put a word before every name. A network with a head of its own calls its backbone's tensors
    `backbone.*`, and the bare network does not; `head.*` of the one is never `head.*` of the other.
    """
    found: list[dict[str, str]] = []
    for prefix in ("", *_PREFIXES):
        bare = {key: key[len(prefix) :] for key in state if key.startswith(prefix)}
        found.append({key: name for key, name in bare.items() if name in own})
        if is_composed:
            found.append({key: f"{_BACKBONE}{name}" for key, name in bare.items() if f"{_BACKBONE}{name}" in own})
        else:
            inside = {key: name[len(_BACKBONE) :] for key, name in bare.items() if name.startswith(_BACKBONE)}
            found.append({key: name for key, name in inside.items() if name in own})
    return max(found, key=len)


def _pretrained_state(classifier: Classifier, name: str, facts: dict[str, Any]) -> tuple[dict[str, torch.Tensor], str]:
    tag = f"{facts.get('architecture', name)}.{facts['tag']}" if facts.get("tag") else name
    _check_at_hand(tag, facts)
    try:
        if library_of(name) == "timm":
            architecture = classifier.architecture
            # Of Inception's sets of weights only torchvision's holds the auxiliary head as well.
            has_auxiliary = classifier.auxiliary is not None and facts.get("tag") == "tv_in1k"
            net = create_net(
                name,
                num_classes=architecture.num_classes,
                image_size=architecture.image_size,
                pretrained=True,
                **({"aux_logits": True} if has_auxiliary else {}),
            )
            state = net.state_dict()
            _fill_auxiliary(classifier, state)
        else:
            state = torch.hub.load_state_dict_from_url(facts["url"], progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise _not_at_hand(tag, facts, first_line(error)) from error
    head = set(_head_names(facts))
    return {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] not in head}, tag


def _fill_auxiliary(classifier: Classifier, state: dict[str, torch.Tensor]) -> None:
    """Move the auxiliary head's tensors, but for those of its classes, from `state` into the classifier."""
    for key in [key for key in state if key.startswith(_AUXILIARY)]:
        tensor, name = state.pop(key), key.removeprefix(_AUXILIARY)
        if classifier.auxiliary is not None and not name.startswith("fc."):
            classifier.auxiliary.load_state_dict({name: tensor}, strict=False)


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
            f"There are no pretrained weights for {tag}.",
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
