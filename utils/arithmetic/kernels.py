"""Compiled passes over integers, pixel by pixel, channels innermost: what lies between products of matrices.

Every pass releases the interpreter, so that threads take a tile each. passes.py says the same in tensors.
No two arguments of a pass may overlap: the loops would no longer be vectorised.
"""

import logging

import numba
import numpy as np
from numba.core import event

_compiled = numba.njit(cache=True, nogil=True)
_inlined = numba.njit(forceinline=True)

SMALL, LARGE = np.int32(-(2**15) + 1), np.int32(2**15 - 1)
# companded: units of 2^-6 from units of 2^-8, by the bits of a float32: 23 of fraction, a bias of 127
COMPAND_BIAS, COMPAND_SHIFT = np.int32(127 + 8 << 23), np.int32(23 - 6)
# of a float32: the bits of 1, and where the exponent is
ONE, EXPONENT = np.int32(127 << 23), np.int32(255 << 23)
PACKAGES = "flow", "source", "utils"


class _Told(event.Listener):
    """Says once that something of PACKAGES is compiled: the first run on a machine is silent for seconds.

    Of what others in the process compile, which numba tells as well, it says nothing.
    """

    told = False

    def on_start(self, found):
        module = found.data["dispatcher"].py_func.__module__ or ""
        if not self.told and module.partition(".")[0] in PACKAGES:
            self.told = True
            logging.getLogger("flow").warning("compiling for this machine, once: some 30 seconds")

    def on_end(self, found):
        pass


event.register("numba:compile", _Told())


@_compiled
def quantise(x, half, shift, low, high, zero, border, out):
    """out = clamp(x + half >> shift, low, high) - zero; border: (rows, columns) replicated on both sides.

    x: (B, H, W, C), integers; half, shift: (C,) int32; out: (B, H + 2 rows, W + 2 columns, C), any type.
    """
    above, before = border
    for b in range(x.shape[0]):
        for i in range(out.shape[1]):
            row = min(max(i - above, 0), x.shape[1] - 1)
            for j in range(out.shape[2]):
                column = min(max(j - before, 0), x.shape[2] - 1)
                for c in range(x.shape[3]):
                    value = np.int32(x[b, row, column, c]) + half[c] >> shift[c]
                    out[b, i, j, c] = min(max(value, low), high) - zero


@_compiled
def samples_of(band, near, middle, input_max, unit, sample_max, out):
    """out = clamp(unit clamp(band - middle, +-input_max) - near, +-sample_max), all (B, H, W, C).

    band: integer-valued, of any type; near, out: int16.
    """
    for b in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                for c in range(out.shape[3]):
                    value = min(max(band[b, i, j, c] - middle, -input_max), input_max)
                    sample = unit * np.int32(value) - near[b, i, j, c]
                    out[b, i, j, c] = min(max(sample, -sample_max), sample_max)


@_compiled
def unfold(padded, width, rows, out):
    """Neighbourhoods of pixels as rows of `out`, (N, rows * segment): a segment of each of `rows` rows.

    padded: (H + rows - 1, (W + columns - 1) * C), any type; width: W.
    """
    segment = out.shape[1] // rows
    channels = (padded.shape[1] - segment) // max(width - 1, 1)
    for n in range(out.shape[0]):
        i, start = n // width, n % width * channels
        for row in range(rows):
            for k in range(segment):
                out[n, row * segment + k] = padded[i + row, start + k]


@_compiled
def requantise(sums, bias, left, right, out):
    """out = clamp(sums + bias << left >> right, +-(2^15 - 1)).

    sums: (N, M >= C), integers below 2^24 of any type; bias, left, right: (C,) int32; out: (N, C) int16.
    """
    for n in range(out.shape[0]):
        for c in range(out.shape[1]):
            value = np.int32(sums[n, c]) + bias[c] << left[c] >> right[c]
            out[n, c] = min(max(value, SMALL), LARGE)


