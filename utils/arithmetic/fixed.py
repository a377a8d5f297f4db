"""Layers in integers: the same integers for any order of summation, hence on any machine.

Float networks give other last digits with other thread counts, batch sizes and devices; one rounding that
falls the other way, and a decoder reads garbage. Here weights and activations are integers. A layer is
    y = floor(2^-e (W q + b)),   q = clamp(floor(2^-s x + 1/2), low, high)
with W of 8 bits, s for each channel that it reads and e for each that it writes; the 1/2 of the last rounding
is in b. Every partial sum of W q + b, in any order, is below 2^24: float32 and int32 hold it. The few small
layers that see pixels and means are wider, below 2^53. Both bounds are computed from the weights when they
are frozen, and again when they are read (`check`), not hoped for.

To freeze a network is to choose powers of two: for activations from their peaks on images (`observe`), for
weights from the largest of each output channel. Weights of 8 bits are rounded one after the other, so that
those that are left make up for what went wrong with what they have in common (GPTQ); what rounding does to
the mean of what they give, biases take back.
Source: arXiv 2210.17323, section 3, and arXiv 1906.04721, section 4.2.
"""

from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

import torch
from torch import nn

from utils.arithmetic import passes, products
from utils.arithmetic.passes import ACTIVATION_BITS, SAMPLE_MAX, WIDE_MAX

WEIGHT_MAX, WIDE_WEIGHT_MAX = 2**7 - 1, 2**15 - 129
EXACT, WIDE_EXACT = 2**24, 2**53
# Shifts to the left: sums below 2^24 stay below 2^31. To the right: all bits are gone before.
LEFT_MAX, RIGHT_MAX = 6, 30
WIDE_RIGHT_MAX, SHIFT_MAX = 60, 15
# Bits after the point of a bias that stands alone.
WEIGHTLESS = 15
# What a channel is taken to reach that no image reached, such as in levels of which the images have too few.
UNSEEN_PEAK = 16.0
# Of how many places of a map moments are taken, whenever a layer reads one.
PLACES = 2**12
# What is added to the variances of what kernels read, a part of their mean: images do not tell all there is.
RIDGE = 0.01


def _real(*tensors):
    """Weights and biases to freeze, as float64 on the CPU. Raises ValueError if they are not finite."""
    check_finite(*tensors)
    return [t.detach().double().cpu() for t in tensors]


