"""What layers in integers compute, in plain 64-bit integers: tap by tap, of whole maps, with floor division.

Maps are (B, H, W, C) of any integer type, as those of utils/arithmetic/fixed.py; all results are int64.
"""

import torch

from source.tables import SCALE
from source.units import SCALES


def bordered(x, rows, columns):
    """Replicate the borders of a map, row by row."""
    x = x.long()
    lines = [x[:, :1]] * rows + [x] + [x[:, -1:]] * rows
    x = torch.cat(lines, 1)
    return torch.cat([x[:, :, :1]] * columns + [x] + [x[:, :, -1:]] * columns, 2)


def scaled(total, exponent):
    """floor(total 2^-exponent), channel by channel."""
    e = exponent.long()
    return torch.div(total * 2 ** (-e).clamp(min=0), 2 ** e.clamp(min=0), rounding_mode="floor")


def activations(layer, x):
    """What a narrow layer reads of x: floor(x 2^-shift + 1/2), clamped."""
    unit = 2 ** layer.shift.long()
    rounded = torch.div(2 * x.long() + unit, 2 * unit, rounding_mode="floor")
    return rounded.clamp(layer.low, layer.high)


def sums(q, weight):
    """Sums of products over taps and channels, borders replicated; weight (out, C, rows, columns)."""
    rows, columns = weight.shape[2:]
    height, width = q.shape[1:3]
    padded, total = bordered(q, rows // 2, columns // 2), 0
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i : i + height, j : j + width]
            total = total + window @ weight[:, :, i, j].long().T
    return total


def conv(layer, x, onto=0):
    """FixedConv."""
    y = scaled(sums(activations(layer, x), layer.weight) + layer.bias.long(), layer.exponent)
    return (y + onto).clamp(-(2**15) + 1, 2**15 - 1)


def wide(layer, x):
    """FixedWide."""
    total = sums(x.long().clamp(layer.low, layer.high), layer.weight) + layer.bias
    return scaled(total, layer.exponent).clamp(-layer.limit, layer.limit)


def shares(layer, x):
    """FixedShares: the same convolution of what is positive."""
    total = sums(x.long().clamp(0, 2**15 - 1), layer.weight) + layer.bias
    return scaled(total, layer.exponent).clamp(-layer.limit, layer.limit)


def compand(u):
    """u in 2^-8 -> sign(u) log2(1 + |u|) in 2^-6, linear between powers of two, to the nearest."""
    v = u.long().abs() + 256
    power = torch.ones_like(v)
    octave = torch.zeros_like(v)
    for _ in range(24):
        octave = octave + (2 * power <= v)
        power = torch.where(2 * power <= v, 2 * power, power)
    y = 64 * (octave - 8) + torch.div(128 * (v - power) + power, 2 * power, rounding_mode="floor")
    return torch.where(u < 0, -y, y)


def conv_net(net, v):
    """FixedConvNet: (B, C, H, W) steps -> (B, out, H, W)."""
    x = wide(net.first, v.permute(0, 2, 3, 1))
    for layer in net.hidden:
        x = wide(layer, x)
    return shares(net.last, x).permute(0, 3, 1, 2)


def mixture_fields(outputs, mean):
    """Outputs (B, H, W, 3 K) in 2^-10, mean (B, H, W) in 2^-8 -> weights, means, scales: (K, B, 1, H, W).

    Four times an output is a base-2 logit, a mean in units of the scale, octaves; scales count 32 to the
    octave from 2^-6 on, means 2^-6 steps from a middle of 128. SCALE has scales in 2^-16 steps.
    """
    table = torch.from_numpy(SCALE).long()
    logits, offsets, octaves = outputs.long().unflatten(-1, (3, -1)).movedim(-1, 0).unbind(-1)
    # 4 / 2^10 of an octave for each, of 32 steps: an eighth
    scale = (torch.div(octaves + 4, 8, rounding_mode="floor") + 6 * 32).clamp(0, SCALES - 1)
    below = torch.div(logits.amax(0) - logits + 4, 8, rounding_mode="floor").clamp(max=SCALES - 1)
    weight = table[SCALES - 1 - below] // 2**10
    # in 2^-24 steps: means of 2^-8, outputs of 2^-8 scales of 2^-16
    total = mean.long() * 2**16 + offsets * table[scale] + 128 * 2**24
    means = torch.div(total + 2**17, 2**18, rounding_mode="floor")
    return tuple(field[:, :, None] for field in (weight, means, scale))


def look_beside(base, hidden, planes, first, channel, layers, out):
    """What the last layer of a channel reads, and its mean: see source/mixing.py. Samples count 2^-2."""
    width = out.weight.shape[1]
    mean, own = base[..., channel].long(), hidden[..., channel * width : (channel + 1) * width].long()
    if channel:
        beside, linear = layers
        r = (planes[..., first : first + channel].long() * 64 - base[..., :channel]).clamp(-(2**20), 2**20)
        known = compand(r)
        own = conv(beside, torch.cat([known, known.abs()], -1), onto=own)
        mean = mean + wide(linear, r)[..., 0]
    return activations(out, own), mean
