"""Layers in integers: the same integers for any order of summation, hence on any machine.

Float networks give other last digits with other thread counts, batch sizes and devices; one rounding that
falls the other way, and a decoder reads garbage. Here weights and activations are integers. A layer is
    y = floor(2^-e (W q + b)),   q = clamp(floor(2^-s x + 1/2), low, high)
with W of 8 bits, s for each channel that it reads and e for each that it writes; the 1/2 of the last rounding is
in b. Every partial sum of W q + b, in any order, is below 2^24: float32 and int32 hold it. The few small layers
that see pixels and means are wider, below 2^53. Both bounds are computed from the weights when they are frozen,
and again when they are read (`check`), not hoped for.

To freeze a network is to choose powers of two: for activations from their peaks on images (`observe`), for
weights from the largest of each output channel.
"""

from contextlib import contextmanager

import torch
from torch import nn

from utils.arithmetic import passes, products
from utils.arithmetic.passes import ACTIVATION_BITS, WIDE_BITS, WIDE_MAX

WEIGHT_MAX, WIDE_WEIGHT_MAX = 2**7 - 1, 2**15 - 1
EXACT, WIDE_EXACT = 2**24, 2**53
# Shifts to the left: sums below 2^24 stay below 2^31. To the right: all bits are gone before.
LEFT_MAX, RIGHT_MAX = 6, 30
WIDE_RIGHT_MAX, SHIFT_MAX = 60, 15
# Bits after the point of a bias that stands alone.
WEIGHTLESS = 15
# What a channel is taken to reach that no image reached, such as in levels of which the images have too few.
UNSEEN_PEAK = 16.0


