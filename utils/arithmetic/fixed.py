"""Networks in fixed point: the same integers for any order of summation, hence on any machine.

Float networks give other last digits with other thread counts, batch sizes and devices; one rounding that
falls the other way, and a decoder reads garbage. Here weights and activations are integers, and every partial
sum of a layer is an integer times a power of two that float64 holds exactly. The bound that makes it so is
computed from the weights (FixedNetwork.check), not hoped for. Convolutions are matrix products: convolution
libraries may choose Winograd or FFT, which are not exact.
"""

import torch
from torch import nn

from utils.arithmetic.integers import STEPS

WEIGHT_BITS, WEIGHT_MAX = 15, 2**15 - 1
# Activations count 2^-14, up to 2^10; inputs are whole steps between integers, up to 2^12 of them.
ACTIVATION_BITS, ACTIVATION_MAX = 14, 2**24 - 1
INPUT_MAX = 2**12
OUTPUT_MAX = 2**24
EXPONENT_MAX = 28
EXACT = 2**53
# What lies between the layers of the band-wise prior are multiples of GRID; a FixedConv's, up to CONV_MAX.
GRID = 2.0**-ACTIVATION_BITS
CONV_MAX = 2.0**9
# The side of the tiles in which the band-wise prior is computed.
TILE = 128
# Pixels computed at a time: what bounds the memory, and keeps the activations in the processor's cache.
PIXELS = 1 << 12


def _power(exponent):
    """2^exponent of integers, float64, from its bits: no library's exponential, which need not be exact."""
    return (1023 + exponent.long() << 52).view(torch.float64)