def check_finite(*tensors):
    """Raise ValueError if there is a value that is infinite or no number."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError("these weights are not finite")


def _too_large():
    return ValueError("these weights are too large to be frozen: a sum could pass what is exact")


class Seen(NamedTuple):
    """What a layer read, channel by channel: the largest absolute values, and the sums of `count` values.

    peak, total: (C,) float64. moments: (n + 1, n + 1) float64, of what its kernel reads at some places, n
    values and a 1, the sum of products of any two; None for layers of wide weights, which do without.
    """

    peak: torch.Tensor
    total: torch.Tensor
    count: int
    moments: torch.Tensor | None = None

    def __add__(self, other):
        moments = None if self.moments is None else self.moments + other.moments
        peak = torch.maximum(self.peak, other.peak)
        return Seen(peak, self.total + other.total, self.count + other.count, moments)


def _moments(x, kernel):
    """The moments of what a kernel (rows, columns) reads of x (B, C, H, W), borders replicated: see Seen."""
    (rows, columns), (height, width), count = kernel, x.shape[2:], x[:, 0].numel()
    # an odd stride meets all columns
    places = torch.arange(0, count, max(count // PLACES, 1) | 1, device=x.device)
    image, top, left = places // (height * width), places // width % height, places % width
    top, left = top - rows // 2, left - columns // 2
    taps = [
        x[image, :, (top + i).clamp(0, height - 1), (left + j).clamp(0, width - 1)]
        for i in range(rows)
        for j in range(columns)
    ]
    read = torch.stack(taps, 2).flatten(1).float()
    read = torch.cat([read, torch.ones_like(read[:, :1])], 1)
    return (read.T @ read).double()


@contextmanager
def observe(model):
    """Within: what each convolution reads, of what ReLU before it lets through: module -> Seen."""
    seen = {}

    def look(layer, inputs):
        x = inputs[0].detach()
        x = x.relu() if getattr(layer, "rectify", False) else x
        moments = None if getattr(layer, "precise", True) else _moments(x, layer.kernel_size)
        peak, total = x.abs().amax((0, 2, 3)).double(), x.sum((0, 2, 3)).double()
        now = Seen(peak, total, x[:, 0].numel(), moments)
        seen[layer] = seen[layer] + now if layer in seen else now

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if hasattr(m, "in_channels")]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def seen_of(layer, peaks):
    """What a layer reads, on the CPU, from what `observe` saw, or else a guess: Seen, of peaks above 0."""
    seen = (peaks or {}).get(layer)
    if seen is None:
        peak = torch.full((layer.in_channels,), UNSEEN_PEAK, dtype=torch.float64)
        return Seen(peak, torch.zeros_like(peak), 1)
    peak, total = seen.peak.cpu(), seen.total.cpu()
    moments = None if seen.moments is None else seen.moments.cpu()
    return Seen(torch.where(peak > 0, peak, 1.0), total, seen.count, moments)


def floor_log2(x):
    """floor(log2(x)) of positive values, exact: int64."""
    return torch.frexp(x)[1].long() - 1


def units_for(peak, high):
    """The largest u for which peak * 2^u is at most `high`, for each channel: values then count 2^-u."""
    return floor_log2(high / peak)


def _power(exponent):
    return torch.ldexp(
        torch.ones(exponent.shape, dtype=torch.float64, device=exponent.device), exponent.long()
    )


def _covariance(seen, unit):
    """The covariance of what a kernel reads, in units (C,), as _rounded takes it, or None: (n, n) float64."""
    if seen.moments is None:
        return None
    moments = seen.moments / seen.moments[-1, -1]
    mean, squares = moments[-1, :-1], moments[:-1, :-1]
    scale = 1 / unit.repeat_interleave(len(mean) // len(unit))
    covariance = (squares - mean * mean[:, None]) * scale * scale[:, None]
    # what has no variance is rounded by itself
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-9)
    return covariance + ridge * torch.eye(len(mean), dtype=torch.float64)


def _in_turn(covariance):
    """In which order weights are to be rounded, the largest variance first, and how errors are made up for.

    (n,), and (n, n): row i has what weights after the i-th change by, for each of its own entry.
    """
    order = covariance.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance[order][:, order]))
    return order, torch.linalg.cholesky(inverse, upper=True)


def _rounded(rows, largest, turns):
    """Weights (M, n) -> integers up to `largest`: by themselves, or one after the other: see _in_turn."""
    if turns is None:
        return torch.round(rows).clamp(-largest, largest)
    order, factor = turns
    left, whole = rows[:, order].T.contiguous(), torch.empty_like(rows)
    for i, column in enumerate(order):
        now = torch.round(left[i]).clamp(-largest, largest)
        left[i + 1 :].addr_(factor[i, i + 1 :], (left[i] - now) / factor[i, i], alpha=-1)
        whole[:, column] = now
    return whole


def _round_weights(weight, bias, largest, reach, exact, mean=0.0, covariance=None):
    """Real weights (M, C, ..), biases (M,) -> integers W, exponents k, integers b: W 2^-k, b 2^-k for real.

    largest: of |W|; reach: of |q|. k is the greatest for which sum |W| reach + |b| stays below `exact` and no
    weight is cut off, or one more where that pays.
    mean: of q, (C, 1, 1): b has what rounding W takes off for it. covariance: of what a kernel reads, (n, n).
    """
    rows = weight.flatten(1)
    size, mean = rows.abs().amax(1), torch.as_tensor(mean, dtype=rows.dtype).expand_as(weight[0]).flatten()
    most = RIGHT_MAX if exact == EXACT else WIDE_RIGHT_MAX - 15
    turns = None if covariance is None else _in_turn(covariance)

    def at(k):
        scale = _power(k)
        whole = _rounded(rows * scale[:, None], largest, turns)
        left = rows - whole / scale[:, None]
        b = torch.round((bias + left @ mean) * scale)
        over = whole.abs().sum(1) * reach + b.abs() + _power(k.clamp(min=0)) >= exact
        return whole, k, b, over, left

    k = torch.where(size > 0, floor_log2(largest / size.clamp(min=1e-30)), WEIGHTLESS).clamp(max=most)
    for _ in range(64):
        *found, over, left = at(k)
        if not over.any():
            break
        k = k - over.long()
    else:
        raise _too_large()
    if covariance is not None:
        *finer, over, less = at((k + 1).clamp(max=most))
        pays = ~over & ((less @ covariance * less).sum(1) < (left @ covariance * left).sum(1))
        found = [torch.where(pays.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in zip(found, finer)]
    whole, k, b = found
    return whole.view_as(weight), k, b


def _halved(bias, exponent):
    """b with the 1/2 of the rounding, where something is shifted out."""
    return bias + torch.where(exponent > 0, _power(exponent - 1), 0.0)


def narrowest(low, high):
    """The type of activations: uint8, by which 8-bit arithmetic is chosen, or int16."""
    return torch.uint8 if low == 0 and high <= 255 else torch.int16


class Fixed(nn.Module):
    """What layers in integers share: weight, bias, and the exponent e of each output channel, in buffers.

    Maps are (B, H, W, C) and contiguous. Here a layer is what is stored; what passes take of it is made once.
    """

    def __init__(self, shape, weight_type, bias_type):
        super().__init__()
        self.register_buffer("weight", torch.zeros(shape, dtype=weight_type))
        self.register_buffer("bias", torch.zeros(shape[0], dtype=bias_type))
        self.register_buffer("exponent", torch.zeros(shape[0], dtype=torch.int8))
        self._made = {}

    def _fill(self, **values):
        for name, value in values.items():
            getattr(self, name).copy_(value)
        self.check()
        return self

    def once(self, key, make):
        """What make() gives, kept until the layer changes; key: what it is for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def tables(self, x):
        """The integers that passes over a map take: arrays where these are compiled, or else tensors."""
        if passes.is_compiled(x):
            return self.once("arrays", lambda: tuple(t.numpy() for t in self._tables()))
        return self.once("tensors", self._tables)

    def _apply(self, function, recurse=True):
        self._made = {}
        return super()._apply(function, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._made = {}
        return super()._load_from_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo):
        # copies may be moved, but share their weights, and what was made of these alone
        other = copy(self)
        other._buffers = {n: t if n == "weight" else t.clone() for n, t in self._buffers.items()}
        other._forget_biases()
        return other

    def _forget_biases(self):
        kept = *products.WAYS, "packed"
        self._made = {key: made for key, made in self._made.copy().items() if key in kept}

    @property
    def kernel(self):
        """(rows, columns) of the kernel."""
        return tuple(self.weight.shape[2:])

    @property
    def border(self):
        """(rows, columns) that the kernel needs around a map."""
        return self.weight.shape[2] // 2, self.weight.shape[3] // 2


