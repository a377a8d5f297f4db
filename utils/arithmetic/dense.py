"""Convolutions of 8-bit maps, compiled for a processor's matrix unit, with what comes after them.

A library's convolution leaves sums in memory, to be read again, and takes and gives back the interpreter, for
which threads wait by turns, tens of microseconds each time. Here a network of many layers is one compiled
function that calls `convolve`, layer by layer.
Processors: x86 with AMX, for which Linux grants its tiles once a process asks, or with AVX-512 VNNI. Which of
them is compiled for follows from the features of the processor, which numba's cache knows.
"""

import ctypes
import platform
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.config import CPU_FEATURES
from numba.extending import intrinsic

from utils.arithmetic.kernels import COMPAND_BIAS, COMPAND_SHIFT

_compiled = numba.njit(cache=True, nogil=True)

# Pixels and outputs of a block of sums, and bytes of a pixel's neighbourhood that are read at once: two tiles
# of 16 rows of 64 bytes each way. Bytes of weights for these.
PIXELS, OUTPUTS, BYTES, WEIGHTS = 32, 32, 64, 2048
# Numbers of 32 bits in a vector.
LANES = 16
# What requantise and quantise of passes.py clamp to.
LARGE, NARROW = 2**15 - 1, 2**8 - 1
# Linux: the call that asks for a part of a processor's state, and AMX's tiles as such.
ARCH_PRCTL, REQUEST, TILES = 158, 0x1023, 18

I8, I16, I32, I64, VOID = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.VoidType()


def _features():
    """What code is compiled for."""
    return set((get_host_cpu_features() if CPU_FEATURES is None else CPU_FEATURES).split(","))


def has_amx():
    """Whether code is compiled for AMX; or else it is for vectors."""
    return {"+amx-tile", "+amx-int8"} <= _features()


@cache
def available():
    """Whether `convolve` works here, in this process: the processor has what it takes, and it is exact."""
    if not {"+avx512f", "+avx512bw", "+avx512vnni"} <= _features():
        return False
    if has_amx() and (
        platform.system() != "Linux" or ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST, TILES) != 0
    ):
        return False
    try:
        return _is_exact()
    except Exception:  # whatever a version of numba or LLVM lacks
        return False


def instructions():
    """Whose instructions `convolve` is made of, in words; "" where it is not available."""
    return ("AMX" if has_amx() else "AVX-512 VNNI") if available() else ""


