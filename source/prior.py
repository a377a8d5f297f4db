"""The hierarchical prior: the top under a mixture, the details of each level given its coarse band.

Every prior of details is a module with
    given = prior(coarse, level)        level 0 is the finest
    distribution = given(known)         of the next detail band, `known` being those known of ur, dl, dr
so that evaluation, sampling and coding walk through the bands in the same way, and a prior may let a band
depend on those before it. Distributions have the size of the coarse band; whoever uses them crops.
Source: method 3.
"""

import torch
from torch import nn

from source.logistic import Logistic, Mixture
from utils.integers import centre
from utils.network import ConvNet
from utils.polyphase import level_sizes

BANDS = 3
LOGSCALE_START = -3.0


class TopPrior(nn.Module):
    """A mixture of nmixing discretised logistics for each value of the last 2x2 block.

    Means start spread by 1/8 around 0; clamp > 0 limits their absolute value.
    A larger top (a shallow pyramid) repeats the block, a smaller one uses its upper left part.
    """

    def __init__(self, nmixing, clamp=-1.0, channels=3):
        super().__init__()
        spread = (torch.arange(nmixing) - (nmixing - 1) / 2) / 8
        self.clamp = clamp
        self.logits = nn.Parameter(torch.zeros(nmixing, channels, 2, 2))
        self.mean = nn.Parameter(spread.view(-1, 1, 1, 1).repeat(1, channels, 2, 2))
        self.logscale = nn.Parameter(torch.full((nmixing, channels, 2, 2), LOGSCALE_START))

    def forward(self, batch, size):
        """The Mixture of a batch of tops of the given (height, width)."""
        rows, columns = (torch.arange(n, device=self.mean.device) % 2 for n in size)
        mean = self.mean.clamp(-self.clamp, self.clamp) if self.clamp > 0 else self.mean
        fields = (f[..., rows[:, None], columns].unsqueeze(1) for f in (self.logits, mean, self.logscale))
        return Mixture(*(f.expand(-1, batch, -1, -1, -1) for f in fields))


def _independent(mean, logscale):
    """The `given` of a prior whose bands do not depend on each other."""
    bands = [Logistic(*fields) for fields in zip(mean.chunk(BANDS, 1), logscale.chunk(BANDS, 1))]
    return lambda known: bands[len(known)]


class ConditionalPrior(nn.Module):
    """The paper's: mean and logscale of the nine detail values from two networks of c(coarse)."""

    def __init__(self, hchnl, nhidden, channels=3):
        super().__init__()
        self.mean = ConvNet(channels, BANDS * channels, hchnl, nhidden)
        self.logscale = ConvNet(channels, BANDS * channels, hchnl, nhidden)
        nn.init.constant_(self.logscale.last.bias, LOGSCALE_START)

    def forward(self, coarse, level):
        """See the module."""
        c = centre(coarse)
        return _independent(self.mean(c), self.logscale(c))


class SimplePrior(nn.Module):
    """One mean and logscale for each channel and band, shared over levels and positions (-simplePrior)."""

    def __init__(self, channels=3):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(BANDS * channels, 1, 1))
        self.logscale = nn.Parameter(torch.full((BANDS * channels, 1, 1), LOGSCALE_START))

    def forward(self, coarse, level):
        """See the module."""
        shape = (len(coarse), -1, *coarse.shape[-2:])
        return _independent(self.mean.expand(*shape), self.logscale.expand(*shape))


class PositionPrior(nn.Module):
    """One mean and logscale for each level, channel, band and position (-simplePrior -diffDetail).

    size: (height, width) of the only images that it knows; levels: the depth of their pyramid.
    """

    def __init__(self, size, levels, channels=3):
        super().__init__()
        shapes = [(BANDS * channels, *s) for s in level_sizes(*size, levels)[1:]]
        self.size = tuple(size)
        self.mean = nn.ParameterList(torch.zeros(s) for s in shapes)
        self.logscale = nn.ParameterList(torch.full(s, LOGSCALE_START) for s in shapes)

    def forward(self, coarse, level):
        """See the module. Raises ValueError for images of another size."""
        if level >= len(self.mean) or coarse.shape[-2:] != self.mean[level].shape[-2:]:
            raise ValueError(f"a model with -diffDetail knows images of {self.size[0]}x{self.size[1]} only")
        shape = (len(coarse), -1, -1, -1)
        return _independent(self.mean[level].expand(*shape), self.logscale[level].expand(*shape))
