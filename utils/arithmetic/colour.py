"""YCoCg-R, the reversible luma and chroma transform of integers.

Source: Malvar and Sullivan, "YCoCg-R: A Color Space with RGB Reversibility and Low Dynamic Range" (2003).
"""

import torch

from utils.arithmetic.integers import MIDDLE


def rgb_to_ycocg(rgb):
    """Co = R - B, t = B + floor(Co / 2), Cg = G - t, Y = t + floor(Cg / 2); chroma moved to the middle, 128.

    rgb: (..., 3, H, W), integer-valued floats. Returns the same shape: Y in 0..255, Co and Cg in -127..383
    for 8-bit colours. Inverse: ycocg_to_rgb, exact for all integers.
    """
    r, g, b = rgb.unbind(-3)
    co = r - b
    t = b + torch.floor(co / 2)
    cg = g - t
    return torch.stack([t + torch.floor(cg / 2), co + MIDDLE, cg + MIDDLE], -3)


def ycocg_to_rgb(ycocg):
    """Undo rgb_to_ycocg: the same steps backwards."""
    y, co, cg = ycocg.unbind(-3)
    co, cg = co - MIDDLE, cg - MIDDLE
    t = y - torch.floor(cg / 2)
    b = t - torch.floor(co / 2)
    return torch.stack([b + co, cg + t, b], -3)
