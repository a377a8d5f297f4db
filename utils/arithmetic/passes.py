"""Passes over integer maps (B, H, W, C), each said twice: compiled for the CPU, in tensors for other devices.

Units: activations are int16 in 2^-6 ("fine": 2^-10, what distributions are made of); samples are int16 in
quarters of a step between integers, means and differences from them int32 in 2^-8 ("wide").
"""

import torch

from utils.arithmetic import kernels
from utils.arithmetic.integers import MIDDLE

ACTIVATION_BITS, FINE_BITS, WIDE_BITS, SAMPLE_BITS = 6, 10, 8, 2
INT16_MAX = 2**15 - 1
# What pixels, coefficients and means may be, in steps: clamped to this where networks see them.
INPUT_MAX = 2**12
WIDE_MAX, SAMPLE_MAX = INPUT_MAX << WIDE_BITS, INPUT_MAX << SAMPLE_BITS

_compiled = True


def compiled(wanted):
    """Whether CPU tensors take the compiled passes, as they do at first, or those of other devices."""
    global _compiled
    _compiled = wanted


def is_compiled(x):
    """Whether the passes over a map are compiled."""
    return _compiled and x.is_cpu


def map_of(x):
    """(B, C, H, W) -> (B, H, W, C), contiguous: a view of what is stored channels last. Inverse: image_of."""
    return x.permute(0, 2, 3, 1).contiguous()


def image_of(x):
    """(B, H, W, C) -> (B, C, H, W), a view, stored channels last."""
    return x.permute(0, 3, 1, 2)


def bordered(x, border):
    """Replicate the borders of (B, H, W, C): (rows, columns) of pixels on both sides."""
    rows, columns = border
    i = torch.arange(-rows, x.shape[1] + rows, device=x.device).clamp(0, x.shape[1] - 1)
    j = torch.arange(-columns, x.shape[2] + columns, device=x.device).clamp(0, x.shape[2] - 1)
    return x[:, i[:, None], j]


def samples_of(band, near, out):
    """out = what networks see of samples of images (B, H, W, C): in quarters around 0, or from `near` on.

    near: of this shape, what is subtracted, or None; out: of this shape, int16.
    """
    if is_compiled(band):
        near = out.new_zeros(1).expand(out.shape) if near is None else near
        arguments = band.detach().numpy(), near.numpy(), MIDDLE, INPUT_MAX, 1 << SAMPLE_BITS, SAMPLE_MAX
        kernels.samples_of(*arguments, out.numpy())
        return
    samples = ((band - MIDDLE).clamp(-INPUT_MAX, INPUT_MAX) * (1 << SAMPLE_BITS)).to(torch.int16)
    out.copy_(samples if near is None else (samples.int() - near).clamp(-SAMPLE_MAX, SAMPLE_MAX))


def quantise(x, half, shift, low, high, border, dtype, zero=0):
    """clamp(x + half >> shift, low, high) - zero, then `border` as of bordered; half, shift: (C,) int32."""
    if not is_compiled(x):
        return bordered((x.int() + half >> shift).clamp(low, high) - zero, border).to(dtype)
    batch, height, width, channels = x.shape
    out = x.new_empty((batch, height + 2 * border[0], width + 2 * border[1], channels), dtype=dtype)
    kernels.quantise(x.numpy(), half, shift, low, high, zero, border, out.numpy())
    return out


def requantise(sums, bias, left, right, out, onto=None):
    """out = clamp(onto + (sums + bias << left >> right), +-(2^15 - 1)); bias, left, right: (C,) int32.

    sums: (B, H, W, >= C), integers below 2^24 of any type; onto, out: (B, H, W, C) int16; None for onto: 0.
    """
    if not is_compiled(sums):
        y = sums[..., : len(bias)].int() + bias << left >> right
        out.copy_((y if onto is None else y + onto).clamp(-INT16_MAX, INT16_MAX))
        return
    channels = len(bias)
    flat = sums.reshape(-1, sums.shape[-1]).numpy(), bias, left, right
    if onto is None:
        kernels.requantise(*flat, out.view(-1, channels).numpy())
    else:
        kernels.requantise_onto(*flat, onto.view(-1, channels).numpy(), out.view(-1, channels).numpy())