@_compiled
def requantise_onto(sums, bias, left, right, ground, out):
    """out = clamp(ground + (sums + bias << left >> right), +-(2^15 - 1)); ground: (N, C) int16."""
    for n in range(out.shape[0]):
        for c in range(out.shape[1]):
            value = np.int32(ground[n, c]) + (np.int32(sums[n, c]) + bias[c] << left[c] >> right[c])
            out[n, c] = min(max(value, SMALL), LARGE)


@_compiled
def requantise_wide(sums, bias, scale, limit, out):
    """out = clamp(floor(scale (sums + bias)), +-limit): exact, for integers below 2^53 and powers of two.

    sums: (N, C), integers of any type; bias, scale: (C,) float64; limit: float64; out: int16 or int32.
    """
    for n in range(out.shape[0]):
        for c in range(out.shape[1]):
            value = np.floor((np.float64(sums[n, c]) + bias[c]) * scale[c])
            out[n, c] = np.int32(min(max(value, -limit), limit))


@_compiled
def halve_bytes(x, out):
    """High bytes of x and low ones, in maps of their own or side by side, then 0; x: (N, C) int16, >= 0.

    out: (2, N, >= C) uint8, or (1, N, >= 2 C).
    """
    channels, parts = x.shape[1], out.shape[0]
    start = channels if parts == 1 else 0
    for n in range(x.shape[0]):
        high, low = out[0, n], out[parts - 1, n]
        for c in range(channels):
            high[c] = x[n, c] >> np.int16(8)
            low[start + c] = x[n, c] & np.int16(255)
        for c in range(start + channels, high.size):
            high[c] = low[c] = 0


@_inlined
def joined(hh, middle, ll):
    """A sum of products x W, x = 256 h + l, W = 256 H + L, from those of h H, h L + l H, l L: below 2^53."""
    return np.float64(hh) * 65536.0 + np.float64(middle) * 256.0 + np.float64(ll)


@_compiled
def join_bytes(parts, out):
    """Sums of products of bytes, integers of any type, to sums, (N, C) float64.

    parts: (2, N, 2 (>= C)), h H and h L, then l H and l L, or (1, N, 3 (>= C)), h H, h L + l H, l L.
    """
    for n in range(out.shape[0]):
        line = out[n]
        if parts.shape[0] == 2:
            half = parts.shape[2] // 2
            high, low = parts[0, n], parts[1, n]
            for c in range(line.size):
                middle = np.float64(high[half + c]) + np.float64(low[c])
                line[c] = joined(high[c], middle, low[half + c])
        else:
            third, sums = parts.shape[2] // 3, parts[0, n]
            for c in range(line.size):
                line[c] = joined(sums[c], sums[third + c], sums[2 * third + c])


@_compiled
def requantise_halves(parts, bias, scale, limit, out):
    """requantise_wide of what join_bytes makes of the parts, (2, N, 2 (>= C))."""
    half = parts.shape[2] // 2
    for n in range(out.shape[0]):
        hh, hl, lh, ll = parts[0, n, :half], parts[0, n, half:], parts[1, n, :half], parts[1, n, half:]
        line = out[n]
        for c in range(line.size):
            total = joined(hh[c], np.float64(hl[c]) + np.float64(lh[c]), ll[c])
            value = np.floor((total + bias[c]) * scale[c])
            line[c] = np.int32(min(max(value, -limit), limit))


@_compiled
def requantise_thirds(parts, bias, scale, limit, out):
    """requantise_wide of what join_bytes makes of the parts, (1, N, 3 (>= C))."""
    third = parts.shape[2] // 3
    for n in range(out.shape[0]):
        hh, middle, ll = parts[0, n, :third], parts[0, n, third : 2 * third], parts[0, n, 2 * third :]
        line = out[n]
        for c in range(line.size):
            value = np.floor((joined(hh[c], middle[c], ll[c]) + bias[c]) * scale[c])
            line[c] = np.int32(min(max(value, -limit), limit))


