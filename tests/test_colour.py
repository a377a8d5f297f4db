"""YCoCg-R loses no colour: all 2^24 of them come back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.arithmetic.colour import rgb_to_ycocg, ycocg_to_rgb


@pytest.mark.parametrize(
    ("rgb", "ycocg"),
    [
        ((0, 0, 0), (0, 128, 128)),
        ((255, 255, 255), (255, 128, 128)),
        ((255, 0, 0), (63, 383, 1)),
        ((0, 255, 0), (127, 128, 383)),
        ((0, 0, 255), (63, -127, 1)),
        ((3, 4, 6), (4, 125, 128)),
    ],
)
def test_by_hand(rgb, ycocg):
    x, y = (torch.tensor(colour).view(3, 1, 1) for colour in (rgb, ycocg))
    assert torch.equal(rgb_to_ycocg(x.float()), y.float())


def test_every_colour_comes_back():
    levels = torch.arange(256.0)
    blue, green = levels.expand(256, 256), levels[:, None].expand(256, 256)
    lowest, highest = torch.full((3,), 999.0), torch.full((3,), -999.0)
    for red in levels:
        x = torch.stack([red.expand(256, 256), green, blue])
        y = rgb_to_ycocg(x)
        assert torch.equal(ycocg_to_rgb(y), x)
        lowest, highest = lowest.minimum(y.amin((1, 2))), highest.maximum(y.amax((1, 2)))
    assert (lowest.tolist(), highest.tolist()) == ([0, -127, -127], [255, 383, 383])


@given(st.lists(st.integers(-(2**20), 2**20), min_size=3, max_size=3))
def test_all_integers_come_back_both_ways(values):
    x = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
    assert torch.equal(ycocg_to_rgb(rgb_to_ycocg(x)), x)
    assert torch.equal(rgb_to_ycocg(ycocg_to_rgb(x)), x)
