"""Networks of the band-wise prior in integers, tile by tile, each as one compiled function.

What bands.py says layer by layer, for processors that utils/arithmetic/dense.py knows: the same integers.
Functions of dense.py and kernels.py are compiled in, of which numba's cache does not notice changes: touch
this file then.
"""

from typing import NamedTuple

import numba
import numpy as np
import torch

from source import mixing
from source.tables import SCALE
from utils.arithmetic import dense, kernels, passes, products
from utils.arithmetic.dense import (
    BOTH,
    BYTES_ALONE,
    OUTPUTS,
    PIXELS,
    WEIGHTS,
    WORDS,
    compand_wide,
    convolve,
    multiply,
    replicate,
    room,
)
from utils.arithmetic.passes import SAMPLE_BITS, WIDE_BITS

_compiled = numba.njit(cache=True, nogil=True)

NOTHING = np.empty(0, np.int16)
TO_SAMPLES = WIDE_BITS - SAMPLE_BITS


class Wide(NamedTuple):
    """A FixedWide of few channels: weights by bytes, `third` outputs of each kind; see products.split_bytes.

    bias, scale, limit: of requantise_wide; none, low, high: of quantise, of what it reads.
    """

    packed: np.ndarray
    rows: int
    outputs: int
    third: int
    bias: np.ndarray
    scale: np.ndarray
    limit: float
    none: np.ndarray
    low: int
    high: int


# Residual blocks are handed over as tuples whose lengths are multiples of these: see _blocks.
TRUNK_MULTIPLE, BAND_MULTIPLE = 4, 2


class Block(NamedTuple):
    """A FixedResidual."""

    wide: dense.Dense
    last: dense.Dense


class Net(NamedTuple):
    """The layers of a FixedBand that come before `mixture`."""

    base: Wide
    enter: Wide
    trunk: dense.Dense
    count: int
    blocks: tuple
    hidden: dense.Dense


@_compiled
def _wanted(x, margins, around):
    """(top, bottom, left, right), what is needed of a layer's map (H, W, C); elsewhere it may hold anything.

    margins: pixels of the last layer's map that are not wanted, above, below, to the left and to the right;
    around: how far beyond what is wanted the layers after it see.
    """
    (height, width, _), (above, below, before, after) = x.shape, margins
    top, left = max(above - around, 0), max(before - around, 0)
    return top, height - max(below - around, 0), left, width - max(after - around, 0)


@_compiled
def _wide(x, layer, window, companded, words, means):
    """A FixedWide of x (H, W, C) int16: companded to words (H, W, out) int16, or means (H, W, out) int32.

    window: see `convolve`.
    """
    (height, width, channels), (top, bottom, left, right) = x.shape, window
    across, lines = width + 2, height + 2
    # bytes of what it reads, high ones, then low ones
    read = np.empty((1, lines, across, channels), np.int16)
    reads = layer.none, layer.none, layer.low, layer.high
    kernels.quantise(x.reshape(1, height, width, channels), *reads, layer.low, (1, 1), read)
    q, pixel = room(lines, across, 2 * channels), 2 * channels
    kernels.halve_bytes(read.reshape(lines * across, channels), q.reshape(1, lines * across, pixel))
    third, columns = layer.third, len(layer.packed) * OUTPUTS
    fours, size = (layer.rows * pixel + 3) // 4, layer.packed.shape[1] * WEIGHTS
    sums = np.empty((1, PIXELS, columns), np.int32)
    dense.configure()
    for i in range(top, bottom):
        for j in range(left, right, PIXELS):
            start, count = (i * across + j) * pixel, min(PIXELS, right - j)
            for block in range(len(layer.packed)):
                place = start, across * pixel, pixel, layer.rows, fours, block * size
                vectors = min(OUTPUTS, 3 * third - block * OUTPUTS) // dense.LANES
                to = block * OUTPUTS, 4 * columns
                multiply((q, layer.packed, sums), (*place, *to, count, vectors))
            if companded:
                arrays, vectors = (sums, layer.bias, layer.scale, words), layer.outputs // dense.LANES
                word, stride = (i * width + j) * words.shape[2], words.shape[2]
                compand_wide(arrays, (columns, third, count, vectors, layer.limit, word, stride))
            else:
                parts, out = sums[:, :count, : 3 * third], means[i, j : j + count]
                kernels.requantise_thirds(parts, layer.bias, layer.scale, layer.limit, out)
    dense.release()


