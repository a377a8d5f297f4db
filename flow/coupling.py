"""Scheme 2: one level of the wavelet as additive integer couplings of the four polyphase bands."""

import torch
from torch import nn

from source.networks import ConvNet
from utils.arithmetic.integers import LIMIT, MIDDLE, STEPS, centre, round_through
from utils.arithmetic.polyphase import channels_last, crop, extend, interpolated, merge, split


class CouplingLevel(nn.Module):
    """band_k <- band_k + round(256 t_i(c(the other three bands))), k = i mod 4, for 4 * repeat networks t_i.

    Every height and width is welcome: a band that has a row or a column less than ul is extended by
    replication for the others' networks and takes only its own part of what is added to it, so that there are
    exactly as many coefficients as pixels. Source: method 2.
    """

    # what details are at first, and what those of an even grey then are
    details, flat = "pixels", MIDDLE

    def __init__(self, repeat, hchnl, nhidden, channels=3):
        super().__init__()
        self.networks = nn.ModuleList(
            ConvNet(3 * channels, channels, hchnl, nhidden) for _ in range(4 * repeat)
        )

    def _shift(self, i, bands):
        size, k = bands[0].shape[-2:], i % 4
        if not bands[k].numel():
            return bands[k]
        others = torch.cat([extend(b, size, MIDDLE) for j, b in enumerate(bands) if j != k], 1)
        return crop(self._output(i, others), bands[k].shape[-2:])

    def _output(self, i, others):
        return round_through(STEPS * self.networks[i](centre(others)))

    @property
    def keeps_chroma(self):
        """Whether the coarse band, and so that of chroma, is every other sample."""
        return not self.networks

    def smooth(self, coarse, band, size):
        """The details of a band, (B, C, *size), where an image is interpolated between every other sample."""
        return interpolated(coarse, band, size)

    def freeze(self, peaks):
        """A FixedCouplingLevel; peaks: see utils/arithmetic/fixed.py, observe. May raise ValueError."""
        return FixedCouplingLevel(net.freeze(peaks, STEPS, limit=int(LIMIT)) for net in self.networks)

    def split(self, x):
        """x (B, C, H, W) -> coarse band (B, C, ceil(H/2), ceil(W/2)), detail bands (ur, dl, dr)."""
        bands = [channels_last(b) for b in split(x)]
        for i in range(len(self.networks)):
            bands[i % 4] = bands[i % 4] + self._shift(i, bands)
        return bands[0], tuple(bands[1:])

    def merge(self, coarse, detail):
        """Undo split: the couplings backwards, with minus."""
        bands = [coarse, *detail]
        for i in reversed(range(len(self.networks))):
            bands[i % 4] = bands[i % 4] - self._shift(i, bands)
        return merge(*bands)


class FixedCouplingLevel(CouplingLevel):
    """A CouplingLevel in integers: the same shifts for any order of summation."""

    def __init__(self, networks):
        nn.Module.__init__(self)
        self.networks = nn.ModuleList(networks)

    def _output(self, i, others):
        return self.networks[i](others - MIDDLE).to(others.dtype)
