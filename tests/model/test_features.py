import numpy as np
import pytest
import torch

from foveal.data.batches import Batch
from foveal.errors import ConfigError
from foveal.inference import predict_logits
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import HeadConfig
from foveal.model.features import pooled_features

CPU = torch.device("cpu")


def batches(*sizes: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=draw),
            torch.full((size,), -1),
            np.arange(size),
        )
        for size in sizes
    ]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_features_go_into_the_last_layer(name: str) -> None:
    """The last layer on the features gives the logits of the one inference path."""
    classifier = build(Architecture(name=name, num_classes=5, image_size=32, head=HeadConfig(dropout=0.5))).train()
    features = pooled_features(classifier, batches(3, 2), CPU)
    assert features.shape == (5, classifier.net.num_features)
    assert features.dtype == np.float32
    assert classifier.training
    logits = torch.cat([found for _, found in predict_logits(classifier, batches(3, 2), CPU)])
    with torch.inference_mode():
        again = classifier.net.get_classifier()(torch.from_numpy(features))
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


def test_no_images_give_no_features() -> None:
    classifier = build(Architecture(name="test_resnet", num_classes=5, image_size=32))
    assert pooled_features(classifier, [], CPU).shape == (0, classifier.net.num_features)


def test_a_network_without_features_is_refused() -> None:
    classifier = Classifier(Architecture(name="test_resnet", num_classes=5, image_size=32), torch.nn.Flatten())
    with pytest.raises(ConfigError, match="does not give the features"):
        pooled_features(classifier, batches(1), CPU)
