"""The network of a bundle as ONNX: from finished squares to logits, before anything is added around it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from foveal.errors import ExportError
from foveal.exporting.class_activation import LinearHead, feature_map, find_linear_head
from foveal.extras import require
from foveal.model.build import Classifier
from foveal.model.bundle import Bundle

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""torch writes up to 23, which onnxruntime runs as fast and not faster: what came after 20 is Attention as an operator.
Other runtimes lag behind there, and 20 has the rest: Gelu, LayerNormalization, and all that quantisation needs."""
SQUARE = "square"
LOGITS = "logits"
ACTIVATION = "activation"
LARGEST_FILE_MIB = 1900
"""A file of ONNX holds at most 2 GiB with its weights inside, which is protobuf's limit; the rest is left for the
graph."""
_NOT_ASKED = "it was left out when the model was exported"
_PURPOSE = "export to ONNX"


@dataclass(frozen=True, eq=False)
class Core:
    """A network as ONNX.

    Attributes:
        model: input `square`, uint8 [batch, side, side, 3]; outputs `logits`, float32 [batch, classes], and with
            heatmap `activation`, float32 [batch, classes, h, w], whose mean over the places is the logit without bias.
        has_heatmap: whether there is an `activation`.
        heatmap_reason: why not; empty where there is.
    """

    model: "onnx.ModelProto"
    has_heatmap: bool
    heatmap_reason: str


def make_core(bundle: Bundle, *, with_heatmap: bool = True) -> Core:
    """Export the network of a bundle, its normalisation inside.

    Args:
        bundle: of one network.
        with_heatmap: give class activation maps too, where the network allows them.

    Raises:
        ArtifactError: the bundle is damaged.
        ExportError: the exporter cannot translate the network, or it is too large for one file.
        MissingExtraError: the export libraries are not installed.
    """
    require("onnx", extra="export", purpose=_PURPOSE)
    require("onnxscript", extra="export", purpose=_PURPOSE)
    classifier = bundle.build()
    _check_size(classifier)
    head = find_linear_head(classifier) if with_heatmap else _NOT_ASKED
    reason = head if isinstance(head, str) else ""
    prepare_for_tracing(classifier)
    graph = SquareToLogits(classifier, None if isinstance(head, str) else head).eval()
    outputs = [LOGITS] if reason else [LOGITS, ACTIVATION]
    side = bundle.spec.preprocessing.size_px
    model = _translated(graph, side, outputs, classifier.architecture.in_words)
    return Core(model, not reason, reason)


class SquareToLogits(nn.Module):
    """A classifier that takes squares as bytes.

    Args:
        classifier: becomes part of this: its mean and standard deviation are changed to those of 0..255, which spares
            one pass over the image.
        head: for the activation maps; None for logits alone.
        is_contiguous: bring the channels to the front in memory too. The exporter to ONNX needs that: it writes the
            strides of a permuted tensor out as gathers further down.
    """

    def __init__(self, classifier: Classifier, head: LinearHead | None = None, *, is_contiguous: bool = True) -> None:
        super().__init__()
        classifier.mean.mul_(255.0)
        classifier.std.mul_(255.0)
        self.classifier, self.is_contiguous = classifier, is_contiguous
        self.has_activation = head is not None
        weight = torch.empty(0) if head is None else head.weight[:, :, None, None]
        self.register_buffer("activation_weight", weight.clone())

    def forward(self, square: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Classify.

        Args:
            square: uint8 [n, side, side, 3].

        Returns:
            Logits, float32 [n, classes]; with activation maps, float32 [n, classes, h, w], where there is a head for
            them.
        """
        channels_first = square.permute(0, 3, 1, 2)
        pixels = (channels_first.contiguous() if self.is_contiguous else channels_first).float()
        classifier: Any = self.classifier
        if not self.has_activation:
            logits: torch.Tensor = classifier(pixels)
            return logits
        features = classifier.net.forward_features((pixels - classifier.mean) / classifier.std)
        row = classifier.net.forward_head(features, pre_logits=True).flatten(1)
        places = feature_map(classifier, features)
        if places is None:
            raise ExportError("The network has no feature map.", fix="export it without heatmap.")
        return classifier.classify(row), F.conv2d(places, self.activation_weight)  # type: ignore[arg-type]


class _Mean(nn.Module):
    """The mean over the places, float32 [n, c, h, w] to [n, c, 1, 1]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3), keepdim=True)


def prepare_for_tracing(classifier: Classifier) -> None:
    """Replace what traces badly by what computes the same, and let the network fill what it remembers.

    Args:
        classifier: in evaluation mode; changed in place.
    """
    for module in list(classifier.modules()):
        if isinstance(getattr(module, "fused_attn", None), bool):
            # The fused kernel gives strides that its parts do not, on which views fail in networks with positions
            # that are relative; and its parts scale queries and keys, where one of them would do.
            setattr(module, "fused_attn", False)  # noqa: B010 - modules declare no such attribute
        for name, child in module.named_children():
            # Adaptive pooling of a map with the channels last is written out as a gather.
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                module.add_module(name, _Mean())
    side = classifier.architecture.image_size
    with torch.no_grad():
        classifier(torch.zeros(2, 3, side, side))


def _check_size(classifier: nn.Module) -> None:
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in classifier.state_dict().values())
    if num_bytes > LARGEST_FILE_MIB * 2**20:
        raise ExportError(
            f"The network has {num_bytes / 2**20:,.0f} MiB of weights, and a file of ONNX holds at most "
            f"{LARGEST_FILE_MIB:,} MiB.",
            fix="export it with --to torchscript, or train a smaller model.",
        )


def _translated(graph: nn.Module, side: int, outputs: list[str], name: str) -> "onnx.ModelProto":
    """The exporter's work, checked.

    Raises:
        ExportError: it cannot be done.
    """
    import onnx
    from torch.onnx import OnnxExporterError

    # Two images: with one the exporter might take the size of the batch for a constant.
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    fix = "export it with --to torchscript, or train another model.name, such as resnet18."
    try:
        with _known_warnings():
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[SQUARE],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(f"torch {torch.__version__} cannot export {name} to ONNX: {cause}", fix=fix) from error
    if program is None:
        raise ExportError(f"torch {torch.__version__} exported nothing of {name}.", fix=fix)
    model = program.model_proto
    _strip(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"What torch {torch.__version__} made of {name} is no valid ONNX: {error}", fix=fix
        ) from error
    _check_batch(model, name, fix)
    return model


def _strip(model: Any) -> None:
    """Take out what the exporter notes for those who develop it: its own names, and paths of this machine."""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _check_batch(model: Any, name: str, fix: str) -> None:
    """Raises: ExportError: the number of images became a constant."""
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ExportError(f"{name} was exported for a fixed number of images: {value.name}.", fix=fix)


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Networks such as levit keep biases that they have reckoned out, which torch takes note of."""
    with warnings.catch_warnings():
        message = r"The tensor attributes? self\.\S+.* assigned during export"
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
        yield
