"""What a wavelet does to pictures: bands and their entropy, low-pass and high-pass images, filters.

Learned and classical wavelets are models alike here, so that every function takes either.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import correlate1d
from torch import nn

from flow.lifting import classical
from flow.model import NeuralWavelet
from flow.pyramid import finest
from source.distribution import drawing
from source.prior import SimplePrior, TopPrior, part_of, parts_in_turn
from utils.arithmetic.integers import MIDDLE, centre
from utils.arithmetic.polyphase import depth, level_sizes
from utils.show.quality import psnr

TITLES = {"learned": "learned", "legall": "LeGall 5/3", "haar": "Haar", "cdf97": "CDF 9/7"}
COLOURS = {"learned": "tab:red", "legall": "tab:blue", "haar": "tab:green", "cdf97": "tab:purple"}

# Taps 0, 1, ... of low-pass and high-pass filters, of which those of negative index are mirror images; gain 1
# at frequency 0 and 2 at pi. Source: ITU-T T.800, annex F; Cohen, Daubechies and Feauveau (1992).
FILTERS = {
    "legall": ((3 / 4, 1 / 4, -1 / 8), (1, -1 / 2)),
    "cdf97": (
        (0.602949018236360, 0.266864118442875, -0.078223266528990, -0.016864118442875, 0.026748757410810),
        (1.115087052456994, -0.591271763114247, -0.057543526228500, 0.091271763114250),
    ),
}


def classical_model(wavelet, ycocg=False):
    """The fixed wavelet "haar" or "legall" as a NeuralWavelet in float64 whose prior's means are 0."""
    detail = SimplePrior()
    nn.init.constant_(detail.mean, centre(0.0))
    model = NeuralWavelet(classical(wavelet), TopPrior(1), detail, ycocg)
    return model.double().requires_grad_(False).eval()


def check_levels(name, levels, image):
    """Raise ValueError unless an image (..., H, W) has so many levels; name: of the option."""
    height, width = image.shape[-2:]
    if not 1 <= levels <= depth(height, width):
        raise ValueError(f"-{name} {levels}: a {width}x{height} picture has {depth(height, width)} levels")


@torch.no_grad()
def pyramid(model, images, levels):
    """Images (B, 3, H, W) -> coarse band, details, details minus the prior's means; finest level first.

    Each detail is (ur, dl, dr), integer-valued, in the colours that the pyramid sees.
    """
    coarse, details, residuals = model.from_images(images), [], []
    analysis = model.pyramid.analyse(coarse, levels)
    for level, coarse, detail in analysis:
        details.append(detail)
        residuals.append(tuple(map(torch.empty_like, detail)))
        for part, given, values in parts_in_turn(model.detail, coarse, level, detail):
            part_of(residuals[-1], part).copy_(values - given.mode())
    return coarse, details, residuals


def mosaic(coarse, details):
    """The bands side by side as one image: coarse top left, ur right of it, dl below, dr in the corner."""
    for ur, dl, dr in reversed(details):
        coarse = torch.cat([torch.cat([coarse, ur], -1), torch.cat([dl, dr], -1)], -2)
    return coarse


def entropy(band):
    """Bits per coefficient under the histograms of the channels of an integer-valued band (B, C, H, W)."""
    bits = 0.0
    for channel in band.unbind(1):
        counts = channel.unique(return_counts=True)[1].double()
        bits += (counts * torch.log2(channel.numel() / counts)).sum().item()
    return bits / max(band.numel(), 1)


@torch.no_grad()
def low_and_high(model, images, levels):
    """Images (B, 3, H, W) -> low-pass images, high-pass images about 0; real tones, not clipped.

    Low: the details of the finest levels replaced by the prior's means. High: what those details, less the
    means, add to an even grey in place of the coarse band, which is "zeroed" at the middle of its range,
    where the networks read 0. Without the means, as learned details need not be differences: with them, they
    may hold most of the picture.
    """
    coarse, _, residuals = pyramid(model, images, levels)
    grey, sizes = torch.full_like(coarse, MIDDLE), level_sizes(*images.shape[-2:], levels)
    low, plain = (finest(model.synthesise(x, sizes, drawing())) for x in (coarse, grey))
    rich = _with_residuals(model, grey, sizes, residuals)
    return model.to_images(low), model.to_images(rich) - model.to_images(plain)


