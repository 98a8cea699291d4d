"""What becomes of the colours of a batch, each image by its own numbers.

All take and give float32 [n, 3, height, width], nominally 0..1; the caller clips. Numbers are float32 [n] on the CPU
unless said otherwise.
"""

import math

import torch
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, ITU-R BT.601, as Pillow has them (torchvision rounds red to 0.2989)."""
_OPENCV_KERNELS = {
    1: (1.0,),
    3: (0.25, 0.5, 0.25),
    5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
    7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125),
    9: (4 / 256, 13 / 256, 30 / 256, 51 / 256, 60 / 256, 51 / 256, 30 / 256, 13 / 256, 4 / 256),
}
"""What OpenCV's getGaussianKernel has for small kernels where no standard deviation is given."""


def lit(
    pixels: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    """Brightness, contrast about each image's mean grey, and saturation, as one matrix an image.

    Source: the definitions of torchvision's adjust_brightness, adjust_contrast and adjust_saturation.
    """
    luma = torch.tensor(LUMA)
    mix = saturation[:, None, None] * torch.eye(3) + (1.0 - saturation)[:, None, None] * luma.expand(3, 3)
    matrix = ((brightness * contrast)[:, None, None] * mix).to(pixels.device)
    mean_grey = pixels.mean(dim=(2, 3)) @ luma.to(pixels.device)
    offset = (brightness * (1.0 - contrast)).to(pixels.device) * mean_grey
    flat = torch.baddbmm(offset[:, None, None].expand(-1, 3, 1), matrix, pixels.flatten(2))
    return flat.view_as(pixels)


def scaled(pixels: torch.Tensor, factors: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Pixels times a factor plus an offset; both float32 [n] or [n, 3]."""
    shape = (len(pixels), -1, 1, 1)
    return torch.addcmul(offsets.view(shape).to(pixels.device), pixels, factors.view(shape).to(pixels.device))


def grey(pixels: torch.Tensor) -> torch.Tensor:
    """No colour, in three equal channels."""
    luma = torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * luma).sum(dim=1, keepdim=True).expand_as(pixels)


def hsv_shifted(pixels: torch.Tensor, hue: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Shift hue, in turns of the colour circle, and saturation and value, in shares of their range, which clip.

    As in OpenCV and albumentations a grey pixel has the hue of red, which shows where saturation is added.

    Source: A. R. Smith, "Color Gamut Transform Pairs", SIGGRAPH 1978; from HSV by the closed form for each channel.
    """
    by_image = [each.view(-1, 1, 1).to(pixels.device) for each in (hue, saturation, value)]
    red, green, blue = pixels.unbind(dim=1)
    most, least = pixels.amax(dim=1), pixels.amin(dim=1)
    spread = most - least
    divisor = spread.clamp(min=1e-8)
    of_red = (green - blue) / divisor
    of_green = (blue - red) / divisor + 2.0
    of_blue = (red - green) / divisor + 4.0
    # In sixths of the circle, from -1 to 5: the remainder below is taken once, with the shift.
    sixths = torch.where(most == red, of_red, torch.where(most == green, of_green, of_blue)) + 6.0 * by_image[0]
    new_saturation = (spread / most.clamp(min=1e-8) + by_image[1]).clamp_(0.0, 1.0)
    new_value = (most + by_image[2]).clamp_(0.0, 1.0)
    chroma = new_value * new_saturation
    result = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    for channel, start in enumerate((5.0, 3.0, 1.0)):
        place = torch.remainder(sixths + start, 6.0)
        share = torch.minimum(place, 4.0 - place).clamp_(0.0, 1.0)
        torch.addcmul(new_value, chroma, share, value=-1.0, out=result[:, channel])
    return result


def posterized(pixels: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep so many bits, int64 [n], of the eight of each channel."""
    step = (2 ** (8 - bits)).float().view(-1, 1, 1, 1).to(pixels.device)
    return torch.floor(torch.round(pixels * 255.0) / step) * (step / 255.0)


def solarized(pixels: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Invert what is at least as bright as a threshold, in 0..1."""
    return torch.where(pixels >= thresholds.view(-1, 1, 1, 1).to(pixels.device), 1.0 - pixels, pixels)


def sharpened(pixels: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Between smooth (0), as it is (1) and sharper; the outermost pixels stay.

    Source: Pillow's ImageEnhance.Sharpness.
    """
    num_images, channels, height, width = pixels.shape
    planes = num_images * channels
    kernel = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]], device=pixels.device) / 13.0
    flat = pixels.reshape(1, planes, height, width)
    # A channel of its own for each plane is many times faster on a CPU than a batch of three channels.
    smooth = functional.conv2d(flat, kernel.expand(planes, 1, 3, 3), groups=planes)
    result = pixels.clone()
    inner = result[:, :, 1:-1, 1:-1]
    inner.copy_(torch.lerp(smooth.view_as(inner), inner, factors.view(-1, 1, 1, 1).to(pixels.device)))
    return result


def autocontrasted(pixels: torch.Tensor) -> torch.Tensor:
    """Each channel from black to white. Source: Pillow's ImageOps.autocontrast, by torchvision."""
    from torchvision.transforms.v2 import functional as vision

    result: torch.Tensor = vision.autocontrast(pixels)
    return result


def equalized(pixels: torch.Tensor) -> torch.Tensor:
    """Each channel's histogram of 256 levels made even. Source: Pillow's ImageOps.equalize, by torchvision."""
    from torchvision.transforms.v2 import functional as vision

    result: torch.Tensor = vision.equalize((pixels * 255.0).round_().clamp_(0, 255).to(torch.uint8))
    return result.float().div_(255.0)


def gaussian_kernels(sides_px: torch.Tensor, sigmas_px: torch.Tensor | None) -> torch.Tensor:
    """Rows of weights float32 [n, longest side], the shorter ones with zeros on both sides.

    Args:
        sides_px: int64 [n], odd.
        sigmas_px: float32 [n]; not given, OpenCV's rule: its table up to 9, else 0.3 ((side - 1) / 2 - 1) + 0.8.
    """
    longest = int(sides_px.max())
    kernels = torch.zeros(len(sides_px), longest)
    for place, side in enumerate(sides_px.tolist()):
        if sigmas_px is None and side in _OPENCV_KERNELS:
            weights = torch.tensor(_OPENCV_KERNELS[side])
        else:
            sigma = 0.3 * ((side - 1) * 0.5 - 1.0) + 0.8 if sigmas_px is None else float(sigmas_px[place])
            distance = torch.arange(side) - side // 2
            weights = torch.tensor([math.exp(-0.5 * (each / sigma) ** 2) for each in distance.tolist()])
        start = (longest - side) // 2
        kernels[place, start : start + side] = weights / weights.sum()
    return kernels


def blurred(pixels: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Blur along both axes with each image's own kernel, float32 [n, odd]; the edge is reflected, as in OpenCV."""
    num_images, channels, height, width = pixels.shape
    length = kernels.shape[1]
    reach = length // 2
    weights = kernels.to(pixels.device).repeat_interleave(channels, dim=0)
    planes = functional.pad(pixels, (reach, reach, reach, reach), mode="reflect").reshape(
        1, num_images * channels, -1, width + 2 * reach
    )
    planes = functional.conv2d(planes, weights.view(-1, 1, 1, length), groups=num_images * channels)
    planes = functional.conv2d(planes, weights.view(-1, 1, length, 1), groups=num_images * channels)
    return planes.view(num_images, channels, height, width)
