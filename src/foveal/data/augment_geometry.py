"""Where the pixels of a batch go, each image by its own numbers.

A map leads from the result's places to the source's. Places are counted in half sides from the middle, -1 to 1, x to
the right and y downwards, as `grid_sample` has them; images are square.
"""

import torch
from torch.nn import functional

from foveal.data.augment_config import Fill

PADDING = {"reflect": "reflection", "edge": "border", "black": "zeros", "grey": "zeros"}


def turned(degrees: torch.Tensor) -> torch.Tensor:
    """Affine maps float32 [n, 3, 3] that turn the picture anticlockwise about its middle; degrees float32 [n]."""
    angle = degrees * (torch.pi / 180.0)
    cosine, sine, nothing = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    return _matrices(cosine, -sine, nothing, sine, cosine, nothing)


def zoomed(factor_x: torch.Tensor, factor_y: torch.Tensor) -> torch.Tensor:
    """Affine maps float32 [n, 3, 3] that enlarge the picture about its middle by factors, float32 [n]."""
    nothing = torch.zeros_like(factor_x)
    return _matrices(1.0 / factor_x, nothing, nothing, nothing, 1.0 / factor_y, nothing)


def shifted(right: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Affine maps float32 [n, 3, 3] that move the picture by shares of its side, float32 [n]."""
    one, nothing = torch.ones_like(right), torch.zeros_like(right)
    return _matrices(one, nothing, -2.0 * right, nothing, one, -2.0 * down)


def sheared(along_x: torch.Tensor, along_y: torch.Tensor, *, corner: bool = False) -> torch.Tensor:
    """Affine maps float32 [n, 3, 3] that slant the picture by tangents, float32 [n].

    Args:
        along_x: how far a row moves for each row further down.
        along_y: how far a column moves for each column further right.
        corner: whether the upper left corner stays, as in Pillow, or the middle.
    """
    one, nothing = torch.ones_like(along_x), torch.zeros_like(along_x)
    rest_x, rest_y = (along_x, along_y) if corner else (nothing, nothing)
    return _matrices(one, along_x, rest_x, along_y, one, rest_y)


def _matrices(*entries: torch.Tensor) -> torch.Tensor:
    """The first two rows, entry by entry, above the row 0 0 1."""
    nothing, one = torch.zeros_like(entries[0]), torch.ones_like(entries[0])
    return torch.stack([*entries, nothing, nothing, one], dim=1).view(-1, 3, 3)


def warped(pixels: torch.Tensor, matrices: torch.Tensor, fill: Fill) -> torch.Tensor:
    """Resample each image by its affine map.

    Args:
        pixels: float32 [n, 3, side, side], 0..1.
        matrices: float32 [n, 3, 3], on any device.
        fill: what stands beyond the edge.
    """
    theta = matrices[:, :2].to(pixels.device)
    return resampled(pixels, functional.affine_grid(theta, list(pixels.shape), align_corners=False), fill)


def resampled(pixels: torch.Tensor, grid: torch.Tensor, fill: Fill) -> torch.Tensor:
    """Look every place of float32 [n, side, side, 2] up in its image, between pixels linearly."""
    level = 0.5 if fill == "grey" else 0.0
    source = (pixels - level if level else pixels).contiguous()
    found = functional.grid_sample(source, grid, mode="bilinear", padding_mode=PADDING[fill], align_corners=False)
    return found.add_(level) if level else found


def grid_distorted(pixels: torch.Tensor, widths: torch.Tensor, heights: torch.Tensor, fill: Fill) -> torch.Tensor:
    """Stretch and squeeze the columns and rows of a grid, so that together they fill the image again.

    Args:
        pixels: float32 [n, 3, side, side], 0..1.
        widths: float32 [n, num_steps], above 0; how much of the source each column shows, before they are normalised.
        heights: float32 [n, num_steps], the same of rows.
        fill: unused but for rounding at the edge.
    """
    side = pixels.shape[3]
    x, y = (_piecewise(each, side).to(pixels.device) for each in (widths, heights))
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=3)
    return resampled(pixels, grid, fill)


def _piecewise(widths: torch.Tensor, side: int) -> torch.Tensor:
    """Places float32 [n, side] in -1..1 of a line whose equal steps are stretched to `widths`, float32 [n, steps]."""
    num_steps = widths.shape[1]
    knots = functional.pad(torch.cumsum(widths / widths.sum(dim=1, keepdim=True), dim=1), (1, 0))
    places = (torch.arange(side) + 0.5) * (num_steps / side)
    step = places.long().clamp(max=num_steps - 1)
    part = places - step
    return 2.0 * (knots[:, step] * (1.0 - part) + knots[:, step + 1] * part) - 1.0


def elastically(
    pixels: torch.Tensor, noise: torch.Tensor, distance: float, smoothness: float, fill: Fill
) -> torch.Tensor:
    """Move every place by smooth noise.

    Source: P. Simard et al., "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis",
    ICDAR 2003.

    Args:
        pixels: float32 [n, 3, side, side], 0..1.
        noise: float32 [n, 2, side, side], normal draws.
        distance: root mean square of the movement along each axis, as a share of the side.
        smoothness: standard deviation of the Gaussian, as a share of the side.
        fill: what stands beyond the edge.
    """
    side = pixels.shape[3]
    smooth = _smoothing(side, smoothness * side).to(pixels.device)
    moves = (2.0 * distance) * (smooth @ noise.to(pixels.device) @ smooth.T).permute(0, 2, 3, 1)
    still = functional.affine_grid(torch.eye(2, 3)[None], [1, 3, side, side], align_corners=False)
    return resampled(pixels, still.to(pixels.device) + moves, fill)


def _smoothing(side: int, sigma_px: float) -> torch.Tensor:
    """A Gaussian as float32 [side, side], each row scaled so that unit noise keeps its variance, at the edge too."""
    places = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma_px) ** 2)
    return weights / weights.square().sum(dim=1, keepdim=True).sqrt()


def quarter_turned(pixels: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Turn each image by 90 degrees anticlockwise so many times: int64 [n], 0 to 3."""
    result = pixels.clone()
    for count in (1, 2, 3):
        chosen = torch.nonzero(times == count)[:, 0].to(pixels.device)
        if len(chosen):
            result[chosen] = torch.rot90(pixels[chosen], count, (2, 3))
    return result


def erased(pixels: torch.Tensor, areas: torch.Tensor, ratios: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Put a black rectangle into each image.

    Source: Z. Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.

    Args:
        pixels: float32 [n, 3, side, side].
        areas: float32 [n], of the rectangle, as a share of the image's.
        ratios: float32 [n], height over width; a rectangle that is too long becomes a band of that area.
        places: float32 [n, 2], 0..1, where in what it leaves free it lies: from the left, from above.
    """
    side = pixels.shape[3]
    height = (areas * ratios).sqrt().clamp(max=1.0)
    width = (areas / height).clamp(max=1.0)
    height = (areas / width).clamp(max=1.0)
    masks = []
    for length, place in ((height, places[:, 1]), (width, places[:, 0])):
        long_px = (length * side).round().clamp(1, side)
        start = (place * (side - long_px)).round()
        along = torch.arange(side)
        masks.append((along >= start[:, None]) & (along < (start + long_px)[:, None]))
    is_erased = masks[0][:, None, :, None] & masks[1][:, None, None, :]
    return pixels.masked_fill(is_erased.to(pixels.device), 0.0)
