"""From the networks' integers to those of the coder, by channel: compiled for the CPU, and in tensors.

Networks see what is left of the channels known, r = v - base, in wide units (see utils/arithmetic/passes.py).
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from source.tables import SCALE
from source.units import (
    MAX_OCTAVE,
    MEAN_BITS,
    MIN_OCTAVE,
    SCALE_BITS,
    SCALES,
    SCALES_PER_OCTAVE,
    WEIGHT_SUM_BITS,
)
from utils.arithmetic import kernels
from utils.arithmetic.integers import MIDDLE
from utils.arithmetic.passes import (
    FINE_BITS,
    SAMPLE_BITS,
    WIDE_BITS,
    WIDE_MAX,
    compand,
    is_compiled,
)

# Outputs times 4 are octaves, logits to base 2, and means in units of the scale.
OUTPUT_GAIN_BITS = 2
# fine outputs, so multiplied, to steps of scales; wide means and products with scales to the coder's means
STEP_SHIFT = FINE_BITS - OUTPUT_GAIN_BITS - (SCALES_PER_OCTAVE.bit_length() - 1)
MEAN_SHIFT = FINE_BITS - OUTPUT_GAIN_BITS + SCALE_BITS - MEAN_BITS
WIDE_LEFT = FINE_BITS - OUTPUT_GAIN_BITS + SCALE_BITS - WIDE_BITS
MIDDLE_MEAN = MIDDLE << MEAN_SHIFT + MEAN_BITS
FIRST_SCALE = -MIN_OCTAVE * SCALES_PER_OCTAVE
SAMPLE_SHIFT = WIDE_BITS - SAMPLE_BITS
WEIGHT_SHIFT = SCALE_BITS + MAX_OCTAVE - WEIGHT_SUM_BITS


class MixingUnits(NamedTuple):
    """The constants above, for what is compiled."""

    step_shift: int
    mean_shift: int
    wide_left: int
    middle: int
    first_scale: int
    last_scale: int
    weight_shift: int
    sample_shift: int
    wide_max: int


UNITS = MixingUnits(
    *(STEP_SHIFT, MEAN_SHIFT, WIDE_LEFT, MIDDLE_MEAN, FIRST_SCALE, SCALES - 1, WEIGHT_SHIFT),
    *(SAMPLE_SHIFT, WIDE_MAX),
)


class Beside(NamedTuple):
    """The layer of the channels known: weight (4, width) int16; bias, left, right: (width,) int32.

    weight: of what the first of two channels leaves, from 0 on, and below; then of the second, if any.
    """

    weight: np.ndarray
    bias: np.ndarray
    left: np.ndarray
    right: np.ndarray


class Linear(NamedTuple):
    """What the channels known add to a mean: clamp(offset + sum of weights (c,) r >> exponent, +-limit)."""

    weights: np.ndarray
    offset: int
    exponent: int
    limit: int


def mixture_fields(outputs, mean):
    """Outputs of a network and a mean to the weights, means and scales of a mixture of K logistics.

    outputs: (B, H, W, 3 K) int16, fine: logits, means in units of the scale, octaves.
    mean: (B, H, W) int32, wide.
    Returns three of (K, B, 1, H, W), int32.
    """
    components = outputs.shape[-1] // 3
    if is_compiled(outputs):
        fields, flat = empty_fields(components, mean.shape)
        kernels.mix(outputs.view(-1, 3 * components).numpy(), mean.view(-1).numpy(), SCALE, UNITS, *flat)
        return fields
    table = torch.from_numpy(SCALE).to(outputs.device)
    logits, offsets, octaves = outputs.int().unflatten(-1, (3, -1)).movedim(-1, 0).unbind(-1)
    half = 1 << STEP_SHIFT - 1
    scale = ((octaves + half >> STEP_SHIFT) + FIRST_SCALE).clamp(0, SCALES - 1)
    total = (mean.long() << WIDE_LEFT) + offsets.long() * table[scale].long() + MIDDLE_MEAN
    below = (logits.amax(0) - logits + half >> STEP_SHIFT).clamp(max=SCALES - 1)
    fields = table[SCALES - 1 - below] >> WEIGHT_SHIFT, total + (1 << MEAN_SHIFT - 1) >> MEAN_SHIFT, scale
    return tuple(field.int().unsqueeze(2) for field in fields)


def empty_fields(components, size):
    """Weights, means and scales to fill in, three of (K, B, 1, H, W), int32; the same as arrays (K, N)."""
    batch, height, width = size
    fields = [torch.empty((components, batch, 1, height, width), dtype=torch.int32) for _ in range(3)]
    return fields, [field.view(components, -1).numpy() for field in fields]


def look_beside(base, hidden, planes, first, channel, layers, out):
    """What the last layer of a channel reads, and its mean, given the channels known.

    base: (B, H, W, 3) int32; hidden: (B, H, W, channels * width) int16; planes: (B, H, W, ...) int16, of
    which [first, first + channel) are known. layers: what reads these, beside (companded) and linear, or None
    for the first channel; out: the layer that reads what comes of it.
    Returns (B, H, W, width) uint8 and (B, H, W) int32.
    """
    width = out.weight.shape[1]
    if is_compiled(hidden):
        shape = hidden.shape[:-1]
        q, mean = (
            hidden.new_empty((*shape, width), dtype=torch.uint8),
            hidden.new_empty(shape, dtype=torch.int32),
        )
        maps = [t.reshape(mean.numel(), t.shape[-1]).numpy() for t in (base, hidden, planes)]
        beside, linear = layers_beside(layers, width, hidden)
        half, shift = out.tables(hidden)[:2]
        rest = half, shift, out.high, UNITS, q.view(-1, width).numpy(), mean.view(-1).numpy()
        kernels.look_beside(*maps, first, channel, beside, linear, *rest)
        return q, mean
    mean, hidden = base[..., channel], hidden[..., channel * width : (channel + 1) * width]
    if channel:
        beside, linear = layers
        known = planes[..., first : first + channel].int() << SAMPLE_SHIFT
        r = (known - base[..., :channel]).clamp(-WIDE_MAX, WIDE_MAX)
        companded = compand(r)
        hidden = beside(torch.cat([companded, companded.abs()], -1), onto=hidden.contiguous())
        mean = mean + linear(r)[..., 0]
    return out.quantise(hidden.contiguous()), mean.contiguous()


def layers_beside(layers, width, like):
    """The Beside and Linear of layers; of None, such as change nothing of `width` outputs."""
    if layers is None:
        return _no_beside(width), _no_linear()
    beside, linear = layers

    def make():
        own, of_size = beside.weight[:, :, 0, 0].T.to(torch.int16).unflatten(0, (2, -1))
        rows = torch.stack([own + of_size, own - of_size], 1).flatten(0, 1)
        weight = functional.pad(rows, (0, 0, 0, 4 - len(rows))).numpy()
        weights = linear.weight[0, :, 0, 0].long().numpy()
        offset, exponent = linear.bias.item(), linear.exponent.item()
        return Beside(weight, *beside.tables(like)[2:]), Linear(weights, offset, exponent, linear.limit)

    return beside.once("beside", make)


@cache
def _no_beside(width):
    none = np.zeros(width, np.int32)
    return Beside(np.zeros((4, width), np.int16), none, none, none)


@cache
def _no_linear():
    return Linear(np.zeros(0, np.int64), 0, 0, 0)
