"""The wavelet pyramid: one level after the other on the coarse band."""

from collections import deque

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

    def analyse(self, x, depth=None):
        """Yield (level, coarse, detail), finest first: what level 0 makes of x, level 1 of that coarse, ...

        x: (B, C, H, W), integer-valued floats; depth: the number of levels, by default as many as bring the
        image to 2x2 or less. Inverse: synthesise.
        """
        for level in range(full_depth(*x.shape[-2:]) if depth is None else depth):
            x, detail = self.level(level).split(x)
            yield level, x, detail

    def synthesise(self, coarse, depth, details_of, last=0):
        """Yield (level, band), coarsest first: (depth, coarse), (depth - 1, what level depth - 1 makes), ...

        details_of: (coarse, level) -> the details (ur, dl, dr) that `level` merges with it.
        last: the level to end with; 0 gives the image.
        """
        yield depth, coarse
        for level in reversed(range(last, depth)):
            coarse = self.level(level).merge(coarse, details_of(coarse, level))
            yield level, coarse

    def forward(self, x, depth=None):
        """All of analyse: x -> top, [details of the finest level, ..., of the coarsest]."""
        details = []
        for _, coarse, detail in self.analyse(x, depth):
            x = coarse
            details.append(detail)
        return x, details

    def inverse(self, top, details):
        """Undo forward, exactly."""
        return finest(self.synthesise(top, len(details), lambda coarse, level: details[level]))


def finest(levels):
    """The band of the last (level, band, ...); none of those before is kept."""
    return deque(levels, maxlen=1).pop()[1]