class FixedConv(Fixed):
    """A convolution of kernel size 1 or 3 by 8-bit weights: see the module. It reads and writes int16.

    low, high: what activations are clamped to; where high is 255, 8-bit arithmetic serves.
    """

    def __init__(self, shape, low=0, high=255):
        super().__init__(shape, torch.int8, torch.int32)
        self.low, self.high = low, high
        self.register_buffer("shift", torch.zeros(shape[1], dtype=torch.int8))

    @classmethod
    def of(cls, weight, bias, seen, low=0, high=255, units=ACTIVATION_BITS, out_units=ACTIVATION_BITS):
        """Freeze weights (out, C, k, k) and biases (out,). Raises ValueError if they are too large.

        seen: Seen, of what it reads; x counts 2^-units, y 2^-out_units.
        """
        weight, bias = _real(weight, bias)
        shift = (units - units_for(seen.peak, high)).clamp(0, SHIFT_MAX)
        unit = _power(shift - units)
        mean, covariance = seen.total / seen.count / unit, _covariance(seen, unit)
        reach, scaled = max(high, -low), weight * unit.view(-1, 1, 1)
        whole, k, b = _round_weights(scaled, bias, WEIGHT_MAX, reach, EXACT, mean.view(-1, 1, 1), covariance)
        # what is left after a shift by more bits than there are is a sign, as after RIGHT_MAX
        exponent = (k - torch.as_tensor(out_units)).clamp(max=RIGHT_MAX)
        if exponent.min() < -LEFT_MAX:
            raise _too_large()
        integers = dict(weight=whole, bias=_halved(b, exponent), exponent=exponent, shift=shift)
        return cls(weight.shape, low, high)._fill(**integers)

    def check(self):
        """Raise ValueError unless every partial sum, in any order, is exact in float32 and int32."""
        sums = self.weight.long().abs().flatten(1).sum(1) * max(self.high, -self.low)
        exponent, shift = self.exponent.long(), self.shift.long()
        if (sums + self.bias.long().abs()).max() >= EXACT:
            raise _too_large()
        if (
            exponent.min() < -LEFT_MAX
            or exponent.max() > RIGHT_MAX
            or shift.min() < 0
            or shift.max() > SHIFT_MAX
        ):
            raise ValueError("damaged: a shift by more bits than there are")

    def _tables(self):
        exponent, shift = self.exponent.int(), self.shift.int()
        return (1 << shift) >> 1, shift, self.bias, (-exponent).clamp(min=0), exponent.clamp(min=0)

    def quantise(self, x):
        """x (B, H, W, C) -> activations (B, H', W', C), borders in place."""
        kind = narrowest(self.low, self.high)
        return passes.quantise(x, *self.tables(x)[:2], self.low, self.high, self.border, kind)

    def move(self, steps):
        """Add `steps` (out,), int64, to y, rounded down where y is shifted to the left.

        Raises ValueError if a sum could pass what is exact.
        """
        exponent = self.exponent.long()
        bias = self.bias + (steps.to(exponent) << exponent.clamp(min=0) >> (-exponent).clamp(min=0))
        if bias.abs().max() >= EXACT:
            raise _too_large()
        self._forget_biases()
        self._fill(bias=bias)

    def convolve(self, q, onto=None):
        """Activations q -> y (B, H, W, out) int16, added to `onto`, of that shape, if it is given."""
        (rows, columns), out = self.kernel, len(self.bias)
        batch, height, width = q.shape[0], q.shape[1] - rows + 1, q.shape[2] - columns + 1
        if q.dtype == torch.uint8:
            little = batch * height * width * self.weight.numel() < products.LITTLE
            way = products.choose(q.device, False, little)
        else:
            way = products.WAYS["float32-product"]
        prepared = self.once(way.name, lambda: way.prepare(self.weight))
        tables = self.tables(q)[2:]
        y = q.new_empty((batch, height, width, out), dtype=torch.int16)
        pieces = products.pieces(batch, height, width, max(way.bytes * self.weight[0].numel(), 4 * out))
        for images, lines in pieces:
            sums = way.run(q[images, lines.start : lines.stop + rows - 1], prepared, (rows, columns))
            passes.requantise(sums, *tables, y[images, lines], None if onto is None else onto[images, lines])
        return y

    def forward(self, x, onto=None):
        """x (B, H, W, C) int16 -> y (B, H, W, out) int16, added to `onto` if that is given."""
        return self.convolve(self.quantise(x), onto)


