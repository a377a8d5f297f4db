"""The polyphase split is its slices, merge is its inverse, and every size is welcome."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from utils.arithmetic.polyphase import band_sizes, crop, depth, extend, level_sizes, merge, split

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def numbered(height, width):
    """Return a batch (2, 3, H, W) of which no two values are equal."""
    return torch.arange(6.0 * height * width).view(2, 3, height, width)


def test_split_by_hand():
    bands = split(torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]))
    assert [band.tolist() for band in bands] == [[[1, 3], [7, 9]], [[2], [8]], [[4, 6]], [[5]]]


@given(SIZES)
def test_split_and_merge(size):
    x = numbered(*size)
    bands = split(x)
    for k, band in enumerate(bands):
        assert torch.equal(band, x[..., k // 2 :: 2, k % 2 :: 2])
    assert tuple(band.shape[-2:] for band in bands) == band_sizes(*size)
    assert torch.equal(merge(*bands), x)


@given(SIZES)
def test_extended_bands_have_the_size_of_ul_and_crop_back(size):
    ul, *others = split(numbered(*size))
    for band in others:
        wide = extend(band, ul.shape[-2:], 7)
        rows, columns = (w - n for w, n in zip(ul.shape[-2:], band.shape[-2:]))
        if band.numel():
            assert torch.equal(wide, F.pad(band, (0, columns, 0, rows), mode="replicate"))
        else:
            assert torch.equal(wide, torch.full_like(ul, 7))
        assert torch.equal(crop(wide, band.shape[-2:]), band)


@pytest.mark.parametrize(
    ("height", "width", "levels"),
    [(1, 1, 0), (2, 2, 0), (1, 3, 1), (4, 4, 1), (5, 2, 2), (32, 32, 4), (33, 9, 5), (1, 2000, 10)],
)
def test_depth_by_hand(height, width, levels):
    assert depth(height, width) == levels


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
def test_depth_is_the_first_level_that_fits_2x2(size):
    sizes = level_sizes(*size, depth(*size))
    assert [max(s) > 2 for s in sizes] == [True] * (len(sizes) - 1) + [False]