def check_finite(*tensors):
    """Raise ValueError if there is a value that is infinite or no number."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError("these weights are not finite")


def _check_exact(sums, exponent, bias):
    """Raise ValueError unless every partial sum, in any order, is exact in float64.

    sums: of |W| max|a|, of each output channel; W, e and b as integers. In units of 2^-e (of 1/2, if e < 1)
    all partial sums are integers; the largest is below sums + |b| + 2^e, which must not reach 2^53.
    """
    exponent = exponent.long()  # of int8, |-128| is -128
    if exponent.abs().max() <= EXPONENT_MAX:
        bound = sums + bias.double().abs() + _power(exponent.clamp(min=0))
        if (bound * torch.where(exponent < 1, 2, 1)).max() < EXACT:
            return
    raise ValueError("these weights are too large to be frozen: a sum could pass 2^53")


def _quantise(weight, bias):
    """Real weights (M, K), biases (M,) -> integers (M, K), exponents (M,), integers (M,).

    weight = integers * 2^-exponent with |integers| < 2^15, as many bits as each output channel allows; biases
    in the same unit.
    """
    exponent = (WEIGHT_BITS - torch.frexp(weight.abs().amax(1))[1]).clamp(max=EXPONENT_MAX)
    scale = _power(exponent)
    return (
        torch.round(weight * scale[:, None]).clamp(-WEIGHT_MAX, WEIGHT_MAX),
        exponent,
        torch.round(bias * scale),
    )


class FixedNetwork(nn.Module):
    """A ConvNet in integers: round(factor * net(x) + offset) / unit in float64, the integer within 2^24.

    unit: a power of two. x: (B, C, H, W) in multiples of 1/256. Layer by layer, a the integer activations,
        a <- clamp(floor((W a + b) 2^-e + 1/2), 0, 2^24 - 1),
    and for the last layer the same within +-2^24; W, b, e integers, e for each output channel.
    Made by `FixedNetwork.of`; as a module it holds what is stored: W, b and e as int16, int64 and int8.
    """

    def __init__(self, net, unit=1):
        super().__init__()
        self.kernel, self.unit = tuple(net.kernel), unit
        rows, columns = self.kernel
        taps, hidden = rows * columns, net.first.out_channels
        shapes = [(hidden, taps * net.first.in_channels), *[(hidden, hidden)] * len(net.hidden)]
        shapes.append((net.last.out_channels * taps, hidden))
        for i, (out, inputs) in enumerate(shapes):
            self.register_buffer(f"weight{i}", torch.zeros(out, inputs, dtype=torch.int16))
            self.register_buffer(f"exponent{i}", torch.zeros(out, dtype=torch.int8))
            biases = out if i < len(shapes) - 1 else net.last.out_channels
            self.register_buffer(f"bias{i}", torch.zeros(biases, dtype=torch.int64))
        self.layers = len(shapes)
        self.tables = None

    @classmethod
    def of(cls, net, factor, offset=0.0, unit=1):
        """Freeze a ConvNet. Raises ValueError if its weights are too large."""
        check_finite(*net.parameters())
        fixed = cls(net, unit)
        rows, columns = fixed.kernel
        first, last = net.first.weight.detach().double(), net.last.weight.detach().double()
        weights = [first.permute(0, 2, 3, 1).flatten(1) * 2.0**ACTIVATION_BITS / STEPS]
        weights += [layer.weight.detach().double().flatten(1) for layer in net.hidden]
        biases = [layer.bias.detach().double() * 2.0**ACTIVATION_BITS for layer in (net.first, *net.hidden)]
        for i, (weight, bias) in enumerate(zip(weights, biases)):
            for name, value in zip(("weight", "exponent", "bias"), _quantise(weight, bias)):
                getattr(fixed, f"{name}{i}").copy_(value)
        # one exponent for all taps of a channel, since their shares are summed before they are rounded
        wide = last.flatten(1) * factor / 2.0**ACTIVATION_BITS
        integers, exponent, bias = _quantise(wide, net.last.bias.detach().double() * factor + offset)
        i = fixed.layers - 1
        getattr(fixed, f"weight{i}").copy_(integers.view(last.shape).permute(2, 3, 0, 1).flatten(0, 2))
        getattr(fixed, f"exponent{i}").copy_(exponent.repeat(rows * columns))
        getattr(fixed, f"bias{i}").copy_(bias)
        fixed.check()
        return fixed

    def layer(self, i):
        """The integers of layer i: W (M, K), e (M,), b."""
        return (getattr(self, f"{name}{i}") for name in ("weight", "exponent", "bias"))

    def check(self):
        """Raise ValueError unless every partial sum, in any order, is exact in float64."""
        for i in range(self.layers):
            weight, exponent, bias = self.layer(i)
            sums = weight.double().abs().sum(1)
            if i == self.layers - 1:  # which sums its taps too
                sums, exponent = sums.view(-1, len(bias)).sum(0), exponent[: len(bias)]
            _check_exact(sums * (ACTIVATION_MAX if i else INPUT_MAX), exponent, bias)

    def _prepare(self, device):
        """Weights and biases as float64 multiples of 2^-e, the 1/2 of the rounding included."""
        if self.tables is None or self.tables[0][0].device != device:
            self.check()
            self.tables = []
            for i in range(self.layers):
                weight, exponent, bias = (t.to(device) for t in self.layer(i))
                scale = _power(-exponent)
                self.tables.append(
                    ((weight * scale[:, None]).T.contiguous(), bias * scale[: len(bias)] + 0.5)
                )
        return self.tables

    def forward(self, x):
        """The network's output, float64; see the class."""
        tables, (rows, columns) = self._prepare(x.device), self.kernel
        up, left = rows // 2, columns // 2
        x = (x.double() * STEPS).clamp(-INPUT_MAX, INPUT_MAX).permute(0, 2, 3, 1)
        batch, height, width, _ = x.shape
        across = torch.arange(-left, width + left, device=x.device).clamp(0, width - 1)
        x = x[:, :, across]
        weight, bias = tables[-1]
        y = x.new_empty(batch, height, width, len(bias))
        step = max(PIXELS // (batch * width), 1)
        for top in range(0, height, step):
            bottom = min(top + step, height)
            # the last layer looks `up` rows further, and the first layer as much again
            low, high = max(top - up, 0), min(bottom + up, height)
            taken = [
                torch.arange(low + i - up, high + i - up, device=x.device).clamp(0, height - 1)
                for i in range(rows)
            ]
            a = torch.cat([x[:, r, j : j + width] for r in taken for j in range(columns)], -1)
            a = a.view(-1, a.shape[-1])
            for w, b in tables[:-1]:
                a = torch.addmm(b, a, w).floor_().clamp_(0, ACTIVATION_MAX)
            shares = (a @ weight).view(batch, high - low, width, rows, columns, -1)
            wanted = torch.arange(top - up, bottom + up, device=x.device).clamp(0, height - 1) - low
            shares = shares[:, wanted][:, :, across]
            total = bias.expand(batch, bottom - top, width, -1).clone()
            for i in range(rows):
                for j in range(columns):
                    total += shares[:, i : i + bottom - top, j : j + width, i, j]
            y[:, top:bottom] = total.floor_().clamp_(-OUTPUT_MAX, OUTPUT_MAX)
        return y.permute(0, 3, 1, 2) / self.unit


def frozen(module):
    """Turn a module to fixed point: every part of it that has a `freeze` into what that gives."""
    for name, part in module.named_children():
        setattr(module, name, part.freeze() if hasattr(part, "freeze") else frozen(part))
    return module


def on_grid(x):
    """The multiple of GRID nearest to x, halves upwards."""
    return (x / GRID).add_(0.5).floor_().mul_(GRID)


def in_tiles(function, halo, *maps):
    """function(*maps) tile by tile: bounds the memory within the function, and keeps it in the caches.

    maps: (B, C, H, W). The function gives a tuple, perhaps named, of (..., H, W); every value of it depends
    on those of the maps no more than `halo` pixels away. At the edges of an image a tile has that edge.
    """
    height, width = maps[0].shape[-2:]
    whole = None
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            above, before = max(top - halo, 0), max(left - halo, 0)
            part = function(*(m[..., above : top + TILE + halo, before : left + TILE + halo] for m in maps))
            if max(height, width) <= TILE:
                return part
            if whole is None:
                shapes = ((*field.shape[:-3], height, width, field.shape[-3]) for field in part)
                whole = [field.new_empty(shape).movedim(-1, -3) for field, shape in zip(part, shapes)]
            for field, all_of_it in zip(part, whole):
                inside = field[..., top - above :, left - before :][..., :TILE, :TILE]
                all_of_it[..., top : top + TILE, left : left + TILE] = inside
    return type(part)(*whole) if hasattr(part, "_fields") else tuple(whole)


class FixedConv(nn.Module):
    """A Conv in integers: on_grid(W x + b) within +-CONV_MAX, in float64; x on the grid, within +-INPUT_MAX.

    Where it has a border or rectifies, x is clamped to that; elsewhere it is the caller's to see to.

    W and b, in GRID, are integers times 2^-e, e for each output channel. Made by `of`; as a module it
    holds what is stored: W (out, channels, size, size), b and e as int16, int64 and int8.
    """

    def __init__(self, shape, rectify=False):
        super().__init__()
        self.rectify = rectify
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int16))
        self.register_buffer("exponent", torch.zeros(shape[0], dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(shape[0], dtype=torch.int64))
        self.table = None

    @classmethod
    def of(cls, conv):
        """Freeze a Conv. Raises ValueError if its weights are too large."""
        weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
        check_finite(weight, bias)
        fixed = cls(weight.shape, conv.rectify)
        integers, exponent, bias = _quantise(weight.flatten(1), bias / GRID)
        for name, value in (("weight", integers.view_as(weight)), ("exponent", exponent), ("bias", bias)):
            getattr(fixed, name).copy_(value)
        fixed.check()
        return fixed

    def check(self):
        """Raise ValueError unless every partial sum, in any order, is exact in float64."""
        sums = self.weight.double().abs().flatten(1).sum(1) * (INPUT_MAX / GRID)
        _check_exact(sums, self.exponent, self.bias)

    def _prepare(self, device):
        """W for each tap, (channels, out), and b + 1/2, both in GRID."""
        if self.table is None or self.table[1].device != device:
            self.check()
            weight, exponent, bias = (t.to(device) for t in (self.weight, self.exponent, self.bias))
            scale = _power(-exponent)
            taps = (weight * scale.view(-1, 1, 1, 1) / GRID).permute(2, 3, 1, 0).flatten(0, 1)
            self.table = taps.contiguous(), bias * scale + 0.5
        return self.table

    def forward(self, x):
        """x (B, channels, H, W) -> (B, out, H, W), both stored channels last.

        With the borders in place, a tap is the same list of pixels further on: no copies for taps.
        """
        taps, bias = self._prepare(x.device)
        x, border = x.permute(0, 2, 3, 1), self.weight.shape[-1] // 2
        batch, height, width, channels = x.shape
        if border or self.rectify:
            padded = x.new_empty(batch, height + 2 * border, width + 2 * border, channels)
            inside = padded[:, border : border + height, border : border + width]
            torch.clamp(x, 0 if self.rectify else -INPUT_MAX, INPUT_MAX, out=inside)
            if border:
                padded[:, :, 0], padded[:, :, -1] = padded[:, :, 1], padded[:, :, -2]
                padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
            x = padded
        x, size = x.reshape(-1, channels), 1 + 2 * border
        across = width + 2 * border
        shifts = [i * across + j for i in range(size) for j in range(size)]
        y = x.new_empty(len(x), len(bias))
        for start in range(0, len(x) - shifts[-1], PIXELS):
            end = min(start + PIXELS, len(x) - shifts[-1])
            part = y[start:end]
            torch.addmm(bias, x[start:end], taps[0], out=part)
            for shift, tap in zip(shifts[1:], taps[1:]):
                part.addmm_(x[start + shift : end + shift], tap)
            part.floor_().mul_(GRID).clamp_(-CONV_MAX, CONV_MAX)
        y = y.view(batch, height + 2 * border, across, -1)
        return y[:, :height, :width].permute(0, 3, 1, 2)
