"""Layers and maps of integers, drawn also at the ends of their ranges, and every way to compute with them."""

from contextlib import contextmanager

import torch

from utils.arithmetic import passes, products
from utils.arithmetic.fixed import EXACT, WIDE_EXACT, FixedConv, FixedShares, FixedWide

CPU = torch.device("cpu")
WORKING = {
    wide: [name for name, trial in products.trials(CPU, wide).items() if not trial.fault]
    for wide in (False, True)
}


@contextmanager
def computed(way=None, compiled=True, cached=products.CACHED):
    """Within: products by this way, passes compiled or in tensors, pieces of so many bytes."""
    before, products.CACHED = products.CACHED, cached
    products.force(way)
    passes.compiled(compiled)
    try:
        yield
    finally:
        products.CACHED = before
        products.force()
        passes.compiled(True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(shape, low, high, seed=0, ends=False, dtype=torch.int16):
    """Integers of low .. high; ends: these two alone."""
    x = torch.randint(0, 2 if ends else high - low + 1, shape, generator=seeded(seed))
    return (low + x * (high - low if ends else 1)).to(dtype)


def fill(layer, most, exact, reach, seed=0, ends=False):
    """Draw weights up to `most`, smaller where their sum would pass `exact`, and biases from what is left."""
    most = min(most, (exact - 1) // (reach * layer.weight[0].numel()))
    layer.weight.copy_(drawn(layer.weight.shape, -most, most, seed, ends, torch.int64))
    left = exact - 1 - layer.weight.long().abs().flatten(1).sum(1) * reach
    sign = drawn(left.shape, -1, 1, seed + 1, True, torch.int64)
    part = torch.rand(left.shape, generator=seeded(seed + 2), dtype=torch.float64)
    layer.bias.copy_(sign * (left if ends else (left * part).long()))


def narrow(shape, seed=0, ends=False, low=0, high=255):
    """A FixedConv of drawn integers."""
    layer = FixedConv(shape, low, high)
    fill(layer, 127, EXACT, max(high, -low), seed, ends)
    # the sums, of some 20 bits, to some 12, but for some channels
    layer.exponent.copy_(drawn(layer.exponent.shape, 6, 12, seed + 3))
    layer.exponent[::3] = drawn(layer.exponent[::3].shape, -6, 30, seed + 4, ends).to(torch.int8)
    layer.shift.copy_(drawn(layer.shift.shape, 0, 15, seed + 5, ends))
    layer.check()
    return layer


def wide(shape, seed=0, ends=False, limit=2**15 - 1, low=0, high=2**15 - 1):
    """A FixedWide of drawn integers."""
    layer = FixedWide(shape, low, high, limit)
    fill(layer, 2**15 - 129, WIDE_EXACT, 2 * (high - low), seed, ends)
    layer.exponent.copy_(drawn(layer.exponent.shape, 15, 40, seed + 3))
    layer.exponent[::3] = drawn(layer.exponent[::3].shape, 0, 60, seed + 4, ends).to(torch.int8)
    layer.check()
    return layer


def shares(shape, seed=0, ends=False, limit=2**24):
    """A FixedShares of drawn integers."""
    layer = FixedShares(shape, limit)
    fill(layer, 2**15 - 129, WIDE_EXACT, 2**15 - 1, seed, ends)
    layer.exponent.copy_(drawn(layer.exponent.shape, 10, 35, seed + 3))
    layer.exponent[::3] = drawn(layer.exponent[::3].shape, -6, 60, seed + 4, ends).to(torch.int8)
    layer.check()
    return layer