def _with_residuals(model, coarse, sizes, residuals):
    """Undo `pyramid`: a coarse band and details that are the prior's means plus residuals, as one band."""
    heights = [height for height, _ in sizes[1:]]
    parts = (
        part_of(bands, part)
        for bands, height in zip(reversed(residuals), reversed(heights))
        for part in model.detail.parts(height)
    )
    return finest(model.synthesise(coarse, sizes, lambda given: given.mode() + next(parts)))


def spectrum(image):
    """log(|FFT| + 1) of the mean of an image's channels (C, H, W), less its mean, under a Hann window.

    Returns values (H, W) and their frequencies fy (H, 1), fx (1, W) in cycles/pixel, in rising order: 0 is in
    the middle. The window has mean 1, so that it leaves noise and waves about as high as they are.
    """
    grey = image.double().mean(0)
    down, across = (torch.sin(torch.pi * (torch.arange(n).double() + 0.5) / n) ** 2 for n in grey.shape)
    window = down[:, None] * across
    transformed = torch.fft.fft2((grey - grey.mean()) * window / window.mean())
    fy, fx = (torch.fft.fftshift(torch.fft.fftfreq(n)) for n in grey.shape)
    return torch.fft.fftshift(transformed).abs().log1p(), fy[:, None], fx[None]


def in_blocks(values, fy, fx):
    """A spectrum and its frequencies as means over blocks, at most 64 along an axis: arrays of one shape."""
    planes = torch.stack([t.expand(values.shape).double() for t in (values, fy, fx)])
    return F.adaptive_avg_pool2d(planes, [min(n, 64) for n in values.shape]).numpy()


