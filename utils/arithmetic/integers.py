"""Between integers (pixels, coefficients) and the range in which networks compute."""

import math

import torch

MIDDLE, STEPS = 128, 256
# Sixteen bits hold every difference of 16-bit samples, and 256 such shifts of one value stay below 2^24,
# where float32 stops counting: additions remain exact, hence invertible, whatever the weights.
LIMIT = 2.0**16


def centre(v):
    """c(v) = (v - 128) / 256: integers 0..255 to [-1/2, 1/2). Source: method 2."""
    return (v - MIDDLE) / STEPS


def uncentre(c):
    """v = 256 c + 128, real-valued: the inverse of centre."""
    return c * STEPS + MIDDLE


def nearest(x):
    """round(x), ties to even, limited to +-LIMIT."""
    return torch.round(x).clamp_(-LIMIT, LIMIT)


class _Round(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return nearest(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def round_through(x):
    """nearest(x), with the identity as its gradient. Source: method 2."""
    return _Round.apply(x)


def bits_per_dimension(nats, dimensions):
    """Nats of an image (or their mean) to bits for each of its `dimensions` = 3 H W values."""
    return nats / (dimensions * math.log(2))