class FixedWide(Fixed):
    """A convolution of pixels and means, or where a network has no way around it: weights of 16 bits.

    x: int16 or int32, clamped to low .. high; y clamped to +-limit: int16, if that is within, or int32.
    """

    def __init__(self, shape, low=-SAMPLE_MAX, high=SAMPLE_MAX - 1, limit=WIDE_MAX):
        super().__init__(shape, torch.int16, torch.int64)
        self.low, self.high, self.limit = low, high, limit

    @classmethod
    def of(cls, weight, bias, low, high, limit, units, out_units):
        """Freeze weights (out, C, rows, columns) and biases (out,); units, out_units: as of FixedConv."""
        weight, bias = _real(weight, bias)
        columns = weight * _power(-torch.as_tensor(units).expand(weight.shape[1])).view(1, -1, 1, 1)
        whole, k, b = _round_weights(columns, bias, WIDE_WEIGHT_MAX, high - low, WIDE_EXACT)
        exponent = k - torch.as_tensor(out_units)
        if exponent.min() < 0:
            raise _too_large()
        integers = dict(weight=whole, bias=_halved(b, exponent), exponent=exponent)
        return cls(weight.shape, low, high, limit)._fill(**integers)

    def check(self):
        """Raise ValueError unless every partial sum, in any order, is exact in float64."""
        sums = self.weight.double().abs().flatten(1).sum(1) * 2 * (self.high - self.low)
        if (sums + self.bias.double().abs()).max() >= WIDE_EXACT or self.weight.max() > WIDE_WEIGHT_MAX:
            raise _too_large()
        if self.exponent.min() < 0 or self.exponent.max() > WIDE_RIGHT_MAX:
            raise ValueError("damaged: a shift by more bits than there are")

    def _tables(self):
        none = torch.zeros_like(self.weight[0, :, 0, 0], dtype=torch.int32)
        # x is read from low on, so that it has no sign
        bias = self.bias.double() + self.low * self.weight.double().flatten(1).sum(1)
        return none, none, bias, _power(-self.exponent)

    def forward(self, x):
        """x (B, H, W, C) -> y (B, H, W, out)."""
        (rows, columns), out = self.kernel, len(self.bias)
        none, _, bias, scale = self.tables(x)
        if self.high - self.low <= passes.INT16_MAX:
            little = x[..., 0].numel() * self.weight.numel() < products.LITTLE
            kind, way = torch.int16, products.choose(x.device, True, little, self.weight[0].numel())
        else:
            kind, way = torch.float64, products.WAYS["float64-product"]
        prepared = self.once(way.name, lambda: way.prepare(self.weight))
        q = passes.quantise(x, none, none, self.low, self.high, self.border, kind, self.low)
        y = x.new_empty(
            (*x.shape[:3], out), dtype=torch.int16 if self.limit <= passes.INT16_MAX else torch.int32
        )
        for images, lines in products.pieces(*x.shape[:3], max(way.bytes * self.weight[0].numel(), 16 * out)):
            sums = way.run(q[images, lines.start : lines.stop + rows - 1], prepared, (rows, columns))
            passes.requantise_wide(sums, bias, scale, self.limit, y[images, lines])
        return y


