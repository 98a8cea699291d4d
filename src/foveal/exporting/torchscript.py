"""A bundle as one TorchScript module: squares as bytes in, calibrated probabilities out.

TorchScript and not `torch.export`, although torch no longer develops it: it is what `--to torchscript` names, and one
file of it is read by libtorch of every version, from C++ too, without foveal and timm. What `torch.export` writes is
tied to the version of torch, and needs Python or a compiled package. Who starts anew is better served by ONNX.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from foveal.errors import ExportError
from foveal.exporting.cores import SquareToLogits, prepare_for_tracing
from foveal.exporting.describing import architecture_of, looks_of, networks_of
from foveal.model.bundle import Bundle, EnsembleBundle
from foveal.model.voting import LEAST_PROBABILITY

_TOLERANCE = 1e-4
_NUM_TRACED, _NUM_OTHER = 2, 3
"""Numbers of images: to trace with, and to see that the first did not become a constant."""


def make_torchscript(bundle: Bundle | EnsembleBundle) -> bytes:
    """The file of a module that gives the bundle's probabilities, frozen.

    The module takes one tensor for each look, in the order of `looks_of`: uint8 [n, side, side, 3], the finished
    square. It gives float32 [n, classes], what `foveal predict` gives, for any n.

    Args:
        bundle: of one network, or an ensemble, which votes inside.

    Raises:
        ArtifactError: the bundle is damaged.
        ExportError: a network cannot be traced, or what was traced says something else.
    """
    looks = looks_of(networks_of(bundle))
    module = _Voting(bundle).eval() if isinstance(bundle, EnsembleBundle) else _Network(bundle).eval()
    script = _traced(module, [look.size_px for look in looks], architecture_of(bundle))
    stream = io.BytesIO()
    jit: Any = torch.jit
    with _known_warnings():
        jit.save(script, stream)
    return stream.getvalue()


class _Network(nn.Module):
    """One network, from the bytes of a square to its own calibrated probabilities."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        classifier = bundle.build()
        prepare_for_tracing(classifier)
        # A square has its channels last already, which is the faster layout in torch; so the weights follow it.
        self.network = SquareToLogits(classifier, is_contiguous=False).to(memory_format=torch.channels_last)
        self.temperature = bundle.spec.temperature

    def forward(self, square: torch.Tensor) -> torch.Tensor:
        """uint8 [n, side, side, 3] to probabilities, float32 [n, classes]."""
        return torch.softmax(self.network(square).double() / self.temperature, dim=1).float()


class _Voting(nn.Module):
    """An ensemble; see `foveal.model.voting.voted`, which does the same on arrays."""

    weights: torch.Tensor

    def __init__(self, bundle: EnsembleBundle) -> None:
        super().__init__()
        looks = looks_of(bundle.members)
        places = {(look.geometry(), look.policy()): place for place, look in enumerate(looks)}
        seen = [member.spec.preprocessing for member in bundle.members]
        self.places = [places[look.geometry(), look.policy()] for look in seen]
        self.members = nn.ModuleList(_Network(member) for member in bundle.members)
        self.vote, self.temperature = bundle.spec.vote, bundle.spec.temperature
        shares = [member.weight for member in bundle.spec.members]
        if self.vote != "weighted":
            shares = [1.0 / len(shares)] * len(shares)
        self.register_buffer("weights", torch.tensor(shares, dtype=torch.float64)[:, None, None])

    def forward(self, *squares: torch.Tensor) -> torch.Tensor:
        """A tensor for each look, uint8 [n, side, side, 3], to probabilities, float32 [n, classes]."""
        said = [member(squares[place]) for member, place in zip(self.members, self.places, strict=True)]
        stacked = torch.stack(said).double()
        mixed = (stacked * self.weights).sum(dim=0)
        if self.vote == "majority":
            places = torch.arange(stacked.shape[2], device=stacked.device)
            votes = (stacked.argmax(dim=2, keepdim=True) == places).double().sum(dim=0)
            mixed = (votes + mixed) / (len(said) + 1)
        return torch.softmax(mixed.clamp(min=LEAST_PROBABILITY).log() / self.temperature, dim=1).float()


def _traced(module: nn.Module, sides: Sequence[int], name: str) -> Any:
    """The module as TorchScript, frozen, and checked with another number of images.

    Raises:
        ExportError: it cannot be traced, or says something else.
    """
    fix = "export it with --to onnx, or train another model.name, such as resnet18."
    jit: Any = torch.jit
    try:
        with torch.no_grad(), _known_warnings():
            script = jit.freeze(jit.trace(module, tuple(_noise(sides, _NUM_TRACED)), check_trace=False))
            squares = _noise(sides, _NUM_OTHER)
            expected, found = module(*squares), script(*squares)
    except RuntimeError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ExportError(f"torch {torch.__version__} cannot trace {name}: {reason}", fix=fix) from error
    difference = float((expected - found).abs().max()) if found.shape == expected.shape else float("inf")
    if not difference <= _TOLERANCE:
        raise ExportError(
            f"What torch {torch.__version__} traced of {name} is not the network: probabilities differ by "
            f"{difference:.2g}, and at most {_TOLERANCE:g} was expected.",
            fix=fix,
        )
    return script


def _noise(sides: Sequence[int], num_images: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_images)
    shapes = [(num_images, side, side, 3) for side in sides]
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Two of torch's: that it no longer develops TorchScript, and that a traced network asks a tensor for a number.

    The second may mean that the number became a constant, which is what `_traced` checks.
    """
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", category=jit.TracerWarning)
        yield
