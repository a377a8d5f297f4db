"""The one form of network of the method, for couplings and for the prior."""

import torch
import torch.nn.functional as F
from torch import nn

from utils.polyphase import channels_last


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