def radial(values, fy, fx):
    """Means of values (H, W) over rings of frequency, at most 64 of them: radii in 0 .. 1/2, means."""
    rings = max(min(max(values.shape) // 2, 64), 1)
    ring = (torch.hypot(fy, fx) * 2 * rings).long()
    inside = ring < rings
    count = torch.bincount(ring[inside], minlength=rings)
    total = torch.bincount(ring[inside], values[inside].double(), minlength=rings)
    return (torch.arange(rings) + 0.5) / (2 * rings), total / count


def common_limit(bands, fraction=0.99):
    """The absolute value within which this fraction of all values lies, at least 1: one range of grey."""
    values = torch.cat([band.abs().flatten() for band in bands])
    return max(values.kthvalue(max(int(fraction * len(values)), 1)).values.item(), 1.0)


def in_grey(tones, limit):
    """Tones about 0 as pixels: 0 is grey, -limit black, limit white."""
    return tones * ((MIDDLE - 1) / limit) + MIDDLE


def tones_of(model, details):
    """Details as tones in RGB, each band less its mean: where a transform only splits pixels, it has one."""
    tones = [[model.to_images(band + MIDDLE) - MIDDLE for band in detail] for detail in details]
    return [[band - band.mean((-2, -1), keepdim=True) for band in detail] for detail in tones]


def shown_pyramid(model, coarse, tones, limit):
    """A pyramid as one picture, (B, 3, H, W): the coarse band, and tones of details around grey."""
    return mosaic(model.to_images(coarse), [[in_grey(band, limit) for band in detail] for detail in tones])


def impulse_responses(level, images, places, down=False):
    """Jacobian of the middle row of [ul | ur] with respect to the images, first channel, at given columns.

    level: one level of a pyramid, of real-valued networks; images: what the pyramid sees, (B, C, H, W);
    places: columns n of the bands. down: columns for rows, and [ul / dl], the images turned accordingly.
    Returns low and high, (B, len(places), H, W): how ul[m, n] and ur[m, n] follow each pixel.
    Source: method 6, where the row is the first, and only its own pixels are varied.
    """
    first = images[:, :1].detach().requires_grad_()
    ul, (ur, dl, _) = level.split(torch.cat([first, images[:, 1:]], 1))
    low, high = (ul.mT, dl.mT) if down else (ul, ur)
    middle = low.shape[-2] // 2  # middle_row of pixels
    # images do not see each other: the gradient of their sum holds that of each
    rows = torch.cat([low[:, 0, middle, places], high[:, 0, middle, places]], 1).sum(0)
    (jacobian,) = torch.autograd.grad(rows, first, torch.diag(torch.ones_like(rows)), is_grads_batched=True)
    jacobian = jacobian[:, :, 0].transpose(0, 1)
    return (jacobian.mT if down else jacobian).split(len(places), 1)


def filters(level, images, places):
    """A level's filters in both directions: (direction, varied) -> low and high, taps (B * N, W) each.

    direction: across or down; varied: which pixels are, the row of the coefficients or whole columns, of
    images turned in that direction. Arguments as for impulse_responses.
    """
    taps = {}
    for direction in ("across", "down"):
        parts = [impulse_responses(level, part, places, direction == "down") for part in images.split(4)]
        sides = [torch.cat(side).cpu() for side in zip(*parts)]
        row = middle_row(sides[0].shape[2])
        taps[direction, "row"] = [side[:, :, row].flatten(0, 1) for side in sides]
        taps[direction, "columns"] = [side.sum(2).flatten(0, 1) for side in sides]
    return taps


def middle_row(height):
    """The row of pixels at which the middle row of coefficients is."""
    return 2 * ((height + 1) // 2 // 2)


def frequency_response(impulses, omega):
    """|H(e^iw)| = |sum_n h[n] e^-iwn| of impulse responses (..., N) at frequencies (F,): (..., F)."""
    n = torch.arange(impulses.shape[-1], dtype=torch.float64)
    h = impulses.to(torch.complex128)
    return (h @ torch.exp(-1j * n[:, None] * torch.as_tensor(omega, dtype=torch.float64))).abs()


def pass_figures(low, high):
    """What tells whether two filters are a wavelet's low and high pass: name -> number.

    low, high: |H|, (N, F), at frequencies from 0 to pi; means over N are taken. low_ratio: of the amplitude
    at pi to that at 0; high_ratio: of that at 0 to the largest.
    """
    low, high = (np.mean(np.asarray(h), 0) for h in (low, high))
    figures = {"low_0": low[0], "low_pi": low[-1], "low_ratio": low[-1] / low[0]}
    figures |= {"high_0": high[0], "high_peak": high.max(), "high_ratio": high[0] / high.max()}
    return {name: float(value) for name, value in figures.items()}


def filter_figures(level, images, places, count=65):
    """pass_figures of `filters`, at so many frequencies: (direction, varied) -> dict."""
    omega = np.linspace(0, np.pi, count)
    pairs = filters(level, images, places).items()
    return {key: pass_figures(*(frequency_response(taps, omega) for taps in pair)) for key, pair in pairs}


def low_pass(images, wavelet, levels):
    """Images (..., H, W) -> their coarse bands at levels 1, 2, ..., by a linear filter, in float64.

    wavelet: of FILTERS, its low pass at even pixels, or "haar", means of 2x2 pixels.
    """
    x, bands = images.double().cpu().numpy(), []
    for _ in range(levels):
        for axis in (-2, -1):
            if wavelet == "haar":
                x = correlate1d(x, (0.5, 0.5), axis, mode="nearest", origin=-1)
            else:
                first, *others = FILTERS[wavelet][0]
                x = correlate1d(x, (*others[::-1], first, *others), axis, mode="mirror")
            x = x.take(range(0, x.shape[axis], 2), axis)
        bands.append(torch.from_numpy(x))
    return bands


@torch.no_grad()
def coarse_psnr(model, images, levels=3):
    """How near coarse bands are, as pictures, to those of linear low passes: wavelet -> PSNR of each level.

    images: (B, 3, H, W); means over them. The wavelet of the best mean over levels comes first.
    """
    analysis, near = model.pyramid.analyse(model.from_images(images), levels), {}
    bands = [model.to_images(coarse).clamp(0, 255).cpu() for _, coarse, _ in analysis]
    for wavelet in ("legall", "cdf97", "haar"):
        pairs = zip(bands, low_pass(images, wavelet, levels))
        near[wavelet] = [np.mean([psnr(*p) for p in zip(x, y.clamp(0, 255))]).item() for x, y in pairs]
    return dict(sorted(near.items(), key=lambda item: -sum(item[1])))


def classical_response(wavelet, omega):
    """|H(e^iw)| of "haar", "legall" or "cdf97" at frequencies (F,): low-pass, high-pass."""
    if wavelet == "haar":  # taps 1/2, 1/2 and -1, 1
        return np.cos(omega / 2), 2 * np.sin(omega / 2)
    return tuple(
        np.abs(taps[0] + 2 * sum(h * np.cos(k * omega) for k, h in enumerate(taps) if k))
        for taps in FILTERS[wavelet]
    )


def down_tap(wavelet):
    """The share of a row of pixels in the row of coefficients at its place: the low-pass filter's tap 0."""
    return 1 / 2 if wavelet == "haar" else FILTERS[wavelet][0][0]