def requantise_wide(sums, bias, scale, limit, out):
    """out = clamp(floor(scale (sums + bias)), +-limit), exact; bias, scale: (C,) float64, powers of two.

    sums: (B, H, W, C), integers below 2^53 of any type, or what join_bytes takes; out: int16 or int32.
    """
    channels = len(bias)
    if not is_compiled(sums):
        sums = join_bytes(sums, channels) if sums.dim() > out.dim() else sums.double()
        out.copy_(torch.floor((sums + bias) * scale).clamp(-limit, limit))
    elif sums.dim() > out.dim():
        parts = sums.reshape(len(sums), -1, sums.shape[-1]).numpy()
        join = kernels.requantise_halves if len(sums) > 1 else kernels.requantise_thirds
        join(parts, bias, scale, float(limit), out.view(-1, channels).numpy())
    else:
        flat = sums.reshape(-1, sums.shape[-1]).numpy()
        kernels.requantise_wide(flat, bias, scale, float(limit), out.view(-1, channels).numpy())


def halve_bytes(x, block, at_once):
    """High and low bytes of x (..., C), int16, none below 0, as uint8, and zeros up to a multiple of `block`.

    Returns a map of either, (2, ..., M), or, if `at_once`, one of both side by side, (1, ..., M).
    """
    count = x.shape[-1] * (2 if at_once else 1)
    channels = -(-count // block) * block
    if not is_compiled(x):
        halves = x >> 8, x & 255
        halves = torch.cat(halves, -1)[None] if at_once else torch.stack(halves)
        return torch.nn.functional.pad(halves, (0, channels - count)).to(torch.uint8)
    out = x.new_empty((1 if at_once else 2, *x.shape[:-1], channels), dtype=torch.uint8)
    kernels.halve_bytes(x.reshape(-1, x.shape[-1]).numpy(), out.view(len(out), -1, channels).numpy())
    return out


def join_bytes(parts, channels):
    """Sums (..., C) float64 from those of products of bytes, x = 256 h + l, W = 256 H + L.

    parts: (2, ..., 2 (>= C)), h H and h L, then l H and l L, or (1, ..., 3 (>= C)), h H, h L + l H, l L.
    """
    if not is_compiled(parts):
        if len(parts) > 1:
            (hh, hl), (lh, ll) = ([q[..., :channels] for q in half.long().chunk(2, -1)] for half in parts)
            middle = hl + lh
        else:
            hh, middle, ll = (q[..., :channels] for q in parts[0].long().chunk(3, -1))
        return (hh << 16) + (middle << 8) + ll
    out = parts.new_empty((*parts.shape[1:-1], channels), dtype=torch.float64)
    flat = parts.reshape(len(parts), -1, parts.shape[-1])
    kernels.join_bytes(flat.numpy(), out.view(-1, channels).numpy())
    return out


def compand(u):
    """sign(u) log2(1 + |u|), linear between powers of two: int32 (2^-8, below 2^15 steps) -> int16 (2^-6)."""
    if not is_compiled(u):
        bits = (u.abs() + 256).float().view(torch.int32) - int(kernels.COMPAND_BIAS)
        y = bits + (1 << int(kernels.COMPAND_SHIFT) - 1) >> int(kernels.COMPAND_SHIFT)
        return torch.where(u < 0, -y, y).to(torch.int16)
    out = torch.empty_like(u, dtype=torch.int16)
    kernels.compand(u.view(-1).numpy(), out.view(-1).numpy())
    return out


def sum_of_shares(shares, kernel, bias, left, right, limit):
    """clamp(bias + sum over taps t of shares_t[p + t] << left >> right, +-limit): (B, H, W, C) int32.

    shares: (B, H, W, taps * C), the taps' shares, row by row of the kernel, integers; borders replicated.
    kernel: (rows, columns); bias, left, right: (C,) int64.
    """
    rows, columns = kernel
    if is_compiled(shares):
        out = shares.new_empty((*shares.shape[:-1], len(bias)), dtype=torch.int32)
        kernels.sum_of_shares(shares.numpy(), kernel, bias, left, right, limit, out.numpy())
        return out
    height, width = shares.shape[1:3]
    parts = bordered(shares, (rows // 2, columns // 2)).long().unflatten(-1, (rows, columns, -1))
    total = sum(parts[:, i : i + height, j : j + width, i, j] for i in range(rows) for j in range(columns))
    return (total + bias << left >> right).clamp(-limit, limit).int()
