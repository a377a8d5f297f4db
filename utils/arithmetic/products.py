"""Ways to sum products of small integers, all of them exact: what networks in integers spend their time on.

A Way takes activations q (B, H + rows - 1, W + columns - 1, C) with their borders in place, weights
(out, C, rows, columns), int8, and gives the sums (B, H, W, out), integer-valued in a type of its own:
    sums[p] = sum over taps t and channels c of weight[:, c, t] q[p + t, c]
Every layer's weights bound its partial sums, in any order, below 2^24 (float32 and int32 hold them) or 2^53
(float64); see networks.py. Libraries may nonetheless choose Winograd's or Fourier's algorithms, or saturate
halfway: a way is used only after it gave the very integers of the plain one, here, in this process.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from utils.arithmetic import kernels
from utils.arithmetic.passes import is_compiled

# Bytes of sums or of neighbourhoods computed at a time, so that they are still in the cache when they are used.
CACHED = 1 << 22
# Below so many pixels, a library's direct convolution takes longer to start than a product takes in all.
FEW_PIXELS = 2048
ENVIRONMENT = "NWF_PRODUCTS"


class Way(NamedTuple):
    """prepare(weight int8) -> what run(q, prepared, taps) needs.

    largest: the largest |activation| it takes; bytes: of a value in the neighbourhoods that it lays out, or 0.
    """

    name: str
    largest: int
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
    rows = CACHED // (width * bytes_a_pixel)
    if batch * height <= rows:
        return [(slice(0, batch), slice(0, height))]
    tops = range(0, height, max(rows, 1))
    return [(slice(b, b + 1), slice(top, min(top + tops.step, height))) for b in range(batch) for top in tops]


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
    # a GPU wants more than 16 rows
    missing = max(17 - len(q), 0)
    return torch._int_mm(F.pad(q, (0, 0, 0, missing)) if missing else q, matrix)[: len(q)]


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


def _run_float_convolution(q, weight, taps):
    return F.conv2d(q.permute(0, 3, 1, 2).float(), weight).permute(0, 2, 3, 1)


def _run_int8_product(q, matrix, taps):
    return product(_multiply_int8, q, matrix, taps)


def _run_float_product(q, matrix, taps):
    return product(torch.mm, q.to(matrix.dtype), matrix, taps)


WAYS = {
    way.name: way
    for way in (
        Way("int8 convolution", 255, 0, _prepare_int8_convolution, _run_int8_convolution),
        Way("int8 product", 255, 1, lambda w: as_matrix(w, torch.int8), _run_int8_product),
        Way(
            "float32 convolution", 2**15, 0,
            lambda w: w.float().contiguous(memory_format=torch.channels_last), _run_float_convolution,
        ),
        Way("float32 product", 2**15, 4, lambda w: as_matrix(w, torch.float32), _run_float_product),
        Way("float64 product", 2**15, 8, lambda w: as_matrix(w, torch.float64), _run_float_product),
    )
}  # fmt: skip


class Trial(NamedTuple):
    """What became of a way's trial: why it is passed over, or its milliseconds on many and on few pixels."""

    fault: str
    many: float = float("inf")
    few: float = float("inf")


def _operands(largest, pixels, device, seed=0):
    """Activations and weights whose sums come near to 2^24, and pairs of which pass 2^15."""
    generator = torch.Generator().manual_seed(seed)
    side = round(pixels**0.5)
    q = torch.randint(0, largest + 1, (1, side + 2, side + 2, 64), generator=generator)
    q[:, ::3] = largest
    weight = torch.randint(-127, 128, (64, 64, 3, 3), generator=generator)
    weight[::4], weight[1::4] = 127, -127
    return q.to(torch.uint8).to(device), weight.to(torch.int8).to(device)


@functools.cache
def trials(device):
    """Try every way on a device: name -> Trial. Takes some hundredths of a second."""
    exact, results = WAYS["float64 product"], {}
    # 228 times 127 times 576 is just below 2^24
    cases = [_operands(228, pixels, device) for pixels in (64 * 64, 8 * 8)]
    wanted = [exact.run(q, exact.prepare(weight), (3, 3)) for q, weight in cases]
    for name, way in WAYS.items():
        times = []
        try:
            for (q, weight), sums in zip(cases, wanted):
                prepared = way.prepare(weight)
                if not torch.equal(way.run(q, prepared, (3, 3)).double(), sums):
                    raise ValueError("it gives other integers here")
                times.append(min(_milliseconds(way, q, prepared) for _ in range(3)))
        except Exception as error:  # whatever a build of the library lacks
            results[name] = Trial(str(error).partition("\n")[0] or type(error).__name__)
        else:
            results[name] = Trial("", *times)
    return results


def _milliseconds(way, q, prepared):
    start = time.perf_counter()
    way.run(q, prepared, (3, 3))
    if q.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


_forced = None


def force(name=None):
    """Compute by one of WAYS from now on, wherever it can: by a slower or wider one elsewhere; None: by choice.

    Raises ValueError if there is no such way, or if it does not work here.
    """
    global _forced
    if name is not None:
        if name not in WAYS:
            raise ValueError(f"{name!r}: need one of {', '.join(WAYS)}")
        fault = trials(torch.device("cpu"))[name].fault
        if fault:
            raise ValueError(f"{name}: does not work here ({fault})")
    _forced = name
    choose.cache_clear()


@functools.cache
def choose(device, largest, few):
    """The Way for activations up to `largest`, on few pixels or many: the fastest that is exact here."""
    name = _forced or os.environ.get(ENVIRONMENT)
    if name and name in WAYS and WAYS[name].largest >= largest:
        return WAYS[name]
    tried = trials(device)
    ways = [way for way in WAYS.values() if way.largest >= largest and not tried[way.name].fault]
    return min(ways, key=lambda way: tried[way.name].few if few else tried[way.name].many)
