"""The lazy wavelet: images as even and odd samples, the only place where pixels are reordered."""

import torch
import torch.nn.functional as F


def split_columns(x):
    """Split the last axis into even and odd samples: e[n] = x[2n], o[n] = x[2n + 1].

    x: (..., W), W >= 1. Returns views (..., ceil(W/2)) and (..., floor(W/2)). Inverse: join_columns.
    """
    return x[..., 0::2], x[..., 1::2]


def join_columns(even, odd):
    """Interleave even and odd samples along the last axis. Inverse: split_columns."""
    x = even.new_empty((*even.shape[:-1], even.shape[-1] + odd.shape[-1]))
    x[..., 0::2], x[..., 1::2] = even, odd
    return x


def split(x):
    """Split images into their four 2x2 polyphase bands.

    x: (..., H, W), H and W >= 1.
    Returns ul, ur, dl, dr, whose (height, width) are as `band_sizes` says: for odd H the lower bands have
    a row less than the upper ones, for odd W the right bands a column less than the left ones.
    Source: method 2. Inverse: merge.
    """
    left, right = split_columns(x)
    (ul, dl), (ur, dr) = ([half.mT for half in split_columns(side.mT)] for side in (left, right))
    return ul, ur, dl, dr


def merge(ul, ur, dl, dr):
    """Interleave four polyphase bands into images, which are stored channels last. Inverse: split."""
    shape = *ul.shape[:-2], ul.shape[-2] + dl.shape[-2], ul.shape[-1] + ur.shape[-1]
    layout = torch.channels_last if ul.dim() == 4 else torch.contiguous_format
    x = torch.empty(shape, dtype=ul.dtype, device=ul.device, memory_format=layout)
    x[..., 0::2, 0::2], x[..., 0::2, 1::2], x[..., 1::2, 0::2], x[..., 1::2, 1::2] = ul, ur, dl, dr
    return x


def band_sizes(height, width):
    """(height, width) of ul, ur, dl, dr of a height x width image."""
    up, left = (height + 1) // 2, (width + 1) // 2
    return (up, left), (up, width - left), (height - up, left), (height - up, width - left)


def extend(band, size, fill):
    """Bring a band to the size of ul: replicate its last row and column where it has one less.

    A band without any sample (an image one pixel high or wide) becomes `fill` everywhere.
    """
    (height, width), (rows, columns) = band.shape[-2:], size
    if (height, width) == (rows, columns):
        return band
    if not height or not width:
        return band.new_full((*band.shape[:-2], rows, columns), fill)
    return F.pad(band, (0, columns - width, 0, rows - height), mode="replicate")


def crop(x, size):
    """The upper left part of x (..., H, W) that has the given (height, width)."""
    return x[..., : size[0], : size[1]]


def between(coarse, band):
    """The mean of those samples of a coarse band (..., H, W) that are next to each sample of a band.

    band: 0 ur, of two side by side; 1 dl, of two below each other; 2 dr, of four; past the last sample is
    the last. Returns the shape and type of `coarse`; of integers exact if they are multiples of four.
    """
    for axis in ((-1,), (-2,), (-1, -2))[band]:
        half = coarse / 2 if coarse.is_floating_point() else coarse >> 1
        after = half.narrow(axis, 1, half.shape[axis] - 1), half.narrow(axis, -1, 1)
        coarse = half + torch.cat(after, axis)
    return coarse


def interpolated(coarse, band, size):
    """That mean, rounded, for the samples of a band of this (height, width): (..., height, width), floats."""
    return crop(torch.floor(between(coarse, band) + 1 / 2), size)


def depth(height, width):
    """The number of levels that bring an image to 2x2 or less: ceil(log2(max(H, W))) - 1, at least 0."""
    return max((max(height, width) - 1).bit_length() - 1, 0)


def level_sizes(height, width, levels):
    """(height, width) of the image and of each of its coarse bands, finest first: levels + 1 pairs."""
    sizes = [(height, width)]
    for _ in range(levels):
        sizes.append(band_sizes(*sizes[-1])[0])
    return sizes


def channels_last(x):
    """The same tensor, stored pixel by pixel: convolutions are fastest so."""
    return x.contiguous(memory_format=torch.channels_last)
