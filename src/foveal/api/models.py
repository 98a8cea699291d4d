"""`foveal models`: what the zoo offers, how large it is, under which licence, and what is at hand."""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foveal.data.cache import cache_folder
from foveal.errors import ConfigError
from foveal.files import natural_key, write_json
from foveal.progress import Progress, Silence

MOST_COUNTED_AT_ONCE = 100
"""Models that are built for their number of parameters; the whole zoo takes minutes."""


@dataclass(frozen=True)
class ModelInfo:
    """One entry of the zoo.

    Attributes:
        name: architecture, and the tag of its weights behind a dot.
        num_parameters: of the architecture, with the head of its default weights; None where it was not counted yet.
        image_size: side of the square it was trained on, in pixels.
        licence: of the weights, as the zoo says; "unknown" where it does not, empty without weights.
        cached: whether the weights are on this machine.
    """

    name: str
    num_parameters: int | None
    image_size: int
    licence: str
    cached: bool


@dataclass(frozen=True)
class ModelList(Sequence[ModelInfo]):
    """Entries of the zoo: architectures in natural order, and the tags of each."""

    entries: tuple[ModelInfo, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[index]

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"models": [asdict(entry) for entry in self.entries]}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(e.name)}</td><td>{shown_count(e.num_parameters)}</td><td>{e.image_size}</td>"
            f"<td>{html.escape(e.licence)}</td><td>{'yes' if e.cached else ''}</td></tr>"
            for e in self.entries
        )
        head = "<tr><th>model</th><th>parameters</th><th>px</th><th>licence of the weights</th><th>at hand</th></tr>"
        return f"<table>{head}{rows}</table>"


def shown_count(count: int | None) -> str:
    """A number of parameters for a table."""
    return "-" if count is None else f"{count:,}"


def models(pattern: str = "*", *, progress: Progress | None = None) -> ModelList:
    """List the zoo: timm's, torchvision's alexnet, and our small_cnn.

    Args:
        pattern: a glob over names, such as "convnext*"; tags may be part of it ("*in22k*").
        progress: where to show the counting of parameters, which is done once and then remembered.

    Raises:
        ConfigError: nothing matches.
    """
    from foveal.model.weights import UNKNOWN_LICENCE, weights_cached
    from foveal.model.zoo import list_names, pretrained_facts

    names = list_names(pattern)
    if not names:
        architectures = {name.partition(".")[0] for name in list_names("*")}
        near = " or ".join(get_close_matches(pattern, sorted(architectures)))
        raise ConfigError(
            f"No model matches {pattern!r}." + (f" Near: {near}." if near else ""),
            fix="try a wider pattern in quotes, such as '*net*'.",
        )
    progress = progress or Silence()
    counts = _parameter_counts({name.partition(".")[0] for name in names}, progress)
    entries = []
    for name in sorted(names, key=_by_architecture):
        facts = pretrained_facts(name)
        has_weights = bool(facts.get("hf_hub_id") or facts.get("url"))
        entries.append(
            ModelInfo(
                name=name,
                num_parameters=counts.get(name.partition(".")[0]),
                image_size=int(facts.get("input_size", (3, 0, 0))[1]),
                licence=str(facts.get("license") or UNKNOWN_LICENCE) if has_weights else "",
                cached=has_weights and weights_cached(facts),
            )
        )
    return ModelList(tuple(entries))


def _by_architecture(name: str) -> tuple[object, object]:
    """Sort key: architectures in natural order, and the tags of each."""
    architecture, _, tag = name.partition(".")
    return natural_key(architecture), natural_key(tag)


def _parameter_counts(architectures: set[str], progress: Progress) -> dict[str, int]:
    """Parameters of each architecture, counted on tensors without storage and remembered for this version of timm."""
    import torch

    from foveal.model.zoo import create_net

    file = cache_folder() / f"parameters-timm-{version('timm')}.json"
    known = _remembered(file)
    missing = sorted(architectures - known.keys())
    if len(missing) > MOST_COUNTED_AT_ONCE:
        progress.say(f"Parameters of {len(missing):,} models are not counted yet: a narrower pattern counts its own.")
    elif missing:
        try:
            with progress.bar("Counting parameters", len(missing), "models") as bar:
                for name in missing:
                    with torch.device("meta"):
                        net = create_net(name)
                    known[name] = sum(parameter.numel() for parameter in net.parameters())
                    bar.advance()
        finally:
            # Also after Ctrl-C: counting the whole zoo takes a while, and the next try goes on from here.
            write_json(file, known)
    return known


def _remembered(file: Path) -> dict[str, int]:
    """What was counted before; nothing where the file is missing or is not ours, for it is only a cache."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): int(count) for name, count in known.items()} if isinstance(known, dict) else {}
