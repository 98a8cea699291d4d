"""Learning without forgetting: what a trained model says of the same pixels is kept while another learns.

The distance is the Kullback-Leibler divergence of the learner from the teacher over the teacher's classes, both logits
divided by a temperature T, times T squared, so that its gradient keeps its size whatever T is.

Source: Z. Li and D. Hoiem, "Learning without Forgetting", IEEE TPAMI 2017 (T = 2); G. Hinton, O. Vinyals and J. Dean,
"Distilling the Knowledge in a Neural Network", 2015 (the factor).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from foveal.errors import ConfigError
from foveal.model.bundle import Bundle, read_bundle
from foveal.training.config import DistillationConfig


class Teacher(nn.Module):
    """A trained classifier that is only asked; nothing of it is trained or written to a checkpoint.

    Args:
        classifier: pixels to logits of its own classes.
        places: int64 [its classes], where each of them stands among the learner's.
        weight: what the distance counts.
        temperature: of both softmaxes.
    """

    places: torch.Tensor

    def __init__(self, classifier: nn.Module, places: torch.Tensor, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.classifier = classifier.eval().requires_grad_(False)
        self.register_buffer("places", places, persistent=False)
        self.weight, self.temperature = weight, temperature

    @torch.no_grad()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the teacher says: float32 [n, its classes], logits.

        Args:
            pixels: float32 [n, 3, side, side], 0..1.
        """
        self.classifier.eval()
        logits: torch.Tensor = self.classifier(pixels)
        return logits.float()

    def distance(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """How far a learner's logits are from the teacher's, weighted: float32 [n].

        Args:
            logits: float32 [n, classes], the learner's; only the teacher's classes count.
            taught: float32 [n, its classes], what `forward` gave.
        """
        own = (logits.float()[:, self.places] / self.temperature).log_softmax(dim=1)
        kept = (taught / self.temperature).log_softmax(dim=1)
        divergence = functional.kl_div(own, kept, reduction="none", log_target=True).sum(dim=1)
        return self.weight * self.temperature**2 * divergence


def read_teacher(config: DistillationConfig, class_names: Sequence[str], *, image_size: int) -> Teacher | None:
    """The teacher that a configuration names, on the CPU; None where it names none.

    Args:
        config: which, and how much it counts.
        class_names: the learner's classes in order.
        image_size: side of the learner's square, in pixels.

    Raises:
        ArtifactError: there is no bundle, or it is damaged.
        ConfigError: as `check_teacher`.
    """
    if (bundle := check_teacher(config, class_names, image_size=image_size)) is None:
        return None
    place = {name: number for number, name in enumerate(class_names)}
    places = torch.tensor([place[name] for name in bundle.spec.class_names], dtype=torch.int64)
    # A network draws its start before its weights are read; nobody else's draws may depend on that.
    with torch.random.fork_rng(devices=[]):
        classifier = bundle.build()
    classifier = classifier.to(memory_format=torch.channels_last)
    return Teacher(classifier, places, weight=config.weight, temperature=config.temperature)


def check_teacher(config: DistillationConfig, class_names: Sequence[str], *, image_size: int) -> Bundle | None:
    """The bundle of the teacher, found to fit; None where none is wanted.

    Raises:
        ArtifactError: there is no bundle, or it is damaged, or an ensemble.
        ConfigError: it knows classes that the data does not have, or sees images of another size.
    """
    if config.teacher is None or not config.is_on:
        return None
    bundle = read_bundle(Path(config.teacher).expanduser())
    unknown = [name for name in bundle.spec.class_names if name not in class_names]
    problems = [f"class {name!r} is none of these data's" for name in unknown]
    if (side := bundle.spec.preprocessing.size_px) != image_size:
        problems.append(f"it sees squares of {side} px, and data.image_size is {image_size}")
    if problems:
        raise ConfigError(
            f"train.distillation.teacher={config.teacher} cannot teach this model.",
            problems=problems,
            fix="give a teacher whose classes are among the data's, and its data.image_size; or none.",
        )
    return bundle
