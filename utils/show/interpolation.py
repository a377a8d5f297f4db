"""Images made larger by classical interpolation, from samples that sit on even pixels, as a wavelet's do.

Methods that make images larger elsewhere put a sample in the middle of the pixels that come from it: half a
pixel, or more, from where the low pass of an odd number of taps has it.
"""

import torch


def _nearest(x):
    return ((x > -0.5) & (x <= 0.5)).to(x)


def _bicubic(x):
    """Cubic convolution with a = -1/2. Source: Keys (1981)."""
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _lanczos(x):
    return torch.where(x.abs() < RADIUS, torch.sinc(x) * torch.sinc(x / RADIUS), 0)


RADIUS = 3
KERNELS = {"nearest": _nearest, "bicubic": _bicubic, "Lanczos": _lanczos}


def interpolated(images, size, factor, method):
    """Images (..., h, w) -> (..., H, W) of the given size = (H, W), real-valued, in float64.

    Sample (i, j) is at pixel (factor i, factor j); beyond the last samples they are replicated.
    method: of KERNELS, along columns and along rows.
    """
    down, across = (
        _matrix(length, count, factor, KERNELS[method]).to(images.device)
        for length, count in zip(size, images.shape[-2:])
    )
    return down @ images.double() @ across.mT


def _matrix(length, count, factor, kernel):
    """What each of `length` pixels takes of `count` samples: (length, count), rows of sum 1."""
    places = torch.arange(length, dtype=torch.float64)[:, None] / factor
    samples = places.floor() + torch.arange(1 - RADIUS, 1 + RADIUS)
    weights = kernel(places - samples)
    weights /= weights.sum(1, keepdim=True)
    matrix = torch.zeros(length, count, dtype=torch.float64)
    return matrix.scatter_add_(1, samples.clamp(0, count - 1).long(), weights)