def check_finite(*tensors):
    """Raise ValueError if there is a value that is infinite or no number."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError("these weights are not finite")


def _too_large():
    return ValueError("these weights are too large to be frozen: a sum could pass what is exact")


@contextmanager
def observe(model):
    """Within: the largest absolute values that each convolution reads, channel by channel: module -> (C,)."""
    peaks = {}

    def look(layer, inputs):
        x = inputs[0].detach()
        x = x.relu() if getattr(layer, "rectify", False) else x.abs()
        peak = x.amax((0, 2, 3)).double()
        peaks[layer] = torch.maximum(peaks[layer], peak) if layer in peaks else peak

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        yield peaks
    finally:
        for hook in hooks:
            hook.remove()


def peak_of(layer, peaks):
    """The peak of each channel that a layer reads, float64, from what `observe` saw."""
    seen = (peaks or {}).get(layer)
    if seen is None:
        return torch.full((layer.in_channels,), UNSEEN_PEAK, dtype=torch.float64)
    return torch.where(seen > 0, seen.cpu(), 1.0)


def floor_log2(x):
    """floor(log2(x)) of positive values, exact: int64."""
    return torch.frexp(x)[1].long() - 1


def units_for(peak, high):
    """The largest u for which peak * 2^u is at most `high`, for each channel: values then count 2^-u."""
    return floor_log2(high / peak)


def border_of(kernel):
    """What a kernel of (rows, columns) needs around a map."""
    return kernel[0] // 2, kernel[1] // 2


def _power(exponent):
    return torch.ldexp(torch.ones(exponent.shape, dtype=torch.float64), exponent.long())


def _round_weights(weight, bias, largest, reach, exact):
    """Real weights (M, ...), biases (M,) -> integers W, exponents k, integers b: values are W 2^-k, b 2^-k.

    largest: of |W|; reach: of |q|. k is the greatest for which sum |W| reach + |b| stays below `exact`.
    """
    size = weight.flatten(1).abs().amax(1)
    k = torch.where(size > 0, floor_log2(largest / size.clamp(min=1e-30)), WEIGHTLESS).clamp(max=RIGHT_MAX)
    for _ in range(64):
        scale = _power(k)
        whole = torch.round(weight * scale.view(-1, *[1] * (weight.dim() - 1)))
        b = torch.round(bias * scale)
        bound = whole.flatten(1).abs().sum(1) * reach + b.abs() + _power(k.clamp(min=0))
        over = (bound >= exact) | (whole.flatten(1).abs().amax(1) > largest)
        if not over.any():
            return whole, k, b
        k = k - over.long()
    raise _too_large()


def _halved(bias, exponent):
    """b with the 1/2 of the rounding, where something is shifted out."""
    return bias + torch.where(exponent > 0, _power(exponent - 1), 0.0)


class Fixed(nn.Module):
    """What layers in integers share: weight, bias, and the exponent e of each output channel, in buffers."""

    def __init__(self, shape, weight_type, bias_type):
        super().__init__()
        self.register_buffer("weight", torch.zeros(shape, dtype=weight_type))
        self.register_buffer("bias", torch.zeros(shape[0], dtype=bias_type))
        self.register_buffer("exponent", torch.zeros(shape[0], dtype=torch.int8))
        self._tables = {}

    def _fill(self, **values):
        for name, value in values.items():
            getattr(self, name).copy_(value)
        self.check()
        return self

    def _on(self, device, key, make):
        """What make() gives, kept for a device."""
        if (key, device) not in self._tables:
            self._tables[key, device] = make()
        return self._tables[key, device]

    def _apply(self, function, recurse=True):
        self._tables = {}
        return super()._apply(function, recurse)

    def load_state_dict(self, *args, **kwargs):
        self._tables = {}
        return super().load_state_dict(*args, **kwargs)


class FixedConv(Fixed):
    """A convolution of 8-bit weights, kernel size 1 or 3: see the module. x, y: (B, C, H, W) int16.

    low, high: what activations are clamped to; where high is 255 and low 0, 8-bit arithmetic serves.
    """

    def __init__(self, shape, low, high):
        super().__init__(shape, torch.int8, torch.int32)
        self.low, self.high = low, high
        self.register_buffer("shift", torch.zeros(shape[1], dtype=torch.int8))

    @classmethod
    def of(cls, weight, bias, peak, low=0, high=255, units=ACTIVATION_BITS, out_units=ACTIVATION_BITS):
        """Freeze weights (out, C, k, k) and biases (out,). Raises ValueError if they are too large.

        peak: (C,) of the activations; units, out_units: x counts 2^-units, y 2^-out_units; numbers or one for
        each channel.
        """
        check_finite(weight, bias)
        weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
        units = torch.as_tensor(units).expand(weight.shape[1])
        shift = (units - units_for(peak, high)).clamp(0, SHIFT_MAX)
        columns = weight * _power(shift - units).view(1, -1, 1, 1)
        whole, k, b = _round_weights(columns, bias, WEIGHT_MAX, max(high, -low), EXACT)
        # what is left of a right shift of more bits than there are is its sign
        exponent = (k - torch.as_tensor(out_units)).clamp(max=RIGHT_MAX)
        if exponent.min() < -LEFT_MAX:
            raise _too_large()
        fixed = cls(weight.shape, low, high)
        return fixed._fill(weight=whole, bias=_halved(b, exponent), exponent=exponent, shift=shift)

    def check(self):
        """Raise ValueError unless every partial sum, in any order, is exact in float32 and int32."""
        bound = self.weight.long().abs().flatten(1).sum(1) * max(self.high, -self.low) + self.bias.long().abs()
        exponent, shift = self.exponent.long(), self.shift.long()
        if bound.max() >= EXACT or exponent.min() < -LEFT_MAX or exponent.max() > RIGHT_MAX:
            raise _too_large()
        if shift.min() < 0 or shift.max() > SHIFT_MAX:
            raise _too_large()

    def _integers(self):
        exponent, shift = self.exponent.int(), self.shift.int()
        return (1 << shift) >> 1, shift, self.bias, (-exponent).clamp(min=0), exponent.clamp(min=0)

    def integers(self, device):
        """What passes take: half and shift of the channels read; bias, left and right shift of those written."""
        return self._on(device, "integers", self._integers)

    def quantise(self, x):
        """x (B, C, H, W) -> q (B, H', W', C), borders in place."""
        half, shift = self.integers(x.device)[:2]
        narrow = torch.uint8 if self.low == 0 and self.high <= 255 else torch.int16
        border = border_of(self.weight.shape[2:])
        return passes.quantise(passes.channels_inside(x), half, shift, self.low, self.high, border, narrow)

    def convolve(self, q, onto=None):
        """q -> y (B, H, W, out), added to `onto`, (B, H, W, out), if that is given."""
        taps = self.weight.shape[2:]
        batch, height, width = q.shape[0], q.shape[1] - taps[0] + 1, q.shape[2] - taps[1] + 1
        way = products.choose(q.device, self.high, batch * height * width < products.FEW_PIXELS)
        prepared = self._on(q.device, way.name, lambda: way.prepare(self.weight))
        integers = self.integers(q.device)[2:]
        out = q.new_empty((batch, height, width, len(self.bias)), dtype=torch.int16)
        for images, rows in products.pieces(batch, height, width, max(way.bytes * self.weight[0].numel(), 4 * len(self.weight))):
            sums = way.run(q[images, rows.start : rows.stop + taps[0] - 1], prepared, taps)
            ground = None if onto is None else onto[images, rows]
            passes.requantise(sums, *integers, out[images, rows], ground)
        return out

    def forward(self, x, onto=None):
        """x (B, C, H, W) -> (B, out, H, W), added to `onto` if that is given."""
        onto = None if onto is None else passes.channels_inside(onto)
        return passes.channels_first(self.convolve(self.quantise(x), onto))


class FixedWide(Fixed):
    """A convolution of pixels and means: weights of 16 bits, sums below 2^53 in float64.

    x: (B, C, H, W) int32, within +-reach; y: (B, out, H, W) int32, clamped to +-limit.
    """

    def __init__(self, shape, reach=WIDE_MAX, limit=WIDE_MAX):
        super().__init__(shape, torch.int16, torch.int64)
        self.reach, self.limit = reach, limit

    @classmethod
    def of(cls, weight, bias, units=WIDE_BITS, out_units=WIDE_BITS, reach=WIDE_MAX, limit=WIDE_MAX):
        """Freeze weights (out, C, rows, columns) and biases (out,); units, out_units: as of FixedConv."""
        check_finite(weight, bias)
        weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
        columns = weight * 2.0**-units
        whole, k, b = _round_weights(columns, bias, WIDE_WEIGHT_MAX, reach, WIDE_EXACT)
        exponent = k - torch.as_tensor(out_units)
        if exponent.min() < 0:
            raise _too_large()
        return cls(weight.shape, reach, limit)._fill(weight=whole, bias=_halved(b, exponent), exponent=exponent)

    def check(self):
        """Raise ValueError unless every partial sum, in any order, is exact in float64."""
        bound = self.weight.double().abs().flatten(1).sum(1) * self.reach + self.bias.double().abs()
        if bound.max() >= WIDE_EXACT or self.exponent.min() < 0 or self.exponent.max() > WIDE_RIGHT_MAX:
            raise _too_large()

    def _integers(self):
        return self.bias, self.exponent.long(), torch.zeros_like(self.weight[0, :, 0, 0], dtype=torch.int32)

    def _matrix(self):
        return self.weight.permute(2, 3, 1, 0).flatten(0, 2).double().contiguous()

    def forward(self, x, companded=False):
        """x (B, C, H, W) -> (B, out, H, W), int32, or companded, int16."""
        x, taps = passes.channels_inside(x), tuple(self.weight.shape[2:])
        matrix = self._on(x.device, "matrix", self._matrix)
        bias, exponent, zero = self._on(x.device, "integers", self._integers)
        q = passes.quantise(x, zero, zero, -self.reach, self.reach, border_of(taps), torch.float64)
        out = x.new_empty((*x.shape[:3], len(bias)), dtype=torch.int16 if companded else torch.int32)
        for images, rows in products.pieces(*x.shape[:3], 8 * max(matrix.shape)):
            part = q[images, rows.start : rows.stop + taps[0] - 1]
            sums = products.product(torch.mm, part, matrix, taps)
            passes.requantise_wide(sums, bias, exponent, self.limit, out[images, rows])
        return passes.channels_first(out)


class FixedShares(Fixed):
    """A convolution with few output channels: each tap's share at every pixel, then the sum of the shares.

    x: (B, C, H, W) int16, of which clamp(x, 0, high) counts; y: (B, out, H, W) int32, clamped to +-limit.
    Only a tap's share must be below 2^24: the sum over taps is in whole numbers of 64 bits.
    """

    def __init__(self, shape, high, limit):
        super().__init__(shape, torch.int8, torch.int64)
        self.high, self.limit = high, limit

    @classmethod
    def of(cls, weight, bias, units, high, limit):
        """Freeze weights (out, C, rows, columns) and biases (out,) of y, which counts whole units."""
        check_finite(weight, bias)
        weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
        columns = weight * _power(-torch.as_tensor(units)).view(1, -1, 1, 1)
        # the exponent is the taps' in common, the bound each tap's own
        by_tap = columns.permute(0, 2, 3, 1).flatten(0, 2)
        taps = weight.shape[2] * weight.shape[3]
        size = by_tap.abs().amax(1).view(-1, taps).amax(1)
        k = torch.where(size > 0, floor_log2(WEIGHT_MAX / size.clamp(min=1e-30)), WEIGHTLESS).clamp(max=RIGHT_MAX)
        for _ in range(64):
            whole = torch.round(columns * _power(k).view(-1, 1, 1, 1))
            shares = whole.abs().sum(1).flatten(1).amax(1) * high
            over = (shares >= EXACT) | (whole.abs().flatten(1).amax(1) > WEIGHT_MAX)
            if not over.any():
                break
            k = k - over.long()
        b = torch.round(bias * _power(k))
        if k.min() < -LEFT_MAX or b.abs().max() >= WIDE_EXACT:
            raise _too_large()
        return cls(weight.shape, high, limit)._fill(weight=whole, bias=_halved(b, k), exponent=k)

    def check(self):
        """Raise ValueError unless every share is exact in float32, and every sum in 64 bits."""
        shares = self.weight.long().abs().sum(1).flatten(1).amax(1) * self.high
        if shares.max() >= EXACT or self.bias.abs().max() > WIDE_EXACT:
            raise _too_large()
        if self.exponent.min() < -LEFT_MAX or self.exponent.max() > RIGHT_MAX:
            raise _too_large()

    def _integers(self):
        exponent = self.exponent.long()
        return self.bias, (-exponent).clamp(min=0), exponent.clamp(min=0)

    def forward(self, x):
        """x (B, C, H, W) -> (B, out, H, W)."""
        x = passes.channels_inside(x).clamp(0, self.high)
        way = products.choose(x.device, self.high, x[..., 0].numel() < products.FEW_PIXELS)
        by_tap = lambda: way.prepare(self.weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None])  # noqa: E731
        shares = way.run(x, self._on(x.device, way.name, by_tap), (1, 1))
        integers = self._on(x.device, "integers", self._integers)
        y = passes.sum_of_shares(shares, tuple(self.weight.shape[2:]), *integers, self.limit)
        return passes.channels_first(y)


class FixedDepthwise(Fixed):
    """A convolution of each channel by itself, of odd kernel size: y = clamp(2^-e (sum W q + b)), as FixedConv."""

    def __init__(self, shape, high=255):
        super().__init__(shape, torch.int8, torch.int32)
        self.high = high
        self.register_buffer("shift", torch.zeros(shape[0], dtype=torch.int8))

    @classmethod
    def of(cls, weight, bias, peak, high=255):
        """Freeze weights (C, 1, k, k) and biases (C,); peak: (C,) of the activations."""
        check_finite(weight, bias)
        weight, bias = weight.detach().double().cpu(), bias.detach().double().cpu()
        shift = (ACTIVATION_BITS - units_for(peak, high)).clamp(0, SHIFT_MAX)
        columns = weight * _power(shift - ACTIVATION_BITS).view(-1, 1, 1, 1)
        whole, k, b = _round_weights(columns, bias, WEIGHT_MAX, high, EXACT)
        exponent = (k - ACTIVATION_BITS).clamp(max=RIGHT_MAX)
        if exponent.min() < -LEFT_MAX:
            raise _too_large()
        fixed = cls(weight.shape, high)
        return fixed._fill(weight=whole, bias=_halved(b, exponent), exponent=exponent, shift=shift)

    check = FixedConv.check
    low = 0
    _integers = FixedConv._integers

    def forward(self, x):
        """x (B, C, H, W) int16, clamped to 0 and above -> (B, C, H, W) int16."""
        x = passes.channels_inside(x)
        half, shift, bias, left, right = self._on(x.device, "integers", self._integers)
        q = passes.quantise(x, half, shift, 0, self.high, border_of(self.weight.shape[2:]), torch.uint8)
        taps = self._on(x.device, "taps", lambda: self.weight[:, 0].permute(1, 2, 0).contiguous())
        out = x.new_empty(x.shape)
        passes.requantise(passes.depthwise(q, taps), bias, left, right, out)
        return passes.channels_first(out)


class FixedGate(nn.Module):
    """The product of two maps of activations: int16 and int16 -> int16."""

    def forward(self, x, y):
        """x, y: (B, C, H, W)."""
        x, y = passes.channels_inside(x), passes.channels_inside(y)
        shift = torch.full((x.shape[-1],), ACTIVATION_BITS, dtype=torch.int32, device=x.device)
        return passes.channels_first(passes.gate(x, y, (1 << shift) >> 1, shift))


class FixedCompand(nn.Module):
    """u -> sign(u) log2(1 + |u|), linear between powers of two: wide maps to activations."""

    def forward(self, u):
        """u: (B, C, H, W) int32."""
        return passes.channels_first(passes.compand(passes.channels_inside(u)))
