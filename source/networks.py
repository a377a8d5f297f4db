"""Networks that train, and how each is frozen: those of the method, for couplings and the paper's prior, and
layers of the band-wise prior.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn

from utils.arithmetic import kernels
from utils.arithmetic.crew import in_tiles
from utils.arithmetic.fixed import FixedConv, FixedShares, FixedWide, seen_of, units_for
from utils.arithmetic.integers import STEPS
from utils.arithmetic.passes import (
    ACTIVATION_BITS,
    INPUT_MAX,
    INT16_MAX,
    SAMPLE_BITS,
    SAMPLE_MAX,
    WIDE_BITS,
    WIDE_MAX,
    image_of,
    map_of,
)
from utils.arithmetic.polyphase import channels_last

# What activations are clamped to: 8 bits, by which 8-bit arithmetic serves; with a sign, 11.
NARROW_MAX, SIGNED_MAX = 2**8 - 1, 2**11 - 1
OUTPUT_MAX = 2**24
# Of 15 bits some can be spared for peaks that the images observed do not have.
HEADROOM = 8
# How fast kernels' means learn where samples lie far from 0, beside differences of samples; see Conv.
SLOW = 1 / 64
# Activations count 2^-16 at the finest: what no image excites needs no more.
FINEST = 16
# ConvNets are wide: smaller tiles stay in the caches.
SMALL_TILE = 64


def _pad(x, rows, columns):
    """Replicate the borders of x (B, H, W, C): `rows` (0 or 1) rows at both ends, likewise columns."""
    if not rows and not columns:
        return x
    batch, height, width, channels = x.shape
    padded = x.new_empty(batch, height + 2 * rows, width + 2 * columns, channels)
    padded[:, rows : rows + height, columns : columns + width] = x
    if columns:
        padded[:, :, 0], padded[:, :, -1] = padded[:, :, 1], padded[:, :, -2]
    if rows:
        padded[:, 0], padded[:, -1] = padded[:, 1], padded[:, -2]
    return padded


def _unpad(gradient, rows, columns):
    """Adjoint of _pad: add the borders to the pixels that they copied. Writes into its argument."""
    if rows:
        gradient[:, 1] += gradient[:, 0]
        gradient[:, -2] += gradient[:, -1]
        gradient = gradient[:, 1:-1]
    if columns:
        gradient[:, :, 1] += gradient[:, :, 0]
        gradient[:, :, -2] += gradient[:, :, -1]
        gradient = gradient[:, :, 1:-1]
    return gradient


class _ReplicatePad(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, rows, columns):
        return _pad(x, rows, columns)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.rows, ctx.columns = inputs

    @staticmethod
    def backward(ctx, gradient):
        return _unpad(gradient.clone(), ctx.rows, ctx.columns), None, None


class _RectifiedPad(torch.autograd.Function):
    """relu, then _ReplicatePad by one on all sides, in one pass: (B, H, W, C) bfloat16 on a CPU."""

    @staticmethod
    def forward(ctx, x):
        batch, height, width, channels = x.shape
        y = x.new_empty(batch, height + 2, width + 2, channels)
        kernels.rectified_pad(_bits(x), _bits(y))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        batch, height, width, channels = y.shape
        out = y.new_empty(batch, height - 2, width - 2, channels)
        kernels.gradient_of_rectified_pad(_bits(gradient.contiguous()), _bits(y), _bits(out))
        return out


def _bits(x):
    """A tensor of bfloat16 as an array of int16."""
    return x.detach().view(torch.int16).numpy()


class _ShiftSum(torch.autograd.Function):
    """Columns first, for all rows of taps at once: six sums for nine taps."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u, kernel):
        for axis in (2, 1):
            taps = kernel[axis - 1]
            length, u = u.shape[axis], _pad(u, *(taps // 2 * (axis == a) for a in (1, 2)))
            u = sum(part.narrow(axis, k, length) for k, part in enumerate(u.chunk(taps, -1)))
        return u

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.kernel = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        for axis in (1, 2):
            taps, shape = ctx.kernel[axis - 1], list(gradient.shape)
            shape[axis], shape[-1] = shape[axis] + taps - 1, shape[-1] * taps
            padded = gradient.new_zeros(shape)
            for k, part in enumerate(padded.chunk(taps, -1)):
                part.narrow(axis, k, gradient.shape[axis]).copy_(gradient)
            gradient = _unpad(padded, *(taps // 2 * (axis == a) for a in (1, 2)))
        return gradient, None


def replicate_pad(x, kernel):
    """Pad x (B, C, H, W) by replication so that a kernel of odd (height, width) 1 or 3 keeps its size.

    Equal to F.pad(mode="replicate"), which is several times slower on a CPU, backward above all.
    """
    return _ReplicatePad.apply(x.permute(0, 2, 3, 1), kernel[0] // 2, kernel[1] // 2).permute(0, 3, 1, 2)


def shift_sum(u, kernel):
    """y[p] = sum over the kernel's taps t of u_t[p + t], borders replicated.

    u: (B, columns * rows * C, H, W), the taps' shares, column by column of the kernel. Returns (B, C, H, W).
    A convolution is a product with all its taps at each pixel, then this sum; with few channels out, only
    the few shares are padded, not the wide input.
    """
    return _ShiftSum.apply(u.permute(0, 2, 3, 1), tuple(kernel)).permute(0, 3, 1, 2)


class Shares(nn.Conv2d):
    """A convolution with few output channels, borders replicated, as the sum of its taps' shares."""

    def forward(self, x):
        """x (B, C, H, W) -> (B, out, H, W)."""
        by_tap = self.weight.permute(3, 2, 0, 1).flatten(0, 2)[..., None, None]
        return shift_sum(F.conv2d(x, by_tap), self.kernel_size) + self.bias[:, None, None]


class Differences(nn.Conv2d):
    """A convolution whose kernels sum to 0 for each channel: it does not see what is constant.

    gain: factor on He's initial weights. In float32 also where autocast computes in bfloat16, in which small
    differences of pixels are lost.
    """

    def __init__(self, channels, out, kernel, gain):
        super().__init__(channels, out, kernel)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight *= gain

    @property
    def taps(self):
        """What it convolves with: (out, C, rows, columns)."""
        return with_means(self.weight, self.in_channels, 0)

    def forward(self, x):
        """x (B, C, H, W) -> (B, out, H', W')."""
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x, self.taps, self.bias)


class ConvNet(nn.Module):
    """conv3x3, ReLU, nhidden x [conv1x1, ReLU], conv3x3; borders replicated.

    channels, out: channels of the input and of the output; hchnl: of the hidden layers.
    kernel: (3, 3), or (1, 3) for networks of rows. The last layer starts at zero.
    differences: if given, the first layer is Differences of that gain: net(x + a) = net(x) for constants.
    Input (B, channels, H, W), output (B, out, H, W), float. Source: method 2.
    """

    def __init__(self, channels, out, hchnl, nhidden, kernel=(3, 3), differences=None):
        super().__init__()
        self.kernel = kernel
        if differences is None:
            self.first = nn.Conv2d(channels, hchnl, kernel)
        else:
            self.first = Differences(channels, hchnl, kernel, differences)
        self.hidden = nn.ModuleList(nn.Conv2d(hchnl, hchnl, 1) for _ in range(nhidden))
        self.last = Shares(hchnl, out, kernel)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x):
        """The network's output; see the class."""
        h = self.first(replicate_pad(channels_last(x), self.kernel)).relu_()
        for layer in self.hidden:
            h = layer(h).relu_()
        return self.last(h).to(x.dtype)

    def rest(self):
        """What it makes of zeros: (1, out, 1, 1)."""
        return self(self.first.weight.new_zeros(1, self.first.in_channels, 1, 1))

    def freeze(self, peaks, factor, offset=0.0, limit=OUTPUT_MAX):
        """A FixedConvNet of round(factor net(x) + offset); peaks: see fixed.observe. May raise ValueError."""
        return FixedConvNet(self, peaks, factor, offset, limit)


class FixedConvNet(nn.Module):
    """A ConvNet in integers: v (B, channels, H, W), in steps, x = v / 256 -> (B, out, H, W) int32.

    Its layers are wide, since there is no way around them: of 8 bits, they cost some hundredths of a bit.
    """

    def __init__(self, net, peaks, factor, offset, limit):
        super().__init__()
        layers = [*net.hidden, net.last]
        units = [
            units_for(HEADROOM * seen_of(layer, peaks).peak, INT16_MAX).clamp(max=FINEST) for layer in layers
        ]
        taps = net.first.taps if isinstance(net.first, Differences) else net.first.weight
        weight, bias = taps / STEPS, net.first.bias
        self.first = FixedWide.of(weight, bias, -INPUT_MAX, INPUT_MAX, INT16_MAX, 0, units[0])
        self.hidden = nn.ModuleList(
            FixedWide.of(layer.weight, layer.bias, 0, INT16_MAX, INT16_MAX, here, there)
            for layer, here, there in zip(net.hidden, units, units[1:])
        )
        weight, bias = net.last.weight * factor, net.last.bias * factor + offset
        self.last = FixedShares.of(weight, bias, units[-1], limit)

    def forward(self, v, level=0):
        """See the class; all levels are alike."""
        # before the cast: beyond 32 bits, machines differ
        whole = v.clamp(-INPUT_MAX, INPUT_MAX).to(torch.int32)
        (y,) = in_tiles(self._compute, 2, map_of(whole), side=SMALL_TILE).result()
        return image_of(y)

    def _compute(self, v):
        h = self.first(v)
        for layer in self.hidden:
            h = layer(h)
        return (self.last(h),)


def with_means(weight, count, factor):
    """Kernels (out, channels, rows, columns), the means of those of the first channels times a factor."""
    first, others = weight.tensor_split((count,), 1)
    return torch.cat([first + (factor - 1) * first.mean((2, 3), keepdim=True), others], 1)


class Conv(nn.Conv2d):
    """A convolution of kernel size 1 or 3, borders replicated; `freeze` gives it in integers.

    gain: factor on He's initial weights. rectify: put ReLU in front. precise: of pixels and means, in float32
    also where autocast computes in bfloat16, in wide integers when frozen. slow: so many channels, the first
    ones, are of pixels, which have much in common with their neighbours: what a step moves the mean of a
    kernel by is SLOW of what it moves the rest by, or it would drown it.
    """

    def __init__(self, channels, out, size, gain=1.0, rectify=False, precise=False, slow=0):
        super().__init__(channels, out, size)
        self.rectify, self.precise, self.slow = rectify, precise, slow
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight *= gain

    @property
    def taps(self):
        """What it convolves with: (out, channels, size, size)."""
        return with_means(self.weight, self.slow, SLOW) if self.slow else self.weight

    def forward(self, x, onto=None):
        """x (B, channels, H, W) -> (B, out, H, W), added to `onto` if that is given."""
        alone = self.kernel_size == (1, 1)
        if self.rectify and not alone and _is_stored_by_pixel(x, torch.bfloat16):
            x = _RectifiedPad.apply(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            x = x.relu() if self.rectify else x
            x = x if alone else replicate_pad(x, self.kernel_size)
        with torch.autocast(x.device.type, enabled=False) if self.precise else nullcontext():
            y = F.conv2d(x, self.taps, self.bias)
        return y if onto is None else onto + y

    def freeze(self, peaks, out_units=ACTIVATION_BITS):
        """A FixedConv. Raises ValueError if the weights are too large.

        out_units: what it gives counts 2^-out_units; peaks: see fixed.observe.
        """
        low, high = (0, NARROW_MAX) if self.rectify else (-SIGNED_MAX, SIGNED_MAX)
        return FixedConv.of(self.taps, self.bias, seen_of(self, peaks), low, high, out_units=out_units)

    def freeze_wide(self, of_samples=True):
        """A FixedWide, of samples or of differences from means; it gives means. May raise ValueError."""
        low, high, units = (-WIDE_MAX, WIDE_MAX, WIDE_BITS)
        if of_samples:
            low, high, units = (-SAMPLE_MAX, SAMPLE_MAX - 1, SAMPLE_BITS)
        return FixedWide.of(self.taps, self.bias, low, high, WIDE_MAX, units, WIDE_BITS)


class Joined(nn.ModuleList):
    """Convolutions of the same maps, as one: it reads them once. What they have in common is its own too."""

    in_channels, kernel_size, rectify, precise = (
        property(lambda self, name=name: getattr(self[0], name))
        for name in ("in_channels", "kernel_size", "rectify", "precise")
    )

    def joined(self):
        """The kernels and biases of all of them."""
        return (torch.cat([getattr(layer, name) for layer in self]) for name in ("weight", "bias"))

    def forward(self, x):
        """x (B, C, H, W) -> what each of them makes of it, kernels of size 1."""
        y = F.conv2d(x.relu() if self.rectify else x, *self.joined())
        return y.split([layer.out_channels for layer in self], 1)

    def freeze(self, peaks):
        """A FixedConv, what each makes side by side. Raises ValueError if the weights are too large."""
        return FixedConv.of(*self.joined(), seen_of(self, peaks))


class _Compand(torch.autograd.Function):
    """The bits of a float, read as an integer, are its logarithm with lines drawn between powers of two."""

    @staticmethod
    def forward(ctx, u, dtype):
        ctx.save_for_backward(u)
        if _is_compiled(u, dtype):
            y = torch.empty_like(u, dtype=dtype)
            kernels.compand_to_bfloat16(_numbers(u), _numbers(y.view(torch.int16)))
            return y
        v, (integer, one, unit) = u.abs() + 1, _BITS[u.dtype]
        y = (v.view(integer) - one).to(u.dtype).mul_(unit)
        return torch.copysign(y, u, out=y).to(dtype)

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        if _is_compiled(u, gradient.dtype) and gradient.stride() == u.stride():
            out = torch.empty_like(u)
            kernels.slopes_of_compand(_numbers(u), _numbers(gradient.view(torch.int16)), _numbers(out))
            return out, None
        v, (integer, one, unit) = u.abs() + 1, _BITS[u.dtype]
        exponent = v.view(integer) & -round(1 / unit)
        return gradient.to(u.dtype) * (2 * one - exponent).view(u.dtype), None


def _is_compiled(u, dtype):
    """Whether a pass over u, to or from this type, is compiled: as training on a CPU has them."""
    return dtype == torch.bfloat16 and _is_stored_by_pixel(u, torch.float32)


def _is_stored_by_pixel(x, dtype):
    """Whether x (B, C, H, W) is of this type, on a CPU, and compiled passes may read its memory."""
    dense = x.is_contiguous(memory_format=torch.channels_last)
    return dense and x.device.type == "cpu" and x.dtype == dtype


def _numbers(x):
    """A tensor stored pixel by pixel -> (N,) array of its memory."""
    return x.detach().permute(0, 2, 3, 1).view(-1).numpy()


_BITS = {
    torch.float32: (torch.int32, 127 << 23, 2.0**-23),
    torch.float64: (torch.int64, 1023 << 52, 2.0**-52),
}


class Compand(nn.Module):
    """u -> sign(u) log2(1 + |u|), linear between powers of two: small differences count beside large ones.

    In autocast's type, where that is on. Frozen, it is a pass: see utils/arithmetic/passes.py.
    """

    def forward(self, u):
        """See the class."""
        device = u.device.type
        fast = torch.is_autocast_enabled(device)
        return _Compand.apply(u, torch.get_autocast_dtype(device) if fast else u.dtype)
