"""The wavelet pyramid: one level after the other on the coarse band."""

from torch import nn

from utils.arithmetic.polyphase import depth as full_depth


class Pyramid(nn.Module):
    """image -> split -> (coarse, detail) -> split -> ... -> top.

    levels: modules with split(x) -> (coarse, detail) and its inverse merge(coarse, detail), finest first.
    The last of them serves all deeper levels: a single one is a wavelet of any depth and any image size,
    several are -heavy. Log-determinant 0. Source: method 2.
    """

    def __init__(self, levels):
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def level(self, i):
        """The transform of level i, 0 being the finest."""
        return self.levels[min(i, len(self.levels) - 1)]

    def forward(self, x, depth=None):
        """x (B, C, H, W), integer-valued floats -> top, [details of the finest level, ..., of the coarsest].

        depth: the number of levels, by default as many as bring the image to 2x2 or less.
        """
        details = []
        for i in range(full_depth(*x.shape[-2:]) if depth is None else depth):
            x, detail = self.level(i).split(x)
            details.append(detail)
        return x, details

    def inverse(self, top, details):
        """Undo forward, exactly."""
        x = top
        for i in reversed(range(len(details))):
            x = self.level(i).merge(x, details[i])
        return x