class FixedShares(Fixed):
    """A wide convolution with few output channels: the sum of its taps' shares at every pixel.

    x: int16, of which clamp(x, 0, 2^15 - 1) counts; y: int32, clamped to +-limit.
    """

    def __init__(self, shape, limit):
        super().__init__(shape, torch.int16, torch.int64)
        self.limit = limit

    @classmethod
    def of(cls, weight, bias, units, limit):
        """Freeze weights (out, C, rows, columns), biases (out,); x counts 2^-units, y ones."""
        weight, bias = _real(weight, bias)
        columns = weight * _power(-torch.as_tensor(units)).view(1, -1, 1, 1)
        whole, k, b = _round_weights(columns, bias, WIDE_WEIGHT_MAX, passes.INT16_MAX, WIDE_EXACT)
        if k.min() < -LEFT_MAX:
            raise _too_large()
        return cls(weight.shape, limit)._fill(weight=whole, bias=_halved(b, k), exponent=k)

    def check(self):
        """Raise ValueError unless every partial sum, in any order, is exact in float64."""
        sums = self.weight.double().abs().flatten(1).sum(1) * passes.INT16_MAX
        if (sums + self.bias.double().abs()).max() >= WIDE_EXACT or self.weight.max() > WIDE_WEIGHT_MAX:
            raise _too_large()
        if self.exponent.min() < -LEFT_MAX or self.exponent.max() > WIDE_RIGHT_MAX:
            raise ValueError("damaged: a shift by more bits than there are")

    def _tables(self):
        exponent = self.exponent.long()
        return self.bias, (-exponent).clamp(min=0), exponent.clamp(min=0)

    def forward(self, x):
        """x (B, H, W, C) -> y (B, H, W, out)."""
        little = x[..., 0].numel() * self.weight.numel() < products.LITTLE
        way = products.choose(x.device, True, little, x.shape[-1])
        taps = self.weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]
        shares = way.run(x.clamp(min=0), self.once(way.name, lambda: way.prepare(taps)), (1, 1))
        shares = passes.join_bytes(shares, len(taps)) if shares.dim() > x.dim() else shares
        return passes.sum_of_shares(shares, self.kernel, *self.tables(x), self.limit)
