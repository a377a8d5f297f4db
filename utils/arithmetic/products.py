"""Ways to sum products of integers, all of them exact: what networks in integers spend their time on.

A Way takes activations q (B, H + rows - 1, W + columns - 1, C) with their borders in place, weights
(out, C, rows, columns), and gives the sums (B, H, W, >= out), integers in a type of its own, or their parts:
    sums[p] = sum over taps t and channels c of weight[:, c, t] q[p + t, c]
Narrow ones are for activations up to 255, weights up to 127, and partial sums below 2^24 in any order, which
float32 and int32 hold; wide ones for those up to 2^15 - 1, and sums below 2^53. Layers see to that: fixed.py.
Libraries may nonetheless choose Winograd's or Fourier's algorithms, or saturate halfway: a way is used only
after it gave the very integers of the plain one, here, in this process.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.arithmetic import kernels
from utils.arithmetic.crew import crew
from utils.arithmetic.passes import halve_bytes, is_compiled, join_bytes

# Bytes of sums or of neighbourhoods computed at a time, so that they are still in a cache when they are used.
CACHED = 1 << 22
# Below so many multiply-adds, a library's convolution takes longer to start than a product takes in all.
LITTLE = 1 << 21
ENVIRONMENT = "NWF_PRODUCTS"
# Numbers of channels that convolutions of bytes like.
BLOCK = 16
# Sums of more products of bytes than these could pass 2^24.
MOST_BYTES = 2**24 // (255 * 128)
# So many channels fit one register of a matrix unit as high and low bytes.
FEW_CHANNELS = 32
# The maps of trials, side and channels: much work, whose sums could come near to 2^24; little; much work on
# few channels, whose bytes are read at once.
TRIALS = (64, 56), (8, 8), (64, 28)


class Way(NamedTuple):
    """prepare(weight) -> what run(q, prepared, taps) needs.

    narrow, wide: what it serves for; bytes: of a value in the neighbourhoods that it lays out, or 0.
    """

    name: str
    narrow: bool
    wide: bool
    bytes: int
    prepare: Callable
    run: Callable


def as_matrix(weight, dtype):
    """(out, C, rows, columns) -> (rows * columns * C, out)."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2).to(dtype).contiguous()


def product(multiply, q, matrix, taps):
    """A convolution as a product of matrices, of the neighbourhoods of pixels and the weights."""
    batch, height, width, channels = q.shape
    rows, columns = taps
    if rows * columns == 1:
        sums = multiply(q.reshape(-1, channels), matrix)
    else:
        height, width = height - rows + 1, width - columns + 1
        parts = [unfolded(image, taps) for image in q]
        sums = multiply(torch.cat(parts) if batch > 1 else parts[0], matrix)
    return sums.view(batch, height, width, -1)


def pieces(batch, height, width, bytes_a_pixel):
    """Cut maps so that what is computed of a piece fits the cache: slices of images, and of rows."""
    rows = max(CACHED // (width * bytes_a_pixel), 1)
    if rows >= height:
        count = rows // height
        return [(slice(b, min(b + count, batch)), slice(0, height)) for b in range(0, batch, count)]
    tops = range(0, height, rows)
    return [(slice(b, b + 1), slice(top, min(top + rows, height))) for b in range(batch) for top in tops]


def unfolded(image, taps):
    """The neighbourhoods of pixels: (H + rows - 1, W + columns - 1, C) -> (H * W, rows * columns * C)."""
    rows, columns = taps
    height, width, channels = image.shape[0] - rows + 1, image.shape[1] - columns + 1, image.shape[2]
    if not is_compiled(image):
        windows = image.unfold(0, rows, 1).unfold(1, columns, 1)
        return windows.permute(0, 1, 3, 4, 2).reshape(height * width, -1)
    out = image.new_empty(height * width, rows * columns * channels)
    source, target = image.view(len(image), -1).numpy(), out.numpy()
    if channels * image.element_size() % 8 == 0:  # fewer, larger pieces to copy
        source, target = source.view("i8"), target.view("i8")
    kernels.unfold(source, width, rows, target)
    return out


def _multiply_int8(q, matrix):
    """A product of 8-bit matrices: int32. A GPU wants more than 16 rows."""
    rows, columns = max(17 - len(q), 0), len(matrix) - q.shape[1]
    return torch._int_mm(F.pad(q, (0, columns, 0, rows)) if rows or columns else q, matrix)[: len(q)]


def _in_eights(matrix):
    """A matrix with zero rows and columns added: a GPU wants multiples of 8."""
    return F.pad(matrix, (0, -matrix.shape[1] % 8, 0, -matrix.shape[0] % 8)).contiguous()


def _prepare_int8_convolution(weight):
    ones, zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, 0, [1, 1], [0, 0], [1, 1], 1, None)
    return packed, ones, zeros


