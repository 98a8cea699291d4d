"""Networks that were taught, in a second or two, that red and green squares are two classes, wherever they lie."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from foveal.model.build import Architecture, Classifier, build

SIDE_PX, OBJECT_PX = 64, 20
STEPS = {"small_cnn": 30, "test_resnet": 40, "test_vit": 60}


def coloured_square(
    rng: np.random.Generator, colour: int, height: int = SIDE_PX, width: int = SIDE_PX
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """A grey noisy picture with one square, red (0) or green (1), and where its upper left corner lies (x, y)."""
    grey = rng.integers(60, 130, (height, width, 1), dtype=np.uint8)
    picture = np.repeat(grey, 3, axis=2)
    x, y = int(rng.integers(0, width - OBJECT_PX)), int(rng.integers(0, height - OBJECT_PX))
    picture[y : y + OBJECT_PX, x : x + OBJECT_PX] = (20, 20, 20)
    picture[y : y + OBJECT_PX, x : x + OBJECT_PX, colour] = 230
    return picture, (x, y)


def taught(name: str, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    classifier = build(Architecture(name=name, num_classes=2, image_size=SIDE_PX))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
    classifier.train()
    for _ in range(STEPS[name]):
        labels = rng.integers(0, 2, 16)
        batch = np.stack([coloured_square(rng, int(label))[0] for label in labels])
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255.0
        loss = F.cross_entropy(classifier(pixels), torch.from_numpy(labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return classifier.eval()