@_compiled
def _residuals(f, q, count, blocks, margins, following, out):
    """`count` residual blocks, of f (H, W, width) int16 in place; out: what the layer `following` reads.

    q: bytes of f as the first of them reads it, bordered; it is written over. margins: see `_wanted`.
    """
    h = room(*f.shape)
    for n in range(count):
        window = _wanted(f, margins, count - 1 - n)
        convolve(q, window, blocks[n].wide, BYTES_ALONE, f, blocks[n].last, h, 0)
        if n + 1 < count:
            convolve(h, window, blocks[n].last, BOTH, f, blocks[n + 1].wide, q, 1)
            replicate(q)
        else:
            convolve(h, window, blocks[n].last, BOTH, f, following, out, 0)


@_compiled
def _look(planes, enter, level, count, blocks, margins, following, out):
    """FixedBandPrior.look: planes (B, H, W, C) int16 -> out (B, H, W, width) uint8."""
    batch, height, width, _ = planes.shape
    channels = level.size
    f, q = np.empty((height, width, channels), np.int16), room(height + 2, width + 2, channels)
    none, first = np.empty((1, 1, 1), np.int32), blocks[0].wide
    maps = f.reshape(1, *f.shape), q.reshape(1, *q.shape)
    for b in range(batch):
        _wide(planes[b], enter, _wanted(f, margins, count), True, f, none)
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    f[i, j, c] += level[c]
        kernels.quantise(maps[0], first.half, first.shift, 0, dense.NARROW, 0, (1, 1), maps[1])
        _residuals(f, q, count, blocks, margins, following, out[b])


@_compiled
def _features(trunk, planes, net, margins, base, hidden):
    """FixedBand.features: trunk (B, H, W, width) uint8, planes (B, H, W, known) int16, to base and hidden."""
    batch, height, width, channels = trunk.shape
    known, means = planes.shape[3], base.shape[3]
    x = np.empty((height, width, known + means), np.int16)
    f, none = np.empty((height, width, channels), np.int16), np.empty((1, 1, 1), np.int32)
    # the trunk, and what the last layer reads, and between them what residual blocks do
    h, q = room(height, width, channels), room(height + 2, width + 2, channels)
    window = _wanted(f, margins, net.count)
    for b in range(batch):
        _wide(planes[b], net.base, _wanted(f, margins, net.count + 1), False, f, base[b])
        for i in range(height):
            for j in range(width):
                for c in range(known):
                    x[i, j, c] = planes[b, i, j, c]
                for c in range(means):
                    x[i, j, known + c] = base[b, i, j, c] + (1 << TO_SAMPLES - 1) >> TO_SAMPLES
                for c in range(channels):
                    h[i, j, c] = trunk[b, i, j, c]
        _wide(x, net.enter, window, True, f, none)
        convolve(h, window, net.trunk, BOTH, f, net.blocks[0].wide, q, 1)
        replicate(q)
        _residuals(f, q, net.count, net.blocks, margins, net.hidden, h)
        convolve(h, _wanted(f, margins, 0), net.hidden, WORDS, hidden[b], net.hidden, h, 0)


