"""Mixing: labels that are the shares of what is seen, drawn from one generator."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional

from foveal.training.config import TrainConfig
from foveal.training.mixing import Mixing


def seen(num_images: int, *, height: int = 12, width: int = 17) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that are each all of its own number, and its number as the label."""
    labels = torch.arange(num_images)
    pixels = labels.view(-1, 1, 1, 1).expand(-1, 3, height, width).float()
    return pixels.contiguous(memory_format=torch.channels_last), labels


def mixing(num_classes: int, **options: float) -> Mixing:
    return Mixing(TrainConfig(**options), num_classes)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_images", [1, 2, 5, 8])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_the_shares_of_the_images_that_are_seen(kind: str, num_images: int) -> None:
    pixels, labels = seen(num_images)
    before = pixels.clone()
    mix = mixing(num_images, **{kind: 0.7})
    num_mixed = 0
    for seed in range(60):
        torch.manual_seed(seed)
        mixed, targets = mix(pixels, labels)
        assert targets.shape == (num_images, num_images)
        assert targets.dtype == torch.float32
        assert torch.equal(pixels, before)
        torch.testing.assert_close(targets.sum(1), torch.ones(num_images))
        # The mean over an image is what its classes' numbers give by their shares, be they blended or cut.
        torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ labels.float(), atol=1e-5, rtol=1e-5)
        assert num_images == 1 or mixed.is_contiguous(memory_format=torch.channels_last)
        if kind == "cutmix":
            for image, target in zip(mixed[:, 0], targets, strict=True):
                values, areas = image.unique(return_counts=True)
                torch.testing.assert_close(target[values.long()], areas / image.numel())
        num_mixed += bool((targets.max(1).values < 0.999).all())
    assert num_mixed > 30 or num_images == 1


def test_the_share_of_the_second_image_is_beta_distributed() -> None:
    pixels, labels = seen(2, height=1, width=1)
    mix = mixing(2, mixup=0.4)
    torch.manual_seed(1)
    shares = np.array([float(mix(pixels, labels)[1][0, 0]) for _ in range(800)])
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_of_two_kinds_each_batch_takes_one_and_of_the_batches_a_share_is_mixed() -> None:
    pixels, labels = seen(4)
    mix = mixing(4, mixup=5.0, cutmix=5.0, mixing_share=0.6)
    torch.manual_seed(2)
    kinds = []
    for _ in range(500):
        mixed, targets = mix(pixels, labels)
        if torch.equal(mixed, pixels):
            assert torch.equal(targets, functional.one_hot(labels).float())
            kinds.append("none")
        else:
            kinds.append("mixup" if all(len(image.unique()) == 1 for image in mixed) else "cutmix")
    shares = {kind: kinds.count(kind) / 500 for kind in ("none", "mixup", "cutmix")}
    assert shares == pytest.approx({"none": 0.4, "mixup": 0.3, "cutmix": 0.3}, abs=0.06)


@pytest.mark.parametrize("options", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_every_draw_comes_from_torchs_global_generator(options: dict[str, float]) -> None:
    pixels, labels = seen(6)
    mix = mixing(6, **options)

    def drawn(torch_seed: int, numpy_seed: int) -> list[torch.Tensor]:
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)
        return [tensor for _ in range(5) for tensor in mix(pixels, labels)]

    first, again, other = drawn(1, 1), drawn(1, 2), drawn(2, 1)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    mix(pixels, labels)
    assert np.random.rand() == expected, "numpy's generator is left alone"


def test_switched_off_it_draws_nothing_and_changes_nothing() -> None:
    pixels, labels = seen(5)
    mix = mixing(7)
    assert not mix.is_on
    assert mixing(7, cutmix=1.0).is_on
    before = torch.get_rng_state()
    mixed, targets = mix(pixels, labels)
    assert mixed is pixels
    assert torch.equal(targets, functional.one_hot(labels, 7).float())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type_and_exact_targets(dtype: torch.dtype) -> None:
    pixels, labels = seen(4)
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mix = mixing(4, **options)
        torch.manual_seed(3)
        mixed, targets = mix(pixels.to(dtype), labels)
        torch.manual_seed(3)
        assert torch.equal(targets, mix(pixels, labels)[1])
        assert mixed.dtype == dtype
        assert targets.dtype == torch.float32