def _is_exact():
    """Whether a layer gives what plain integers do, at the ends of their ranges."""
    draw = np.random.default_rng(0)
    height, width, channels, outputs = 3, 37, 48, 40
    weight = draw.integers(-127, 128, (outputs, channels, 3, 3), np.int8)
    weight[::4], weight[1::4] = 127, -127
    q = room(height + 2, width + 2, channels)
    q[...] = draw.integers(0, 256, q.shape, np.uint8)
    q[:2] = NARROW
    bias, none = draw.integers(-(2**20), 2**20, outputs), np.zeros(outputs, np.int64)
    layer = dense(packed(weight), weight.shape, (none[:channels], none[:channels]), (bias, none, none + 9))
    words = np.empty((height, width, -(-outputs // LANES) * LANES), np.int16)
    convolve(q, (0, height, 0, width), layer, WORDS, words, layer, q, 0)
    windows = np.lib.stride_tricks.sliding_window_view(q, (3, 3), (0, 1)).astype(np.int64)
    sums = np.einsum("ijcyx,ocyx->ijo", windows, weight.astype(np.int64))
    return np.array_equal(words[..., :outputs], (sums + bias >> 9).clip(-LARGE, LARGE))


class Dense(NamedTuple):
    """A layer as `convolve` takes it.

    packed: (blocks, rows * chunks, 2, 16, 64) int8; rows: of its kernel; outputs: of it. bias, left, right:
    of requantise in passes.py, half, shift: of quantise, of what it reads; int32, multiples of OUTPUTS each.
    """

    packed: np.ndarray
    rows: int
    outputs: int
    bias: np.ndarray
    left: np.ndarray
    right: np.ndarray
    half: np.ndarray
    shift: np.ndarray


def packed(weight):
    """Weights (out, C, rows, columns), int8, an array, in the order in which they are multiplied by.

    Of each block of outputs, each row of the kernel, each BYTES of a pixel's neighbourhood in that row: of 16
    outputs, then of 16 others, for each four bytes those of one output after the other.
    """
    outputs, channels, rows, columns = weight.shape
    blocks, chunks = -(-outputs // OUTPUTS), -(-columns * channels // BYTES)
    full = np.zeros((blocks * OUTPUTS, rows, chunks * BYTES), np.int8)
    full[:outputs, :, : columns * channels] = weight.transpose(0, 2, 3, 1).reshape(outputs, rows, -1)
    full = full.reshape(blocks, 2, LANES, rows, chunks, 16, 4).transpose(0, 3, 4, 1, 5, 2, 6)
    return aligned(full.reshape(blocks, rows * chunks, 2, 16, 64))


def aligned(array):
    """A copy that begins at a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def dense(packed, shape, reads, gives):
    """A Dense of packed weights of this shape; reads: half, shift; gives: bias, left, right."""
    tables = [np.pad(table, (0, -len(table) % OUTPUTS)).astype(np.int32) for table in (*gives, *reads)]
    return Dense(packed, shape[2], shape[0], *tables)


# -- what is written in the processor's own instructions -----------------------------------------------------


def _vector(kind):
    return ir.VectorType(kind, LANES)


INTEGERS, REALS = _vector(I32), _vector(ir.DoubleType())


def _call(builder, name, result, *operands):
    """An instruction that llvm has a name for."""
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def _moved(builder, address, *steps):
    """An address and, for each step, (count, size), so many bytes more; either may be a number."""
    for count, size in steps:
        count, size = (ir.Constant(I64, n) if isinstance(n, int) else n for n in (count, size))
        address = builder.add(address, builder.mul(count, size))
    return address


def _pointer(builder, address, kind=I8):
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder, address, kind=INTEGERS):
    return builder.load(_pointer(builder, address, kind), align=1)


def _store(builder, value, address):
    builder.store(value, _pointer(builder, address, value.type), align=1)


def _all(builder, value):
    """A vector of a value."""
    none = ir.Constant(_vector(value.type), ir.Undefined)
    one = builder.insert_element(none, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, none, ir.Constant(INTEGERS, [0] * LANES))


def _number(value, kind=INTEGERS):
    return ir.Constant(kind, [value] * LANES)


def _clamped(builder, x, low, high):
    """A vector of integers or of real numbers, limited to vectors of these."""
    less = builder.icmp_signed if x.type == INTEGERS else builder.fcmp_ordered
    x = builder.select(less("<", x, low), low, x)
    return builder.select(less(">", x, high), high, x)


class _Arguments:
    """The arguments of an intrinsic, by name; `at` gives the address of an element of an array."""

    def __init__(self, context, builder, arrays, numbers):
        self._context, self._builder, self._arrays, self._numbers = context, builder, arrays, numbers

    def __getitem__(self, name):
        kind, value = self._numbers[name]
        return value if kind is types.float64 else self._context.cast(self._builder, value, kind, types.int64)

    def at(self, name, index=0):
        """The address, by the element's number in memory."""
        kind, value = self._arrays[name]
        data = self._context.make_array(kind)(self._context, self._builder, value).data
        size = kind.dtype.bitwidth // 8
        return _moved(self._builder, self._builder.ptrtoint(data, I64), (index, size))


def _instructions(arrays, numbers):
    """Make of write(builder, arguments) what compiled functions may call with two tuples: arrays, numbers."""
    names = arrays.split(), numbers.split()

    def decorate(write):
        @intrinsic
        def instructions(typing, arrays, numbers):
            def generate(context, builder, signature, pair):
                values = (cgutils.unpack_tuple(builder, each) for each in pair)
                pairs = (zip(kind.types, each) for kind, each in zip(signature.args, values))
                named = (dict(zip(name, each)) for name, each in zip(names, pairs))
                write(builder, _Arguments(context, builder, *named))
                return context.get_dummy_value()

            return types.void(arrays, numbers), generate

        instructions.__doc__ = write.__doc__
        return instructions

    return decorate


@intrinsic
def configure(typing):
    """Make this thread's tiles 16 rows of 64 bytes each, where there are tiles."""

    def generate(context, builder, signature, arguments):
        if has_amx():
            shape = bytes([1, *15 * [0], *8 * [64, 0], *16 * [0], *8 * [16], *8 * [0]])
            constant = ir.Constant(ir.ArrayType(I8, len(shape)), bytearray(shape))
            there = cgutils.global_constant(builder.module, "tiles", constant)
            _call(builder, "llvm.x86.ldtilecfg", VOID, builder.bitcast(there, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def release(typing):
    """Give up this thread's tiles, which others then need not keep."""

    def generate(context, builder, signature, arguments):
        if has_amx():
            _call(builder, "llvm.x86.tilerelease", VOID)
        return context.get_dummy_value()

    return types.void(), generate


@_instructions("q weights sums", "start row pixel rows fours first to line count vectors")
def multiply(builder, given):
    """Sums of products of bytes of q, from `start` on, and of weights, from `first` on.

    row, pixel: bytes from a row of q to the next, from a pixel to the next; rows, fours: of the kernel, and
    of four bytes in a row of it. to: which of sums, int32, is the first; line: bytes from a pixel's to the
    next's. count: of pixels, up to PIXELS, vectors: of LANES outputs, up to OUTPUTS; sums of more pixels may
    be written.
    """
    write = _multiply_by_tiles if has_amx() else _multiply_by_vectors
    q, weights = given.at("q", given["start"]), given.at("weights", given["first"])
    chunks = _quotient(builder, given["fours"], BYTES // 4)
    with builder.if_else(_more(builder, given["vectors"], 1)) as (two, one):
        with two:
            write(builder, given, q, weights, chunks, 2)
        with one:
            write(builder, given, q, weights, chunks, 1)


def _more(builder, value, number):
    return builder.icmp_signed(">", value, ir.Constant(I64, number))


def _quotient(builder, value, number):
    """Rounded up."""
    return builder.sdiv(builder.add(value, ir.Constant(I64, number - 1)), ir.Constant(I64, number))


def _multiply_by_tiles(builder, given, q, weights, chunks, vectors):
    """By AMX: tiles 0 to 3 are sums, 4 and 5 pixels, 6 and 7 weights."""

    def tile(name, *operands):
        numbers = (ir.Constant(I8, n) if isinstance(n, int) else n for n in operands)
        _call(builder, f"llvm.x86.{name}", VOID, *numbers)

    def tile_of_16(x, n, size):
        return _pointer(builder, _moved(builder, x, (16 * n, size)))

    def both(write):
        """What is to be done for the first tile of pixels and, if there are so many, the second."""
        write(0)
        with builder.if_then(_more(builder, given["count"], LANES)):
            write(1)

    def multiply_tile(m):
        tile("tileloadd64", 4 + m, tile_of_16(x, m, given["pixel"]), given["pixel"])
        for n in range(vectors):
            tile("tdpbusd", 2 * m + n, 4 + m, 6 + n)

    def store_tile(m):
        for n in range(vectors):
            there = _moved(builder, given.at("sums", given["to"]), (LANES * n, 4))
            tile("tilestored64", 2 * m + n, tile_of_16(there, m, given["line"]), given["line"])

    for total in range(4):
        tile("tilezero", total)
    place = cgutils.alloca_once_value(builder, weights)
    with cgutils.for_range(builder, given["rows"]) as i, cgutils.for_range(builder, chunks) as k:
        x, w = _moved(builder, q, (i.index, given["row"]), (k.index, BYTES)), builder.load(place)
        for n in range(vectors):
            tile("tileloadd64", 6 + n, tile_of_16(w, n, BYTES), ir.Constant(I64, BYTES))
        both(multiply_tile)
        builder.store(_moved(builder, w, (1, WEIGHTS)), place)
    both(store_tile)


def _multiply_by_vectors(builder, given, q, weights, chunks, vectors, group=8):
    """By AVX-512 VNNI, for `group` pixels at a time, whose sums stay in registers."""
    place = cgutils.alloca_once(builder, I64)
    totals = [[cgutils.alloca_once(builder, INTEGERS) for _ in range(vectors)] for _ in range(group)]
    with cgutils.for_range(builder, _quotient(builder, given["count"], group)) as g:
        for total in sum(totals, []):
            builder.store(_number(0), total)
        builder.store(weights, place)
        before = builder.mul(g.index, ir.Constant(I64, group))
        with cgutils.for_range(builder, given["rows"]) as i, cgutils.for_range(builder, chunks) as k:
            x, w = _moved(builder, q, (before, given["pixel"]), (i.index, given["row"])), builder.load(place)
            most = ir.Constant(I64, BYTES // 4)
            left = builder.sub(given["fours"], builder.mul(k.index, most))
            left = builder.select(builder.icmp_signed("<", left, most), left, most)
            with cgutils.for_range(builder, left) as four:
                of_four = _moved(builder, w, (four.index, BYTES))
                taps = [_load(builder, _moved(builder, of_four, (n, WEIGHTS // 2))) for n in range(vectors)]
                for p, total in enumerate(totals):
                    here = _moved(builder, x, (p, given["pixel"]), (k.index, BYTES), (four.index, 4))
                    bytes_ = _all(builder, _load(builder, here, I32))
                    for one, tap in zip(total, taps):
                        operands = builder.load(one), bytes_, tap
                        builder.store(
                            _call(builder, "llvm.x86.avx512.vpdpbusd.512", INTEGERS, *operands), one
                        )
            builder.store(_moved(builder, w, (1, WEIGHTS)), place)
        for p, total in enumerate(totals):
            there = given.at("sums", given["to"])
            there = _moved(builder, there, (before, given["line"]), (p, given["line"]))
            for n, one in enumerate(total):
                _store(builder, builder.load(one), _moved(builder, there, (n, 4 * LANES)))


def _finisher(onto, to_words, to_bytes):
    """What becomes of sums (PIXELS, OUTPUTS) of `count` pixels: see `convolve`, of which this is one kind.

    vectors: of 16 outputs each, from `first` on; word, byte: where in words and out the first is to be.
    """

    @_instructions("sums bias left right half shift words out", "count vectors first word stride byte line")
    def finish(builder, given):
        first = given["first"]
        with cgutils.for_range(builder, given["vectors"]) as v:

            def table(name):
                return _load(builder, _moved(builder, given.at(name, first), (v.index, 4 * LANES)))

            bias, left, right = table("bias"), table("left"), table("right")
            half, shift = (table("half"), table("shift")) if to_bytes else (None, None)
            stride = builder.mul(given["stride"], ir.Constant(I64, 2))
            with cgutils.for_range(builder, given["count"]) as p:
                sums = _moved(builder, given.at("sums"), (v.index, 4 * LANES), (p.index, 4 * OUTPUTS))
                x = builder.ashr(builder.shl(builder.add(_load(builder, sums), bias), left), right)
                there = given.at("words", given["word"])
                there = _moved(builder, there, (v.index, 2 * LANES), (p.index, stride))
                if onto:
                    x = builder.add(x, builder.sext(_load(builder, there, _vector(I16)), INTEGERS))
                x = _clamped(builder, x, _number(-LARGE), _number(LARGE))
                if to_words:
                    _store(builder, builder.trunc(x, _vector(I16)), there)
                if to_bytes:
                    x = builder.ashr(builder.add(x, half), shift)
                    x = builder.trunc(_clamped(builder, x, _number(0), _number(NARROW)), _vector(I8))
                    there = given.at("out", given["byte"])
                    _store(builder, x, _moved(builder, there, (v.index, LANES), (p.index, given["line"])))

    return finish


_finish_words = _finisher(False, True, False)
_finish_bytes = _finisher(False, False, True)
_finish_both = _finisher(True, True, True)


@_instructions("sums bias scale words", "line third count vectors limit word stride")
def compand_wide(builder, given):
    """What becomes of sums of `count` pixels, of products of halves of 16 bits: words, companded.

    That is compand(requantise_thirds(..)) of kernels.py. line: numbers from a pixel's sums to the next's,
    third: from those of h H to those of h L + l H; vectors: of 16 outputs; word: where in words, int16, the
    first of them is to be, stride: from those of a pixel to those of the next.
    """
    limit = _all(builder, given["limit"])
    line, stride = (builder.mul(given[name], ir.Constant(I64, n)) for name, n in (("line", 4), ("stride", 2)))
    with cgutils.for_range(builder, given["vectors"]) as v:
        bias, scale = (
            _load(builder, _moved(builder, given.at(name), (v.index, 8 * LANES)), REALS)
            for name in ("bias", "scale")
        )
        with cgutils.for_range(builder, given["count"]) as p:
            sums = _moved(builder, given.at("sums"), (v.index, 4 * LANES), (p.index, line))
            high, middle, low = (
                builder.sitofp(_load(builder, _moved(builder, sums, (given["third"], 4 * n))), REALS)
                for n in range(3)
            )
            high = builder.fmul(high, _number(65536.0, REALS))
            x = builder.fadd(builder.fadd(high, builder.fmul(middle, _number(256.0, REALS))), low)
            x = builder.fmul(builder.fadd(x, bias), scale)
            x = _call(builder, "llvm.floor.v16f64", REALS, x)
            u = builder.fptosi(_clamped(builder, x, builder.fneg(limit), limit), INTEGERS)
            below = builder.icmp_signed("<", u, _number(0))
            size = builder.add(builder.select(below, builder.neg(u), u), _number(256))
            bits = builder.bitcast(builder.sitofp(size, _vector(ir.FloatType())), INTEGERS)
            half = (1 << int(COMPAND_SHIFT) - 1) - int(COMPAND_BIAS)
            y = builder.ashr(builder.add(bits, _number(half)), _number(int(COMPAND_SHIFT)))
            y = builder.trunc(builder.select(below, builder.neg(y), y), _vector(I16))
            there = given.at("words", given["word"])
            _store(builder, y, _moved(builder, there, (v.index, 2 * LANES), (p.index, stride)))


# -- layers --------------------------------------------------------------------------------------------------

WORDS, BYTES_ALONE, BOTH = 0, 1, 2


@_compiled
def room(height, width, channels):
    """A map of bytes, (H, W, C), beyond which may be read, for nothing."""
    count = height * width * channels
    memory = np.empty(count + (PIXELS + 4) * channels + BYTES, np.uint8)
    return memory[:count].reshape(height, width, channels)


@_compiled
def convolve(q, window, layer, kind, words, following, out, border):
    """A layer, from bytes q (H + rows - 1, W + rows - 1, C), made by `room`, and what comes after it.

    window: (top, bottom, left, right), what is wanted of its map. kind: WORDS: words (H, W, >= outputs) int16
    are what requantise gives. BYTES_ALONE: out (H + 2 border, W + 2 border, outputs) uint8 are what quantise
    makes of these for the layer `following`; its border is left alone. BOTH: the former is added to what
    words are, and the latter made of the sum.
    Maps have multiples of 16 channels, but for q.
    """
    across, channels, (top, bottom, left, right) = q.shape[1], q.shape[2], window
    fours = (layer.rows * channels + 3) // 4
    sums = np.empty(PIXELS * OUTPUTS, np.int32)
    stride, line = words.shape[2], out.shape[2]
    arrays = sums, layer.bias, layer.left, layer.right, following.half, following.shift, words, out
    configure()
    for i in range(top, bottom):
        for block in range(len(layer.packed)):
            first, weights = block * OUTPUTS, block * layer.packed.shape[1] * WEIGHTS
            vectors = min(OUTPUTS, layer.outputs - first + LANES - 1) // LANES
            for j in range(left, right, PIXELS):
                start, count = (i * across + j) * channels, min(PIXELS, right - j)
                place = start, across * channels, channels, layer.rows, fours, weights, 0, 4 * OUTPUTS
                multiply((q, layer.packed, sums), (*place, count, vectors))
                word = (i * words.shape[1] + j) * stride + first
                byte = ((i + border) * out.shape[1] + j + border) * line + first
                place = count, vectors, first, word, stride, byte, line
                if kind == WORDS:
                    _finish_words(arrays, place)
                elif kind == BYTES_ALONE:
                    _finish_bytes(arrays, place)
                else:
                    _finish_both(arrays, place)
    release()


@_compiled
def replicate(q):
    """Fill the border, of one pixel, of a map (H, W, C) with what is next to it."""
    height, width, channels = q.shape
    for i in range(1, height - 1):  # number by number, as assignments of slices take seconds to compile
        for c in range(channels):
            q[i, 0, c], q[i, width - 1, c] = q[i, 1, c], q[i, width - 2, c]
    for j in range(width):
        for c in range(channels):
            q[0, j, c], q[height - 1, j, c] = q[1, j, c], q[height - 2, j, c]
