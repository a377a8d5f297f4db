"""Networks: the form of the method, for couplings and the paper's prior, and parts of the band-wise prior."""

import torch
import torch.nn.functional as F
from torch import nn

from utils.arithmetic.fixed import FixedConv, on_grid
from utils.arithmetic.polyphase import channels_last


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


class ConvNet(nn.Module):
    """conv3x3, ReLU, nhidden x [conv1x1, ReLU], conv3x3; borders replicated.

    channels, out: channels of the input and of the output; hchnl: of the hidden layers.
    kernel: (3, 3), or (1, 3) for networks of rows. The last layer starts at zero.
    Input (B, channels, H, W), output (B, out, H, W), float. Source: method 2.
    """

    def __init__(self, channels, out, hchnl, nhidden, kernel=(3, 3)):
        super().__init__()
        self.kernel = kernel
        self.first = nn.Conv2d(channels, hchnl, kernel)
        self.hidden = nn.ModuleList(nn.Conv2d(hchnl, hchnl, 1) for _ in range(nhidden))
        self.last = nn.Conv2d(hchnl, out, kernel)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x):
        """The network's output; see the class."""
        h = self.first(replicate_pad(channels_last(x), self.kernel)).relu_()
        for layer in self.hidden:
            h = layer(h).relu_()
        shares = F.conv2d(h, self.last.weight.permute(3, 2, 0, 1).flatten(0, 2)[..., None, None])
        return shift_sum(shares.to(x.dtype), self.kernel) + self.last.bias[:, None, None]


class Conv(nn.Conv2d):
    """A convolution of kernel size 1 or 3, borders replicated; `freeze` gives it in fixed point.

    gain: factor on He's initial weights. rectify: put ReLU in front. precise: float32 also where autocast
    computes in bfloat16.
    """

    def __init__(self, channels, out, size, gain=1.0, rectify=False, precise=False):
        super().__init__(channels, out, size)
        self.rectify, self.precise = rectify, precise
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight *= gain

    def forward(self, x):
        """x (B, channels, H, W) -> (B, out, H, W)."""
        if self.rectify:
            x = x.relu()
        if self.kernel_size != (1, 1):
            x = replicate_pad(x, self.kernel_size)
        if not self.precise:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)

    def freeze(self):
        """The same in fixed point. Raises ValueError if the weights are too large."""
        return FixedConv.of(self)


class _Compand(torch.autograd.Function):
    """The bits of a float, read as an integer, are its logarithm with lines drawn between powers of two."""

    @staticmethod
    def forward(ctx, u):
        v = u.abs() + 1
        ctx.save_for_backward(v)
        integer, one, unit = _BITS[u.dtype]
        y = (v.view(integer) - one).to(u.dtype).mul_(unit)
        return torch.copysign(y, u, out=y)

    @staticmethod
    def backward(ctx, gradient):
        (v,) = ctx.saved_tensors
        integer, one, unit = _BITS[v.dtype]
        exponent = v.view(integer) & -round(1 / unit)
        return gradient * (2 * one - exponent).view(v.dtype)


_BITS = {
    torch.float32: (torch.int32, 127 << 23, 2.0**-23),
    torch.float64: (torch.int64, 1023 << 52, 2.0**-52),
}


class Compand(nn.Module):
    """u -> sign(u) log2(1 + |u|), linear between powers of two: small differences count beside large ones.

    In autocast's type, where that is on.
    """

    def forward(self, u):
        """See the class."""
        y, device = _Compand.apply(u), u.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y

    def freeze(self):
        """The same in fixed point."""
        return FixedCompand()


class FixedCompand(Compand):
    """A Compand whose results are brought to the grid: see utils/arithmetic/fixed.py."""

    def forward(self, u):
        """See the class."""
        return on_grid(_Compand.apply(u))
