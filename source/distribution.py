"""Mixtures of discretised logistic distributions over the integers; a logistic is a mixture of one.

Source: method 3. Means and scales are in the networks' range, in which a step between two integers is 1/256.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from source.units import MEAN_BITS, MIN_OCTAVE, SCALES_PER_OCTAVE
from utils.arithmetic.integers import STEPS, centre, nearest, uncentre
from utils.arithmetic.polyphase import crop

# exp(+-20) steps is beyond any image; within it no intermediate value overflows in float32
LOGSCALE_RANGE = (-20.0, 20.0)


def log_prob(z, mean, logscale):
    """Log P(z) = log[sigma((c(z + 1/2) - mean) / s) - sigma((c(z - 1/2) - mean) / s)], s = exp(logscale).

    z: integer-valued; mean and logscale broadcast against it. In nats.
    With a, b the lower and the upper argument, sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)):
    three factors below one, so that their logarithms add without cancellation, at any distance and scale.
    The third, 1 - exp(-w) = 1 / (1 + 1 / (exp(w) - 1)), keeps its digits for small w and for large ones.
    """
    inverse = torch.exp(-logscale.clamp(*LOGSCALE_RANGE))
    offset = centre(z) - mean
    half = 0.5 / STEPS
    width = inverse / STEPS
    return (
        F.logsigmoid((offset + half) * inverse)
        + F.logsigmoid((half - offset) * inverse)
        - torch.log1p(1 / torch.expm1(width.clamp(max=80)))  # beyond, exp overflows and the term is 0
    )


def _draw(mean, logscale, generator):
    """Integers drawn from a discretised logistic."""
    u = torch.rand(mean.shape, generator=generator, device=mean.device, dtype=torch.float64)
    u = u.clamp(1e-12, 1 - 1e-12)
    noise = torch.log(u) - torch.log1p(-u)
    scale = torch.exp(logscale.clamp(*LOGSCALE_RANGE))
    return nearest(uncentre(mean + scale * noise)).to(mean.dtype)


class Mixture(NamedTuple):
    """P(z) = sum over k of softmax(logits)_k P_k(z); logits, mean and logscale: (K, B, C, H, W)."""

    logits: torch.Tensor
    mean: torch.Tensor
    logscale: torch.Tensor

    @classmethod
    def logistic(cls, mean, logscale):
        """One component; mean and logscale: (B, C, H, W)."""
        return cls(mean.new_zeros(()).expand(1, *mean.shape), mean[None], logscale[None])

    def log_prob(self, z):
        """Log P(z) in nats, of z's shape."""
        components = log_prob(z, self.mean, self.logscale)
        if len(components) == 1:  # a logistic: training is faster without the logarithm of a sum of one
            return components[0]
        return torch.logsumexp(torch.log_softmax(self.logits, 0) + components, 0)

    def mode(self):
        """The integers nearest to the mean of the mixture."""
        return nearest(uncentre((torch.softmax(self.logits, 0) * self.mean).sum(0)))

    def sample(self, base_scale=0.0, generator=None):
        """Integers drawn with `base_scale` added to every logscale."""
        mean, logscale = self.mean[:1], self.logscale[:1]
        if len(self.mean) > 1:
            weights = torch.softmax(self.logits, 0).movedim(0, -1)
            component = torch.multinomial(weights.flatten(0, -2), 1, generator=generator).view(mean.shape)
            mean, logscale = self.mean.gather(0, component), self.logscale.gather(0, component)
        return _draw(mean[0], logscale[0] + base_scale, generator)


class FixedMixture(NamedTuple):
    """A Mixture in the integers of the entropy coder, of source/units.py; (K, B, C, H, W)."""

    weight: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def logistic(cls, mean, scale):
        """One component; mean and scale: (B, C, H, W)."""
        weight = torch.ones((), dtype=torch.int32, device=mean.device)
        return cls(weight.expand(1, *mean.shape), mean[None], scale[None])

    def real(self):
        """The Mixture that it stands for, in float64."""
        octaves = self.scale.double() / SCALES_PER_OCTAVE + MIN_OCTAVE
        return Mixture(
            torch.log(self.weight / self.weight.sum(0)),
            centre(self.mean.double() / (1 << MEAN_BITS)),
            octaves * math.log(2) - math.log(STEPS),
        )

    def mode(self):
        """The integers nearest to the mean of the mixture: exact, halves upwards."""
        unit = self.weight.sum(0) << MEAN_BITS
        total = (self.weight.long() * self.mean.long()).sum(0)
        return ((2 * total + unit) // (2 * unit)).double()

    def log_prob(self, z):
        """Log P(z) in nats, of z's shape."""
        return self.real().log_prob(z)

    def sample(self, base_scale=0.0, generator=None):
        """As Mixture.sample."""
        return self.real().sample(base_scale, generator)


def cropped(distribution, size):
    """The distribution of the upper left part of a band."""
    return type(distribution)(*(crop(field, size) for field in distribution))


def drawing(base_scale=None, generator=None):
    """A function: distribution -> integers drawn, with base_scale added to every logscale; None: its mode."""
    if base_scale is None:
        return lambda distribution: distribution.mode()
    return lambda distribution: distribution.sample(base_scale, generator)


def flattened(x):
    """(..., C, H, W) -> (..., H * W * C), in the order in which channels-last tensors lie in memory."""
    return x.movedim(-3, -1).flatten(-3)


def concatenated(distributions):
    """One distribution over the concatenation of flattened bands: one evaluation instead of many."""
    return type(distributions[0])(
        *(torch.cat([flattened(f) for f in fields], -1) for fields in zip(*distributions))
    )