def _run_int8_convolution(q, prepared, taps):
    packed, ones, zeros = prepared
    sums = torch.ops.onednn.qconv2d_pointwise(
        q.permute(0, 3, 1, 2), 1.0, 0, packed, ones, zeros, None, [1, 1], [0, 0], [1, 1], 1,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return sums.permute(0, 2, 3, 1)


def split_bytes(weight):
    """Weights of 16 bits as high bytes and low ones, W = 256 H + L with a sign each, and whether `at_once`.

    Where there are few channels, those of x = 256 h + l are both read at once, and sums of h H, of h L + l H,
    of l L are computed side by side; otherwise those of h H and h L, and those of l H and l L.
    """
    channels, count = weight.shape[1], weight[0].numel()
    at_once = channels <= FEW_CHANNELS and 2 * count <= MOST_BYTES
    more = 0 if at_once else -channels % BLOCK
    weight = F.pad(weight.int(), (0, 0, 0, 0, 0, more, 0, -len(weight) % BLOCK))
    high = weight + 128 >> 8
    low = weight - (high << 8)
    if at_once:
        none = torch.zeros_like(high)
        parts = [torch.cat(both, 1) for both in ((high, none), (low, high), (none, low))]
        bytes_ = torch.cat(parts)
    else:
        bytes_ = torch.cat([high, low])
    return at_once, bytes_.to(torch.int8)


def _prepare_bytes(weight):
    at_once, bytes_ = split_bytes(weight)
    return at_once, _prepare_int8_convolution(F.pad(bytes_, (0, 0, 0, 0, 0, -bytes_.shape[1] % BLOCK)))


def _run_bytes(q, prepared, taps):
    """Sums of products of bytes: see passes.join_bytes."""
    at_once, convolution = prepared
    sums = _run_int8_convolution(halve_bytes(q, BLOCK, at_once).flatten(0, 1), convolution, taps)
    return sums.unflatten(0, (1 if at_once else 2, -1))


def _prepare_float_convolution(weight):
    return weight.float().contiguous(memory_format=torch.channels_last)


def _run_float_convolution(q, weight, taps):
    return F.conv2d(q.permute(0, 3, 1, 2).float(), weight).permute(0, 2, 3, 1)


def _run_int8_product(q, matrix, taps):
    return product(_multiply_int8, q, matrix, taps)


def _run_float_product(q, matrix, taps):
    return product(torch.mm, q.to(matrix.dtype), matrix, taps)


WAYS = {
    way.name: way
    for way in (
        Way("int8-convolution", True, False, 0, _prepare_int8_convolution, _run_int8_convolution),
        Way(
            "int8-product", True, False, 1, lambda w: _in_eights(as_matrix(w, torch.int8)), _run_int8_product
        ),
        Way("int8-bytes", False, True, 0, _prepare_bytes, _run_bytes),
        Way("float32-convolution", True, False, 0, _prepare_float_convolution, _run_float_convolution),
        Way("float32-product", True, False, 4, lambda w: as_matrix(w, torch.float32), _run_float_product),
        Way("float64-product", True, True, 8, lambda w: as_matrix(w, torch.float64), _run_float_product),
    )
}


class Trial(NamedTuple):
    """What became of a way's trial: why it is passed over, or milliseconds, for much work and for little."""

    fault: str
    much: float = float("inf")
    little: float = float("inf")


def _operands(wide, side, inputs, device):
    """Activations and weights at the ends of their ranges; neighbours are large together."""
    generator = torch.Generator().manual_seed(0)
    high, most = (2**15 - 1, 2**15 - 129) if wide else (255, 127)
    q = torch.randint(0, high + 1, (1, side + 2, side + 2, inputs), generator=generator)
    q[:, ::3] = high
    weight = torch.randint(-most, most + 1, (64, inputs, 3, 3), generator=generator)
    weight[::4], weight[1::4] = most, -most
    types = (torch.int16, torch.int16) if wide else (torch.uint8, torch.int8)
    return [t.to(kind).to(device) for t, kind in zip((q, weight), types)]


@functools.cache
@crew()
def trials(device, wide):
    """Try every way of a kind on a device: name -> Trial. Takes one or two tenths of a second."""
    exact, results, taps = WAYS["float64-product"], {}, (3, 3)
    cases = [_operands(wide, *size, device) for size in TRIALS]
    wanted = [exact.run(q, exact.prepare(weight), taps) for q, weight in cases]
    for (q, weight), sums in zip(cases, wanted):
        # the plain way itself, on the first row of pixels, in 64 bits
        windows = q[0, :3].long().cpu().unfold(1, 3, 1).permute(1, 2, 0, 3).flatten(1)
        if not torch.equal(windows @ weight.long().cpu().flatten(1).T, sums[0, 0].long().cpu()):
            raise RuntimeError("products of float64 matrices are not exact on this machine")
    for way in WAYS.values():
        if not (way.wide if wide else way.narrow):
            continue
        times = []
        try:
            for (q, weight), sums in zip(cases, wanted):
                prepared = way.prepare(weight)
                found = way.run(q, prepared, taps)
                if not torch.equal(
                    (join_bytes(found, len(weight)) if found.dim() > 4 else found).double(), sums
                ):
                    raise ValueError("it gives other integers here")
                if len(times) < 2:
                    times.append(min(_milliseconds(way, q, prepared, taps) for _ in range(3)))
        except Exception as error:  # whatever a build of the library lacks
            results[way.name] = Trial(str(error).partition("\n")[0] or type(error).__name__)
        else:
            results[way.name] = Trial("", *times)
    return results


def _milliseconds(way, q, prepared, taps):
    start = time.perf_counter()
    way.run(q, prepared, taps)
    if q.is_cuda:
        torch.cuda.synchronize(q.device)
    return 1e3 * (time.perf_counter() - start)


_forced = None


def force(name=None):
    """Compute by one of WAYS from now on, wherever it serves; elsewhere, and for None, by the fastest.

    Raises ValueError if there is no such way.
    """
    global _forced
    _check("-products", name)
    _forced = name
    choose.cache_clear()


def forced():
    """Whether a way is forced, here or by the environment."""
    return bool(_forced or os.environ.get(ENVIRONMENT))


def _check(place, name):
    if name is not None and name not in WAYS:
        raise ValueError(f"{place} {name}: need one of {', '.join(WAYS)}")


@functools.cache
def choose(device, wide, little, inputs=0):
    """The Way for narrow or wide layers, for little work or much: the fastest that is exact here.

    inputs: how many products a sum has. Raises ValueError if the way that is forced is none, or not exact.
    """
    tried = trials(device, wide)
    if inputs > MOST_BYTES:
        tried = {name: trial for name, trial in tried.items() if name != "int8-bytes"}
    name = _forced or os.environ.get(ENVIRONMENT) or None
    _check("-products" if _forced else ENVIRONMENT, name)
    if name in tried:
        if tried[name].fault:
            raise ValueError(f"{name}: it does not work here ({tried[name].fault})")
        return WAYS[name]
    return WAYS[min(tried, key=lambda name: tried[name].little if little else tried[name].much)]