@_compiled
def _mixture(base, hidden, planes, first, channel, layers, out, near, units, table, weights, means, scales):
    """FixedBand.mixture, of N positions: base (N, C), hidden (N, ..), planes (N, ..), near (N or 0,) int16.

    layers: beside and linear of source/mixing.py; to weights, means and scales, (K, N) int32.
    """
    count, (beside, linear) = len(base), layers
    q, mean = room(1, count, hidden.shape[1] // base.shape[1]), np.empty(count, np.int32)
    kernels.look_beside(
        *(base, hidden, planes, first, channel, beside, linear),
        *(out.half, out.shift, dense.NARROW, units, q[0], mean),
    )
    for n in range(len(near)):
        mean[n] += np.int32(near[n]) << TO_SAMPLES
    outputs = np.empty((1, count, -(-out.outputs // dense.LANES) * dense.LANES), np.int16)
    convolve(q, (0, 1, 0, count), out, WORDS, outputs, out, q, 0)
    kernels.mix(outputs[0], mean, table, units, weights, means, scales)


# -- of the layers of bands.py -------------------------------------------------------------------------------


def is_used(x):
    """Whether networks of maps such as this are fused."""
    return passes.is_compiled(x) and dense.available() and not products.forced()


def serves(x, blocks, *wides):
    """Whether `look` and `features` know networks with these blocks and wide layers, of such maps."""
    return (
        is_used(x)
        and len(blocks) > 0
        and len(blocks[0].last.bias) % dense.LANES == 0
        and all(_is_narrow(layer) for block in blocks for layer in (block.wide, block.last))
        and all(_wide_of(layer) for layer in wides)
    )


def _is_narrow(layer):
    return (layer.low, layer.high) == (0, dense.NARROW)


def _dense(layer):
    def make():
        reads, gives = layer.tables(layer.bias)[:2], layer.tables(layer.bias)[2:]
        # which stays where biases move
        packed = layer.once("packed", lambda: dense.packed(layer.weight.numpy()))
        return dense.dense(packed, layer.weight.shape, reads, gives)

    return layer.once("dense", make)


def _wide_of(layer):
    """A Wide of a FixedWide, or None where it has too many channels."""

    def make():
        at_once, bytes_ = products.split_bytes(layer.weight)
        if not at_once:
            return None
        none, _, bias, scale = layer.tables(layer.weight)
        limits = float(layer.limit), none, layer.low, layer.high
        return Wide(
            dense.packed(bytes_.numpy()), layer.kernel[0], len(bias), len(bytes_) // 3, bias, scale, *limits
        )

    return layer.once("wide", make)


def _blocks(blocks, multiple):
    """How many there are, and Blocks, the last repeated until their number is a multiple of this.

    For each length of tuples of them functions are compiled anew.
    """
    layers = [Block(_dense(block.wide), _dense(block.last)) for block in blocks]
    return len(layers), (*layers, *layers[-1:] * (-len(layers) % multiple))


def look(prior, planes, level, margins):
    """FixedBandPrior.look, of a level of its own or the last's: what its trunk is to the bands."""
    out = planes.new_empty((*planes.shape[:3], prior.level.shape[1]), dtype=torch.uint8)
    following = _dense(prior.bands[0].trunk)
    enter = _wide_of(prior.enter)
    _look(
        planes.numpy(),
        enter,
        prior.level[level].numpy(),
        *_blocks(prior.trunk, TRUNK_MULTIPLE),
        margins,
        following,
        out.numpy(),
    )
    return out


def features(band, trunk, planes, margins):
    """FixedBand.features."""
    net = Net(
        _wide_of(band.base),
        _wide_of(band.enter),
        _dense(band.trunk),
        *_blocks(band.blocks, BAND_MULTIPLE),
        _dense(band.hidden),
    )
    size, outputs = trunk.shape[:3], net.hidden.outputs
    base = planes.new_empty((*size, net.base.outputs), dtype=torch.int32)
    hidden = planes.new_empty((*size, -(-outputs // dense.LANES) * dense.LANES))
    _features(trunk.numpy(), planes.numpy(), net, margins, base.numpy(), hidden.numpy())
    return base, hidden[..., :outputs]


def mixture(band, base, hidden, planes, first, channel, near):
    """FixedBand.mixture: weights, means and scales, (K, B, 1, H, W) int32."""
    out = band.out[channel]
    beside = (band.beside[channel - 1], band.linear[channel - 1]) if channel else None
    layers = mixing.layers_beside(beside, out.weight.shape[1], hidden)
    fields, flat = mixing.empty_fields(out.weight.shape[0] // 3, base.shape[:3])
    maps = [t.reshape(-1, t.shape[-1]).numpy() for t in (base, hidden, planes)]
    near = NOTHING if near is None else near.reshape(-1).numpy()
    _mixture(*maps, first, channel, layers, _dense(out), near, mixing.UNITS, SCALE, *flat)
    return fields