@_inlined
def companded(u):
    """sign(u) log2(1 + |u|), linear between powers of two, to the nearest; u in 2^-8, |u| < 2^23, in 2^-6."""
    bits = np.float32(abs(u) + np.int32(256)).view(np.int32) - COMPAND_BIAS
    y = bits + (np.int32(1) << COMPAND_SHIFT - np.int32(1)) >> COMPAND_SHIFT
    return y if u >= 0 else -y


@_compiled
def compand(u, out):
    """out = companded u; u: (N,) int32; out: (N,) int16."""
    for n in range(u.size):
        out[n] = companded(u[n])


@_compiled
def _upper_half(bits):
    """The bits of a float32 as those of the nearest bfloat16, of two as near the even one."""
    return bits + np.int32(0x7FFF) + (bits >> np.int32(16) & np.int32(1)) >> np.int32(16)


@_compiled
def _as_float32(bits):
    """The float32 that a bfloat16 of these bits is."""
    return np.int32(np.int32(bits) << np.int32(16)).view(np.float32)


@_compiled
def compand_to_bfloat16(u, out):
    """out = sign(u) log2(1 + |u|), linear between powers of two; u: (N,) float32; out: (N,) int16, bits."""
    for n in range(u.size):
        bits = np.float32(abs(u[n]) + np.float32(1)).view(np.int32) - ONE
        y = np.float32(np.float32(bits) * np.float32(2.0**-23)).view(np.int32)
        out[n] = _upper_half(y) | (np.float32(u[n]).view(np.int32) >> np.int32(16) & np.int32(-(2**15)))


@_compiled
def slopes_of_compand(u, gradient, out):
    """out = gradient times the slope at u; u, out: (N,) float32; gradient: (N,) int16, bits of a bfloat16."""
    for n in range(u.size):
        exponent = np.float32(abs(u[n]) + np.float32(1)).view(np.int32) & EXPONENT
        slope = np.int32(np.int32(2) * ONE - exponent).view(np.float32)
        out[n] = _as_float32(gradient[n]) * slope


@_compiled
def rectified_pad(x, out):
    """out = ReLU(x), borders replicated; x (B, H, W, C), out (B, H + 2, W + 2, C) int16, bits of bfloat16."""
    batch, height, width, channels = x.shape
    for b in range(batch):
        for i in range(height + 2):
            row = min(max(i - 1, 0), height - 1)
            for j in range(width + 2):
                column = min(max(j - 1, 0), width - 1)
                for c in range(channels):
                    bits = x[b, row, column, c]
                    # below 0, down to minus infinity, but not the NaN with a sign
                    out[b, i, j, c] = bits if bits > -128 else 0


@_compiled
def gradient_of_rectified_pad(gradient, y, out):
    """The adjoint of rectified_pad: gradient and y, what it gave, (B, H + 2, W + 2, C), out (B, H, W, C)."""
    batch, height, width, channels = out.shape
    rows, columns = np.empty((width + 2, channels), np.int16), np.empty(channels, np.int16)
    for b in range(batch):
        for i in range(height):
            here = gradient[b, i + 1]
            if i == 0 or i == height - 1:
                rows[:] = here
                here = rows
                if i == 0:
                    _add_bfloat16(here.reshape(-1), gradient[b, 0].reshape(-1))
                if i == height - 1:
                    _add_bfloat16(here.reshape(-1), gradient[b, height + 1].reshape(-1))
            for j in range(width):
                values = here[j + 1]
                if j == 0 or j == width - 1:
                    columns[:] = values
                    values = columns
                    if j == 0:
                        _add_bfloat16(values, here[0])
                    if j == width - 1:
                        _add_bfloat16(values, here[width + 1])
                for c in range(channels):
                    out[b, i, j, c] = values[c] if y[b, i + 1, j + 1, c] != 0 else 0


@_compiled
def _add_bfloat16(x, y):
    """x += y, (N,) int16, bits of a bfloat16."""
    for n in range(x.size):
        one, other = _as_float32(x[n]), _as_float32(y[n])
        x[n] = _upper_half(np.float32(one + other).view(np.int32))


