"""Between integers (pixels, coefficients) and the range in which networks compute."""

import math

import torch

MIDDLE, STEPS = 128, 256


def centre(v):
    """c(v) = (v - 128) / 256: integers 0..255 to [-1/2, 1/2). Source: method 2."""
    return (v - MIDDLE) / STEPS


def uncentre(c):
    """v = 256 c + 128, real-valued: the inverse of centre."""
    return c * STEPS + MIDDLE


class _Round(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.round(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def round_through(x):
    """round(x), ties to even, with the identity as its gradient. Source: method 2."""
    return _Round.apply(x)


def bits_per_dimension(nats, dimensions):
    """Nats of an image (or their mean) to bits for each of its `dimensions` = 3 H W values."""
    return nats / (dimensions * math.log(2))
