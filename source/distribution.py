"""Mixtures of discretised logistic distributions over the integers; a logistic is a mixture of one.

Source: method 3. Means and scales are in the networks' range, in which a step between two integers is 1/256.
"""

import math
from typing import NamedTuple

import torch

from source.units import MEAN_BITS, MIN_OCTAVE, SCALES_PER_OCTAVE
from utils.arithmetic.integers import STEPS, centre, nearest, uncentre
from utils.arithmetic.polyphase import crop

# exp(+-20) steps is beyond any image; within it no intermediate value overflows in float32
LOGSCALE_RANGE = (-20.0, 20.0)
# Values whose likelihood is computed at once on a CPU: a temporary of five components has 320 kB.
PIECE = 1 << 14


def log_prob(z, mean, logscale):
    """Log P(z) = log[sigma((c(z + 1/2) - mean) / s) - sigma((c(z - 1/2) - mean) / s)], s = exp(logscale).

    z: integer-valued; mean and logscale broadcast against it. In nats.
    """
    z, mean, logscale = torch.broadcast_tensors(z, mean, logscale)
    return _LogProb.apply(z, None, mean[None], logscale[None])


class _LogProb(torch.autograd.Function):
    """z (...), fields (K, ...) of a mixture, logits None if K = 1 -> log P(z), (...).

    The gradients are found on the way, as both are made of the same exponentials, in pieces that stay in a
    processor's caches.
    """

    @staticmethod
    def forward(ctx, z, logits, mean, logscale):
        fields = [f for f in (logits, mean, logscale) if f is not None]
        wanted = any(ctx.needs_input_grad)
        whole = z.to(mean.dtype).reshape(-1)
        pieces = [z.numel() or 1] if z.is_cuda else [PIECE]
        flat = [whole.split(*pieces), *(f.reshape(len(f), -1).split(*pieces, 1) for f in fields)]
        result, *gradients = zip(*(_with_gradients(wanted, *piece) for piece in zip(*flat)))
        if wanted:
            gradients = [torch.cat(g, 1).view(mean.shape) for g in gradients]
            ctx.save_for_backward(*gradients)
        return torch.cat(result).view(z.shape)

    @staticmethod
    def backward(ctx, gradient):
        *logits, mean, logscale = (gradient * g for g in ctx.saved_tensors)
        # what moves means moves z the other way
        z = mean.sum(0) / -STEPS if ctx.needs_input_grad[0] else None
        return z, *(logits or [None]), mean, logscale


def _with_gradients(wanted, z, *fields):
    """Log P(z), (N,), and if wanted its gradients by each of the fields, (K, N).

    With x half a step and a the distance from a mean, both in scales, P = sigma(x + a) - sigma(a - x), and
    log P = min(x - a, 0) - log[(1 + p) (1 + q) (1 + r)], p = e^-(x + a), q = e^-|x - a|, r = 1 / (e^2x - 1):
    a product of terms above one, less one a sum without cancellation, at any distance and scale.
    """
    *logits, mean, logscale = fields
    limited = logscale.clamp(*LOGSCALE_RANGE)
    inverse = torch.exp(-limited)
    offset = centre(z) - mean
    a, x = offset.abs() * inverse, inverse * (0.5 / STEPS)
    p, inside = torch.exp(-(x + a)), x - a
    q = torch.exp(-inside.abs())
    r = torch.expm1((2 * x).clamp_(max=80)).reciprocal_()  # beyond, exp overflows and the term is 0
    terms = (p + q).addcmul_(p, q)
    components = inside.clamp(max=0).sub_(terms.addcmul(terms, r).add_(r).log1p_())
    result, share = components[0], None
    if logits:
        weights = torch.log_softmax(logits[0], 0)
        joint = components.add_(weights)
        result = torch.logsumexp(joint, 0)
        share = joint.sub_(result).exp_()
    if not wanted:
        return (result,)
    below, above = p / (1 + p), torch.where(inside < 0, 1, q) / (1 + q)
    by_a, by_x = below - above, (below + above).add_(r, alpha=2)
    by_mean = (by_a * inverse).mul_(offset.sign_().neg_())
    by_logscale = (a * by_a).addcmul_(x, by_x).neg_().mul_(limited == logscale)
    if not logits:
        return result, by_mean, by_logscale
    return result, share - weights.exp_(), by_mean.mul_(share), by_logscale.mul_(share)


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
        if len(self.mean) == 1:  # a logistic: training is faster without the logarithm of a sum of one
            return log_prob(z, self.mean[0], self.logscale[0])
        z, *fields = torch.broadcast_tensors(z, *self)
        return _LogProb.apply(z[0], *fields)

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