@_compiled
def sum_of_shares(shares, kernel, bias, left, right, limit, out):
    """out[p] = clamp(bias + sum over taps t of shares_t[p + t] << left >> right, +-limit).

    shares: (B, H, W, rows * columns * C), integers, borders replicated; kernel: (rows, columns).
    out: (B, H, W, C) int32.
    """
    rows, columns = kernel
    batch, height, width, channels = out.shape
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    total, k = bias[c], c
                    for di in range(rows):
                        row = min(max(i + di - rows // 2, 0), height - 1)
                        for dj in range(columns):
                            column = min(max(j + dj - columns // 2, 0), width - 1)
                            total += np.int64(shares[b, row, column, k])
                            k += channels
                    out[b, i, j, c] = min(max(total << left[c] >> right[c], -limit), limit)


@_compiled
def mix(outputs, mean, table, units, weights, means, scales):
    """Outputs (N, 3 K) int16 and means (N,) int32 to mixtures, (K, N) int32 each: see source/mixing.py.

    units: a MixingUnits, of which nothing is compiled in, as numba's cache does not notice changes elsewhere.
    """
    half = np.int64(1) << units.step_shift - 1
    components = weights.shape[0]
    for n in range(outputs.shape[0]):
        most = np.int64(outputs[n, 0])
        for k in range(1, components):
            most = max(most, np.int64(outputs[n, k]))
        ground = (np.int64(mean[n]) << units.wide_left) + units.middle + (np.int64(1) << units.mean_shift - 1)
        for k in range(components):
            below = min(most - outputs[n, k] + half >> units.step_shift, units.last_scale)
            weights[k, n] = table[np.uint64(units.last_scale - below)] >> units.weight_shift
            scale = (np.int64(outputs[n, 2 * components + k]) + half >> units.step_shift) + units.first_scale
            scale = min(max(scale, 0), units.last_scale)
            scales[k, n] = scale
            offset = np.int64(outputs[n, components + k]) * np.int64(table[np.uint64(scale)])
            means[k, n] = ground + offset >> units.mean_shift


@_compiled
def look_beside(base, hidden, planes, first, channel, beside, linear, half, shift, high, units, q, mean):
    """What a channel's last layer reads, q (N, width) uint8, its mean (N,) int32: see source/mixing.py.

    Of the channels known there are two at most.
    """
    width, high, two = q.shape[1], np.int32(high), channel > 1
    start = channel * width
    for n in range(q.shape[0]):
        line, ground = q[n], hidden[n, start : start + width]
        mean[n] = base[n, channel]
        if channel == 0:
            for h in range(width):
                value = np.int32(ground[h] + half[h])
                line[h] = np.uint8(min(max(value >> shift[h], np.int32(0)), high))
            continue
        r, s = _left(base, planes, first, n, 0, units), np.int32(0)
        summed = linear.offset + linear.weights[0] * np.int64(r)
        if two:
            s = _left(base, planes, first, n, 1, units)
            summed += linear.weights[1] * np.int64(s)
        mean[n] += min(max(summed >> linear.exponent, -linear.limit), linear.limit)
        r, s = np.int32(companded(r)), np.int32(companded(s))
        of_r, of_s = beside.weight[np.uint64(r < 0)], beside.weight[np.uint64(2 + (s < 0))]
        for h in range(width):
            total = np.int32(beside.bias[h] + np.int32(of_r[h]) * r + np.int32(of_s[h]) * s)
            value = np.int32(ground[h] + np.int32(np.int32(total << beside.left[h]) >> beside.right[h]))
            value = min(max(value, SMALL), LARGE)
            line[h] = np.uint8(min(max(np.int32(value + half[h]) >> shift[h], np.int32(0)), high))


@_inlined
def _left(base, planes, first, n, channel, units):
    """What the n-th sample of a channel leaves of its mean, wide, within what networks see."""
    r = (np.int32(planes[n, first + channel]) << np.int32(units.sample_shift)) - base[n, channel]
    return min(max(r, np.int32(-units.wide_max)), np.int32(units.wide_max))
