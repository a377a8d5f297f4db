"""The coder's loops over symbols, compiled: intervals <-> state and words, symbols <-> intervals.

What a stream is, rans.py tells; what distributions are, tables.py. All that is compiled is in this one file:
numba's cache does not notice a change in another.
"""

from typing import NamedTuple

import numba
import numpy as np

from source.units import (
    ARGUMENT_BITS,
    LOGIT_BITS,
    LOGIT_CELLS_BITS,
    MAX_PRECISION,
    MEAN_BITS,
    SCALE_BITS,
    SCALES_PER_OCTAVE,
    SIGMOID_BITS,
    SIGMOID_CELL_BITS,
    SIGMOID_REACH,
    WEIGHT_SUM_BITS,
)

WORD = np.uint64(32)
FULL = np.uint64(1 << 32)
# How many symbols the caches hold with ease; below what sums of weights quotients of floats are exact.
AT_ONCE, MOST_WEIGHTS = 256, 2.0**37
# What costs are estimated by, in floats: polynomials of 2^x for x in [0, 1), of log2(1 + x), and the least
# power of two of a floating-point number that is no cause for care.
POWER = tuple(map(np.float32, (1.00000259, 0.69300383, 0.24144276, 0.05201146, 0.01353417)))
LOGARITHM = tuple(map(np.float32, (8.75921659e-05, 1.43770438, -0.674942848, 0.318679059, -0.0816157725)))
MOST_POWER, STEP, LOG2_OF_E = np.float32(60), np.float32(1 << MEAN_BITS), 1.4426950408889634
FRACTION, ONE, FRACTION_MASK = np.int32(23), np.int32(127 << 23), np.int32((1 << 23) - 1)
# Around a position: where features of corrections are taken from.
CROSS = (0, 0), (-1, 0), (0, -1), (0, 1), (1, 0)
AROUND = (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)
# Of adaptation.py: how many errors around a filter sees, and room for all that it sees; classes of sizes, and
# where they begin, of eight neighbours' in sixteenths; the most that errors, sizes, weights, means, steps of
# scales may be, in their units; when counts are halved; the rate of learning in 2^-8, what is added to it at
# first, divided by the symbols seen and so many; bits of means of sizes, of the filter's gain, of products of
# weights and errors in sixteenths, and with scales in steps of means, and of inverse scales.
LATERAL, FILTER, CLASSES, THRESHOLDS = 6, 16, 8, (64, 104, 144, 176, 232, 304, 432)
MOST_ERROR, MOST_SIZE, MOST_WEIGHT, MOST_MEAN, MOST_SCALED = 64, 96, 1 << 20, 1 << 30, 48
FARTHEST, MOST_COUNT = 1 << 20, 1 << 13
RATE, MORE, SOON, RATE_BITS = 12, 40 << 10, 1 << 10, 8
MEAN_SIZE_BITS, GAIN_BITS, TOTAL_BITS = 12, 8, 16
STEP_BITS, INVERSE_BITS = TOTAL_BITS + 4 + SCALE_BITS - MEAN_BITS, ARGUMENT_BITS - 4
# And of what is learned nearby: room for the weights of a second filter; after them the places of what is
# added to scales, and of the sums that say how far that filter is believed; room for all, in fours. How much
# is handed on, in 2^-6, of what was learned to the right, in the row above, then to the left, and above; the
# second filter's rate. Of what is added to scales, bits of a step, bits by which it moves less than widths
# do, and the most that these may move in all; what is believed and what is doubted at first; quarters of what
# classes say of scales that count, without all this and with it.
NEAR, LOCAL_WIDTH, LOCAL_AGREEMENT, LOCAL_POWER, LOCAL = 24, 24, 25, 26, 28
FROM_RIGHT, FROM_LEFT, FROM_ABOVE, HANDED_BITS, NEAR_RATE = 32, 36, 27, 6, 2
LOCAL_WIDTH_BITS, LOCAL_PATIENCE, MOST_LOCAL, LOCAL_BELIEF, LOCAL_DOUBT = 12, 3, 1 << 18, 1 << 9, 1 << 11
HEEDED, HEEDED_NEARBY = 3, 1
# And where components are weighed anew: octaves of mixtures' scales, and where they begin; how much evidence
# there is of each. Logits count 2^-20 octaves and are applied in 2^-8, evidence 2^-4, trust in it 2^-28,
# widths 2^-18 steps of scales; the most they may be; of a symbol, in 2^-31, the least probability, and how
# many times that a width may move by; bits that trust moves less by; bits of evidence by trust, of quotients,
# of steps of scales in an octave.
OCTAVES, FIRST_OCTAVE, EVIDENCE = 8, 144, 3
LEARNED_BITS, SHARE_BITS, EVIDENCE_BITS, TRUST_BITS, WIDTH_BITS = 20, 8, 4, 28, 18
MOST_LOGIT, MOST_EVIDENCE, MOST_TRUST, MOST_WIDTH = 8 << 20, 48, 1 << 28, 64 << 18
LEAST_MASS, MOST_PULL, CAUTION = 1 << 7, 4, 1
HEARD_BITS, QUOTIENT_BITS = TRUST_BITS + EVIDENCE_BITS - SHARE_BITS, 60
OCTAVE_BITS = SCALES_PER_OCTAVE.bit_length() - 1

_compiled = numba.njit(cache=True, nogil=True)
# Without numba's runtime, which would count references to arrays for each symbol: a third to a half of the
# time. So nothing is allocated within.
_inlined = numba.njit(forceinline=True, _nrt=False)
_lean = numba.njit(cache=True, nogil=True, _nrt=False)
# Of floats: a division that is not watched for zeros, as loops with a way out are not vectorised.
_floating = numba.njit(cache=True, nogil=True, error_model="numpy")
_floating_inlined = numba.njit(forceinline=True, error_model="numpy")


class Tables(NamedTuple):
    """The functions of tables.py, tabulated: uint32 sigmoid, int32 inverse scale, scale and logit."""

    sigmoid: np.ndarray
    inverse: np.ndarray
    scale: np.ndarray
    logit: np.ndarray


class Mixtures(NamedTuple):
    """A mixture for each of N symbols, in the units of units.py.

    low: (N,), the first integers of the windows; nbins: their size; precision: of the intervals;
    weight, of a sum of 2^16, mean, scale: (K, N). All int32.
    """

    low: np.ndarray
    nbins: int
    precision: int
    weight: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


class Scratch(NamedTuple):
    """What is worked with where mixtures of K components adapt.

    shifts: (CLASSES,) int64, see _begin_row; known: (NEAR,) int32, what filters see, and 0, as it is to be
    where a strip begins; room: (EVIDENCE + 4, K) int64, see _weigh and _bounds.
    """

    shifts: np.ndarray
    known: np.ndarray
    room: np.ndarray


class Memory(NamedTuple):
    """What adaptation.py keeps of one level of an image; H x W: of its coarse band.

    errors: (bands, C, H + 3, W + 4) int8, in sixteenths of scales, with two rows above, one below and two
    columns on both sides; sizes: (C, H + 3, W + 4) uint8, of this band's after filtering. Of each channel of
    the band: weights: (C, FILTER) int32, the filter's, in 2^-16, and 0; counts, sums: (C, CLASSES), of each
    class how many symbols there were, and the sum of their sizes; agreement, power: (C,), sums of products of
    what the filter said with errors and with itself; seen: (C,), how many symbols there were in all; int64.
    nearby: (C, W + 4, LOCAL) int32, what was learned in this row or, to the right, in that above: weights of
    the second filter, in 2^-16, what is added to scales, in 2^-12 steps, its agreement and power, and 0;
    (C, 0, LOCAL) where nothing is learned nearby.
    Of K components, 0 where these are not weighed anew: logits, widths: (C, OCTAVES, K), what is added to
    their logits and scales; trust: (C, EVIDENCE), how far evidence is believed; int64; evidence: (C, 3,
    W + 4, K) int8, how much better than its mixture each was, row y being at y mod 3.
    scratch: a Scratch.
    """

    errors: np.ndarray
    sizes: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    sums: np.ndarray
    agreement: np.ndarray
    power: np.ndarray
    seen: np.ndarray
    nearby: np.ndarray
    logits: np.ndarray
    widths: np.ndarray
    trust: np.ndarray
    evidence: np.ndarray
    scratch: Scratch


class Popped(NamedTuple):
    """Where popping ended: after `count` symbols, at `position` in the words, with `state`."""

    count: int
    position: int
    state: np.uint64


@_compiled
def push_intervals(start, frequency, precision, state, words):
    """Push intervals, the last one first; words: room for one word each, filled from its end.

    Returns the state and where the words begin.
    """
    position = words.size
    shift = np.uint64(precision)
    for i in range(start.size - 1, -1, -1):
        f = np.uint64(frequency[i])
        if state >> (np.uint64(64) - shift) >= f:
            position -= 1
            words[position] = np.uint32(state)
            state >>= WORD
        quotient = state // f
        state = (quotient << shift) + (state - quotient * f) + np.uint64(start[i])
    return state, position


@_inlined
def _refill(words, position, state):
    """Bring the state back to [2^32, 2^64); below 2^32 it remains only if there is no word left."""
    if state < FULL and position < words.size:
        state = state << WORD | np.uint64(words[position])
        position += 1
    return position, state


@_inlined
def _advance(state, slot, start, end, precision):
    """The state after the symbol of [start, end) was taken from it."""
    return (state >> np.uint64(precision)) * np.uint64(end - start) + np.uint64(slot - start)


@_compiled
def pop_table(words, position, state, lowest, symbols, values, starts, precision):
    """Pop symbols that share one table: values[j] owns [starts[j], starts[j + 1]). Returns Popped.

    lowest: the stream has ended where the state stays below.
    """
    mask = np.uint64((1 << precision) - 1)
    for i in range(symbols.size):
        position, state = _refill(words, position, state)
        if state < lowest:
            return Popped(i, position, state)
        slot = np.int64(state & mask)
        low, high = 0, values.size
        while high - low > 1:
            middle = (low + high) >> 1
            if starts[middle] <= slot:
                low = middle
            else:
                high = middle
        state = _advance(state, slot, starts[low], starts[low + 1], precision)
        symbols[i] = values[low]
    return Popped(symbols.size, position, state)


@_floating
def _normalise(weight, normalised):
    """Bring the weights of each symbol to a sum of 2^16, (K, N) both. Returns False if one was 0 or large.

    The running sums are rounded, not the weights: that keeps the total. Quotients of floats are exact here,
    rounded down: of sums below 2^37 no quotient is as near to the next integer as floats round.
    """
    total, running, before = np.empty((3, AT_ONCE))
    sound = True
    for first in range(0, weight.shape[1], AT_ONCE):
        count = min(AT_ONCE, weight.shape[1] - first)
        total[:] = running[:] = before[:] = 0
        for k in range(weight.shape[0]):
            given = weight[k, first : first + count]
            for i in range(count):
                total[i] += given[i]
        for i in range(count):
            sound &= 0 < total[i] < MOST_WEIGHTS
            total[i] = max(total[i], 1.0)
        for k in range(weight.shape[0]):
            given, out = weight[k, first : first + count], normalised[k, first : first + count]
            for i in range(count):
                running[i] += given[i]
                after = np.floor(running[i] * (1 << WEIGHT_SUM_BITS) / total[i])
                out[i] = np.int32(after - before[i])
                before[i] = after
    return sound


@_compiled
def _average(weight, values, out):
    """The mean of each symbol's values by weights that sum to 2^16, rounded down: (K, N), (K, N) -> (N,)."""
    total = np.empty(AT_ONCE, np.int64)
    for first in range(0, out.size, AT_ONCE):
        count = min(AT_ONCE, out.size - first)
        total[:] = 0
        for k in range(weight.shape[0]):
            share, value = weight[k, first : first + count], values[k, first : first + count]
            for i in range(count):
                total[i] += np.int64(share[i]) * np.int64(value[i])
        for i in range(count):
            out[first + i] = total[i] >> WEIGHT_SUM_BITS


@_compiled
def prepare_mixtures(weight, mean, nbins, normalised, low):
    """Bring weights to a sum of 2^16 (normalised), and find the first integers of the windows (low).

    weight >= 0, mean, normalised: (K, N); low: (N,). Returns False if a sum of weights is 0, or too large.
    """
    if not _normalise(weight, normalised):
        return False
    _average(normalised, mean, low)
    for i in range(low.size):
        low[i] = (np.int64(low[i]) + (1 << MEAN_BITS - 1) >> MEAN_BITS) - nbins // 2
    return True


@_inlined
def _interpolate(table, x, bits):
    """table, tabulated at multiples of 2^bits, at x >= 0: linear in between, rounded down, hence monotone."""
    cell = np.uint64(x >> bits)
    left, right = np.int64(table[cell]), np.int64(table[cell + np.uint64(1)])
    return left + ((right - left) * (x & (1 << bits) - 1) >> bits)


@_inlined
def _bounds(z, i, mixtures, tables, room=None):
    """Start and end of the interval of z, low - 1 <= z <= low + nbins, under the i-th mixture.

    |64 z| < 2^32, |mean| <= 2^31 and inverse <= 2^29 keep the argument of the sigmoid below 2^63;
    weights that sum to 2^16, the sum within 2^47; spread < 2^24, the product with it within 2^55.
    room: where what _sides tells of each component is to be kept, for _learn_weights.
    """
    start, end = np.int64(0), np.int64(0)
    for k in range(mixtures.mean.shape[0]):
        w = np.int64(mixtures.weight[k, i])
        left, right, below, until = _sides(z, i, k, mixtures, tables)
        if room is not None:
            room[EVIDENCE, k], room[EVIDENCE + 1, k] = left, right
            room[EVIDENCE + 2, k], room[EVIDENCE + 3, k] = below, until
        start, end = start + w * below, end + w * until
    return _interval(z, i, start, end, mixtures)


@_inlined
def _sides(z, i, k, mixtures, tables):
    """Of the k-th component, at both sides of z: the arguments of its sigmoid, 24 more, and its values."""
    slope = np.int64(tables.inverse[np.uint64(mixtures.scale[k, i])])
    limit = (2 * SIGMOID_REACH << ARGUMENT_BITS) - 1
    edge = (z << MEAN_BITS) - (1 << MEAN_BITS - 1)
    left = (edge - mixtures.mean[k, i]) * slope + (SIGMOID_REACH << ARGUMENT_BITS)
    right = min(max(left + (slope << MEAN_BITS), 0), limit)
    left = min(max(left, 0), limit)
    below = _interpolate(tables.sigmoid, left, SIGMOID_CELL_BITS)
    return left, right, below, _interpolate(tables.sigmoid, right, SIGMOID_CELL_BITS)


@_inlined
def _interval(z, i, start, end, mixtures):
    """Start and end of the interval of z, from the sums of weighted sigmoids at both of its sides."""
    low, nbins, precision, _, _, _ = mixtures
    spread, rank = (1 << precision) - nbins - 2, z - low[i] + 1
    start = ((start >> WEIGHT_SUM_BITS) * spread >> SIGMOID_BITS) + rank
    end = ((end >> WEIGHT_SUM_BITS) * spread >> SIGMOID_BITS) + rank + 1
    if z < low[i]:
        start = np.int64(0)
    if z >= low[i] + nbins:
        end = np.int64(1 << precision)
    return start, end


@_compiled
def mixture_intervals(symbols, mixtures, tables, start, frequency):
    """Find the intervals of symbols under Mixtures: one for each inside its window, four for each outside.

    Inverse: pop_mixtures.
    """
    j = 0
    for i in range(symbols.size):
        symbol = np.int64(symbols[i])
        z = _within_window(symbol, i, mixtures)
        first, last = _bounds(z, i, mixtures, tables)
        j = _put(symbol, z, i, first, last, mixtures, start, frequency, j)


@_inlined
def _within_window(symbol, i, mixtures):
    """A symbol, or what stands for those below or above the window of the i-th of Mixtures."""
    return min(max(symbol, np.int64(mixtures.low[i]) - 1), np.int64(mixtures.low[i]) + mixtures.nbins)


@_inlined
def _put(symbol, z, i, first, last, mixtures, start, frequency, j):
    """Write the interval of z at index j, and how far outside a symbol is after it. Returns the next j."""
    start[j], frequency[j] = first, last - first
    j += 1
    below, above = np.int64(mixtures.low[i]) - 1, np.int64(mixtures.low[i]) + mixtures.nbins
    if z == below or z == above:
        distance = abs(symbol - z) + 1
        length = np.int64(0)
        while distance >> (length + 1):
            length += 1
        upper = max(length - 16, 0)
        lower = length - upper
        for value, width in ((length, 5), (distance >> lower, upper), (distance, lower)):
            start[j], frequency[j] = _bits_interval(value & (1 << width) - 1, width, mixtures.precision)
            j += 1
    return j


@_lean
def pop_mixtures(words, position, state, lowest, symbols, mixtures, tables, place=None, memory=None):
    """Pop symbols, each under its own of Mixtures. Returns Popped. Inverse: mixture_intervals.

    lowest: as of pop_table. place, memory: of a strip whose Mixtures adapt, in place, to each symbol before
    the next, as of `adapt`.
    """
    low, nbins, precision = mixtures.low, mixtures.nbins, mixtures.precision
    mask = np.uint64((1 << precision) - 1)
    if memory is None:
        room = None
    else:
        band, channel, top, height, width = place
        shifts, known, room = memory.scratch
        row, column, gain, rate = top + 1, width - 1, np.int64(0), np.int64(0)  # before the first
    for i in range(symbols.size):
        if memory is not None:
            column += 1
            if column == width:
                row, column = row + 1, 0
                gain, rate = _begin_row(memory, channel, width, shifts)
            here = band, channel, row, column + 2
            foretold = _move(i, here, mixtures, memory, shifts, gain, known, room, tables)
        position, state = _refill(words, position, state)
        if state < lowest:
            return Popped(i, position, state)
        slot = np.int64(state & mask)
        below, above = np.int64(low[i]) - 1, np.int64(low[i]) + nbins
        z = _guess(slot, i, mixtures, tables)
        left, right = below, above
        trial = 0
        while True:
            z = min(max(z, left), right)
            start, end = _bounds(z, i, mixtures, tables, room)
            if slot < start:
                right = z - 1
            elif slot >= end:
                left = z + 1
            else:
                break
            # Newton's step, but a bisection now and then, lest a flat stretch lead it astray
            trial += 1
            z = z + (slot - start) // (end - start) if trial & 3 else (left + right) >> 1
        state = _advance(state, slot, start, end, precision)
        if z == below or z == above:
            position, state, length = _pop_bits(words, position, state, lowest, 5, precision)
            upper = max(length - 16, 0)
            lower = length - upper
            position, state, high = _pop_bits(words, position, state, lowest, upper, precision)
            position, state, rest = _pop_bits(words, position, state, lowest, lower, precision)
            if rest < 0:
                return Popped(i, position, state)
            distance = ((np.int64(1) << upper) + high << lower) + rest - 1
            z = z - distance if z == below else z + distance
        symbols[i] = z  # wraps round in corrupt streams alone
        if memory is not None:
            if memory.logits.shape[2]:
                _learn_weights(i, here, foretold[7], mixtures, memory, room)
            _learn(np.int64(symbols[i]), here, foretold, rate, memory, known, tables)
    return Popped(symbols.size, position, state)


@_inlined
def _guess(slot, i, mixtures, tables):
    """About where the slot lies: the mean of the components' quantiles. Nothing but time depends on it."""
    _, nbins, precision, weight, mean, scale = mixtures
    spread = (1 << precision) - nbins - 2
    level = min(max(slot - nbins // 2 - 1, 0), spread - 1) << (MAX_PRECISION - precision)
    t = _interpolate(tables.logit, level, MAX_PRECISION - LOGIT_CELLS_BITS)
    quantile = np.int64(0)
    for k in range(mean.shape[0]):
        offset = t * tables.scale[np.uint64(scale[k, i])] >> (LOGIT_BITS + SCALE_BITS - MEAN_BITS)
        quantile += np.int64(weight[k, i]) * (mean[k, i] + offset)
    return ((quantile >> WEIGHT_SUM_BITS) + (1 << MEAN_BITS - 1)) >> MEAN_BITS


@_inlined
def _bits_interval(value, width, precision):
    """Start and frequency of a number of `width` <= 16 equiprobable bits. Inverse: _pop_bits."""
    return value << (precision - width), 1 << (precision - width)


@_inlined
def _pop_bits(words, position, state, lowest, width, precision):
    """Pop a number of `width` <= 16 equiprobable bits, -1 if the stream has ended: for good, then."""
    position, state = _refill(words, position, state)
    if state < lowest:
        return position, state, np.int64(-1)
    slot = np.int64(state & np.uint64((1 << precision) - 1))
    value = slot >> (precision - width)
    start, frequency = _bits_interval(value, width, precision)
    return position, _advance(state, slot, start, start + frequency, precision), value


@_lean
def adapt(symbols, mixtures, place, memory, tables, start, frequency):
    """Let Mixtures of a strip adapt, in place, to each symbol before the next: see adaptation.py.

    place: band, channel, top row, height and width. start, frequency: room for the intervals of symbols, four
    of each. Returns how many they are. Inverse: pop_mixtures.
    """
    band, channel, top, height, width = place
    (shifts, known, room), j = memory.scratch, 0
    for row in range(height):
        gain, rate = _begin_row(memory, channel, width, shifts)
        for column in range(width):
            i, here = row * width + column, (band, channel, top + row + 2, column + 2)
            foretold = _move(i, here, mixtures, memory, shifts, gain, known, room, tables)
            symbol = np.int64(symbols[i])
            z = _within_window(symbol, i, mixtures)
            first, last = _bounds(z, i, mixtures, tables, room)
            if memory.logits.shape[2]:
                _learn_weights(i, here, foretold[7], mixtures, memory, room)
            j = _put(symbol, z, i, first, last, mixtures, start, frequency, j)
            _learn(symbol, here, foretold, rate, memory, known, tables)
    return j


@_inlined
def _begin_row(memory, channel, width, shifts):
    """How far to move the scales of each class; returns the gain of the filter, and the rate it learns at.

    A class is moved by a part of how far it is from all symbols in the logarithm of its mean size.
    The gain is what it should, in hindsight, have been multiplied by, from 0 to 1. What was learned nearby is
    handed on along the row above.
    """
    heeded = HEEDED
    if memory.nearby.shape[1]:
        heeded = HEEDED_NEARBY
        _hand_back(memory.nearby, channel, width)
    count, total = memory.counts[channel].sum(), memory.sums[channel].sum()
    usual = _octaves_of((total << MEAN_SIZE_BITS) // count, OCTAVE_BITS)
    for j in range(CLASSES):
        mean = (memory.sums[channel, j] << MEAN_SIZE_BITS) // memory.counts[channel, j]
        shift = heeded * (_octaves_of(mean, OCTAVE_BITS) - usual) >> 2
        shifts[j] = min(max(shift, -MOST_SCALED), MOST_SCALED)
    gain = _gain(memory.agreement[channel], memory.power[channel])
    return gain, RATE + MORE // (memory.seen[channel] + SOON)


@_inlined
def _gain(agreement, power):
    """What to multiply a filter by, from 0 to 1, in 2^-8."""
    return min(max((agreement << GAIN_BITS) // power, 0), 1 << GAIN_BITS)


@_inlined
def _multiplied(total, gain):
    """What a filter says, times its gain."""
    return (total * gain + (1 << GAIN_BITS - 1)) >> GAIN_BITS


@_inlined
def _hand_back(nearby, channel, width):
    """Hand on what was learned in the row above from the right to the left, and make it begin a row."""
    for x in range(width, 1, -1):
        _hand_on(nearby, channel, x + 1, FROM_RIGHT, x, (1 << HANDED_BITS) - FROM_RIGHT)
    for k in range(LOCAL):
        nearby[channel, 1, k] = nearby[channel, 2, k]


@_inlined
def _hand_on(nearby, channel, beside, share, x, rest):
    """Make what was learned at x shares of this and of what was learned beside it."""
    channel, beside, x = np.uint64(channel), np.uint64(beside), np.uint64(x)
    for k in range(np.uint64(LOCAL)):
        handed = np.int32(nearby[channel, beside, k] * np.int32(share))
        handed = np.int32(handed + np.int32(nearby[channel, x, k] * np.int32(rest)))
        handed = np.int32(handed + np.int32(1 << HANDED_BITS - 1)) >> np.int32(HANDED_BITS)
        nearby[channel, x, k] = handed


@_inlined
def _octaves_of(x, bits):
    """log2(x), linear between powers of two, in 2^-bits, rounded down, of 0 <= x < 2^53; of 0 as of 1.

    So are the bits of a float, but for those that are too many.
    """
    return (np.float64(max(x, 1)).view(np.int64) >> 52 - bits) - (1023 << bits)


@_inlined
def _move(i, here, mixtures, memory, shifts, gain, known, room, tables):
    """Move the i-th of Mixtures.

    Returns its centre and spread before; in sixteenths of a scale, what the first filter said, by how much
    that moved it, what the second said, and by how much both moved it; its class and its octave. here: band,
    channel, row and column in memory; known: to be filled with what filters see; room: as of _weigh.
    """
    band, channel, y, x = here
    u, z = memory.errors[band, channel], memory.sizes[channel]
    known[0], known[1], known[2], known[3] = u[y, x - 1], u[y - 1, x], u[y - 1, x - 1], u[y - 1, x + 1]
    known[4], known[5] = u[y, x - 2], u[y - 2, x]
    f = LATERAL
    for c in range(channel):
        known[f] = memory.errors[band, c, y, x]
        f += 1
    for b in range(band):
        known[f] = memory.errors[b, channel, y, x]
        f += 1
    total, weights = np.int64(0), memory.weights[channel]
    for k in range(FILTER):
        total += np.int64(weights[k]) * np.int64(known[k])
    first = _multiplied(total, gain)
    near, moved, added = np.int64(0), first, np.int64(0)
    if memory.nearby.shape[1]:
        near, gain_here, added = _look_nearby(here, memory, known)
        moved += _multiplied(near, gain_here)
    size = 2 * (np.int64(z[y, x - 1]) + z[y - 1, x]) + z[y - 1, x - 1] + z[y - 1, x + 1]
    size += np.int64(z[y, x - 2]) + z[y - 2, x]
    kind = 0
    for limit in THRESHOLDS:
        kind += size >= limit
    centre, spread, after = np.int64(0), np.int64(0), np.int64(0)
    for k in range(mixtures.mean.shape[0]):
        weight = np.int64(mixtures.weight[k, i])
        centre += weight * mixtures.mean[k, i]
        spread += weight * mixtures.scale[k, i]
    centre, spread = centre >> WEIGHT_SUM_BITS, spread >> WEIGHT_SUM_BITS
    step = (moved * tables.scale[np.uint64(spread)] + (1 << STEP_BITS - 1)) >> STEP_BITS
    octave = min(max(spread + shifts[kind] - FIRST_OCTAVE >> OCTAVE_BITS, 0), OCTAVES - 1)
    weighing = memory.logits.shape[2]
    if weighing:
        _weigh(i, here, octave, mixtures, memory, room)
    for k in range(mixtures.mean.shape[0]):
        mean = min(max(mixtures.mean[k, i] + step, -MOST_MEAN), MOST_MEAN)
        mixtures.mean[k, i] = mean
        scale = mixtures.scale[k, i] + shifts[kind] + added
        if weighing:
            scale += (memory.widths[channel, octave, k] + (1 << WIDTH_BITS - 1)) >> WIDTH_BITS
        mixtures.scale[k, i] = min(max(scale, 0), tables.scale.size - 1)
        after += np.int64(mixtures.weight[k, i]) * mean
    mixtures.low[i] = ((after >> WEIGHT_SUM_BITS) + (1 << MEAN_BITS - 1) >> MEAN_BITS) - mixtures.nbins // 2
    said, first, near, moved = _rounded(total), _rounded(first), _rounded(near), _rounded(moved)
    return centre, spread, said, first, near, moved, kind, octave


@_inlined
def _rounded(total):
    """A sum of products of weights and errors, to the nearest sixteenth of a scale."""
    return total + (1 << TOTAL_BITS - 1) >> TOTAL_BITS


@_inlined
def _look_nearby(here, memory, known):
    """What the second filter says, how far it is believed, and what is added to scales.

    What was learned to the left and above is handed on to this place first. The first filter's `known` is
    completed by errors around this place in the channels before.
    """
    (band, channel, y, x), u, nearby, f = here, memory.errors, memory.nearby, FILTER
    for c in range(channel):
        known[f], known[f + 1] = u[band, c, y, x - 1], u[band, c, y - 1, x]
        known[f + 2], known[f + 3] = u[band, c, y, x + 1], u[band, c, y + 1, x]
        f += 4
    _hand_on(nearby, channel, x - 1, FROM_LEFT, x, FROM_ABOVE)
    said, channel, x = np.int32(0), np.uint64(channel), np.uint64(x)
    for k in range(np.uint64(NEAR)):
        said = np.int32(said + np.int32(nearby[channel, x, k] * known[k]))
    agreement = LOCAL_BELIEF + np.int64(nearby[channel, x, LOCAL_AGREEMENT])
    power = LOCAL_DOUBT + np.int64(nearby[channel, x, LOCAL_POWER])
    added = (np.int64(nearby[channel, x, LOCAL_WIDTH]) + (1 << LOCAL_WIDTH_BITS - 1)) >> LOCAL_WIDTH_BITS
    return np.int64(said), _gain(agreement, power), added


@_inlined
def _weigh(i, here, octave, mixtures, memory, room):
    """Weigh the components of the i-th of Mixtures anew, by what was learned of them and by evidence around.

    room: (EVIDENCE + 4, K), to be filled with the evidence, for one. Powers of two are linear in between; the
    running sums are rounded, not the weights.
    """
    (_, channel, y, x), evidence, count, total = here, memory.evidence, mixtures.mean.shape[0], np.int64(0)
    # without a sign, no index is looked at for being negative
    one, two = np.uint64(1), np.uint64(2)
    channel, octave, x = np.uint64(channel), np.uint64(octave), np.uint64(x)
    row, above, upper = np.uint64(y % 3), np.uint64((y + 2) % 3), np.uint64((y + 1) % 3)
    half, most = 1 << HEARD_BITS - 1, MOST_LOGIT >> LEARNED_BITS - SHARE_BITS
    for k in range(count):
        room[0, k] = evidence[channel, row, x - one, k]
        room[1, k] = evidence[channel, above, x, k]
        room[2, k] = np.int64(evidence[channel, above, x - one, k]) + evidence[channel, above, x + one, k]
        room[2, k] += np.int64(evidence[channel, row, x - two, k]) + evidence[channel, upper, x, k]
        logit = memory.logits[channel, octave, k] << HEARD_BITS + SHARE_BITS - LEARNED_BITS
        for f in range(EVIDENCE):
            logit += memory.trust[channel, f] * room[f, k]
        logit = min(max((logit + half) >> HEARD_BITS, -most), most)
        power = ((1 << SHARE_BITS) + (logit & (1 << SHARE_BITS) - 1)) << (logit >> SHARE_BITS) + SHARE_BITS
        total += mixtures.weight[k, i] * power
        room[EVIDENCE, k] = total
    inverse, before = (np.int64(1) << QUOTIENT_BITS) // total, np.int64(0)
    for k in range(count):
        running = room[EVIDENCE, k] * inverse >> QUOTIENT_BITS - WEIGHT_SUM_BITS
        running = running if k < count - 1 else np.int64(1 << WEIGHT_SUM_BITS)
        mixtures.weight[k, i], before = running - before, running


@_inlined
def _learn(symbol, here, foretold, rate, memory, known, tables):
    """Keep how far a symbol is from where it was foretold, and move the filters towards it."""
    (band, channel, y, x), (centre, spread, said, first, near, moved, kind, _) = here, foretold
    error = _sixteenths((symbol << MEAN_BITS) - centre, spread, tables)
    memory.errors[band, channel, y, x] = kept = _within(error, MOST_ERROR)
    memory.sizes[channel, y, x] = size = min(abs(error - moved), MOST_SIZE)
    memory.counts[channel, kind] += 1
    memory.sums[channel, kind] += size
    if memory.counts[channel, kind] >= MOST_COUNT:
        memory.counts[channel, kind] >>= 1
        memory.sums[channel, kind] >>= 1
    pull, weights = np.int32(_within(error - said, MOST_ERROR) * rate), memory.weights[channel]
    for f in range(FILTER):
        step = np.int32(np.int32(pull * known[f]) + np.int32(1 << RATE_BITS - 1)) >> np.int32(RATE_BITS)
        weights[f] = _within(weights[f] + step, MOST_WEIGHT)
    said = np.int64(_within(said, MOST_ERROR))
    memory.agreement[channel] += said * kept
    memory.power[channel] += said * said
    memory.seen[channel] += 1
    if memory.nearby.shape[1]:
        nearby, channel, x, rest = memory.nearby, np.uint64(channel), np.uint64(x), error - first
        pull = np.int32(_within(rest - near, MOST_ERROR) * np.int32(NEAR_RATE))
        for f in range(np.uint64(NEAR)):
            weight = np.int32(nearby[channel, x, f] + np.int32(pull * known[f]))
            nearby[channel, x, f] = _within(weight, MOST_WEIGHT)
        near = _within(near, MOST_ERROR)
        nearby[channel, x, LOCAL_AGREEMENT] += near * _within(rest, MOST_ERROR)
        nearby[channel, x, LOCAL_POWER] += near * near


@_inlined
def _learn_weights(i, here, octave, mixtures, memory, room):
    """Move logits, widths and trust by the gradients of a symbol's logarithm, and keep its evidence.

    room: with what _bounds found. An argument times the sigmoid's derivative there stays below 2^58.
    """
    (_, channel, y, x), count, total = here, mixtures.mean.shape[0], np.int64(0)
    channel, octave, x, row = np.uint64(channel), np.uint64(octave), np.uint64(x), np.uint64(y % 3)
    middle = SIGMOID_REACH << ARGUMENT_BITS
    for k in range(count):
        w = np.int64(mixtures.weight[k, i])
        left, right = room[EVIDENCE, k], room[EVIDENCE + 1, k]
        below, until = room[EVIDENCE + 2, k], room[EVIDENCE + 3, k]
        pull = (left - middle) * _steepness(below) - (right - middle) * _steepness(until) >> ARGUMENT_BITS
        mass = w * (until - below) >> WEIGHT_SUM_BITS
        room[EVIDENCE, k], room[EVIDENCE + 1, k] = until - below, mass
        room[EVIDENCE + 2, k] = w * pull >> WEIGHT_SUM_BITS
        total += mass
    total = max(total, np.int64(LEAST_MASS))
    inverse, most = (np.int64(1) << QUOTIENT_BITS) // total, MOST_PULL * total
    usual = _octaves_of(total, EVIDENCE_BITS)
    all_pulls, a, b, c = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for k in range(count):
        found = _octaves_of(room[EVIDENCE, k] + LEAST_MASS, EVIDENCE_BITS) - usual
        memory.evidence[channel, row, x, k] = min(max(found, -MOST_EVIDENCE), MOST_EVIDENCE)
        turn = (room[EVIDENCE + 1, k] * inverse >> QUOTIENT_BITS - WEIGHT_SUM_BITS) - mixtures.weight[k, i]
        logit = memory.logits[channel, octave, k] + turn
        memory.logits[channel, octave, k] = min(max(logit, -MOST_LOGIT), MOST_LOGIT)
        pull = min(max(room[EVIDENCE + 2, k], -most), most) * inverse >> QUOTIENT_BITS - WEIGHT_SUM_BITS
        width = memory.widths[channel, octave, k] + pull
        memory.widths[channel, octave, k] = min(max(width, -MOST_WIDTH), MOST_WIDTH)
        all_pulls += pull
        a, b, c = a + turn * room[0, k], b + turn * room[1, k], c + turn * room[2, k]
    for f, turn in enumerate((a, b, c)):
        trust = memory.trust[channel, f] + (turn >> CAUTION)
        memory.trust[channel, f] = min(max(trust, -MOST_TRUST), MOST_TRUST)
    if memory.nearby.shape[1]:
        all_pulls = min(max(all_pulls, -MOST_LOCAL), MOST_LOCAL) >> LOCAL_PATIENCE
        memory.nearby[channel, x, LOCAL_WIDTH] += np.int32(all_pulls)


@_inlined
def _steepness(height):
    """The derivative of the sigmoid where it has this height, both in 2^-31, rounded down."""
    return height * ((1 << SIGMOID_BITS) - height) >> SIGMOID_BITS


@_inlined
def _sixteenths(error, spread, tables):
    """An error, in the units of means, in sixteenths of a scale, to the nearest."""
    error = min(max(error, -FARTHEST), FARTHEST)
    return (error * np.int64(tables.inverse[np.uint64(spread)]) + (1 << INVERSE_BITS - 1)) >> INVERSE_BITS


@_compiled
def centre_mixtures(weight, mean, scale, normalised, centre, spread):
    """Bring weights to a sum of 2^16; the mean of each mixture, and of its scales, rounded down.

    weight >= 0, mean, scale, normalised: (K, N); centre, spread: (N,); all int32.
    """
    _normalise(weight, normalised)
    _average(normalised, mean, centre)
    _average(normalised, scale, spread)


@_inlined
def _within(value, most):
    """A value of 32 bits, clamped to +-most."""
    return min(max(np.int32(value), np.int32(-most)), np.int32(most))


@_compiled
def features_of(padded, errors, band, channel, top, centre, most, out):
    """The features of a strip of a channel, from row `top` on: see corrections.py; all clamped to +-most.

    padded: (bands, C, H + 2, W + 2), samples of the coarse band and of others; errors: (bands, C, H, W);
    centre: (h, w), means of mixtures; out: (F, h, w). All int32.
    """
    height, width = centre.shape
    for i in range(height):
        here, mean, f = padded[0, channel, 1 + top + i, 1 : 1 + width], centre[i], 0
        for y, x in AROUND:
            there, feature = padded[0, channel, 1 + top + i + y, 1 + x : 1 + x + width], out[f, i]
            for j in range(width):
                feature[j] = _within(there[j] - here[j] << MEAN_BITS, most)
            f += 1
        feature = out[f, i]
        for j in range(width):
            feature[j] = _within((here[j] << MEAN_BITS) - mean[j], most)
        f += 1
        for k in range(band):
            for y, x in CROSS:
                there, feature = padded[1 + k, channel, 1 + top + i + y], out[f, i]
                for j in range(width):
                    feature[j] = _within((there[1 + x + j] << MEAN_BITS) - mean[j], most)
                f += 1
        for c in range(channel):
            out[f, i] = errors[band, c, top + i, :width]
            f += 1
        for k in range(band):
            out[f, i] = errors[k, channel, top + i, :width]
            f += 1
        out[f, i] = 1 << MEAN_BITS


@_compiled
def errors_of(values, centre, most, errors, band, channel, top):
    """Keep how far values, (h, w), are from the means of their mixtures, in their units, clamped to +-most.

    errors: (bands, C, H, W), to be filled from row `top` on.
    """
    height, width = centre.shape
    for i in range(height):
        mean, out = centre[i], errors[band, channel, top + i]
        for j in range(width):
            error = (np.int64(values[i, j]) << MEAN_BITS) - mean[j]
            out[j] = min(max(error, -most), most)


@_compiled
def moved_means(mean, features, coefficients, bits, most, out):
    """out = clamp(mean + (sum of coefficients times features, in 2^-bits, to the nearest), +-most).

    mean, out: (K, N); features: (F, N); coefficients: (F,); all int32.
    """
    step = np.empty(mean.shape[1], np.int64)
    step[:] = 1 << bits - 1
    for f in range(coefficients.size):
        if coefficients[f]:
            for i in range(step.size):
                step[i] += np.int64(coefficients[f]) * np.int64(features[f, i])
    for k in range(mean.shape[0]):
        for i in range(step.size):
            out[k, i] = min(max(mean[k, i] + (step[i] >> bits), -most), most)


@_floating
def normal_equations(features, errors, variances, coefficients, bits, outlier, every):
    """Of weighted least squares, X W X^T and X W e, for one of `every` features X (F, N) and errors e (N,).

    W is 1 / (variance + ((e - what the coefficients, in 2^-bits, foretell of it) / outlier)^2).
    """
    count = features.shape[0]
    matrix, vector, x = np.zeros((count, count)), np.zeros(count), np.empty(count)
    for i in range(0, errors.size, every):
        moved = np.int64(1) << bits - 1
        for a in range(count):
            moved += np.int64(coefficients[a]) * np.int64(features[a, i])
            x[a] = features[a, i]
        rest = (errors[i] - (moved >> bits)) / outlier
        weight = 1 / (variances[i] + rest * rest)
        for a in range(count):
            weighted = weight * x[a]
            vector[a] += weighted * errors[i]
            for b in range(a + 1):
                matrix[a, b] += weighted * x[b]
    for a in range(count):
        for b in range(a):
            matrix[b, a] = matrix[a, b]
    return matrix, vector


@_floating_inlined
def _power_of_two(x):
    """2^x for |x| < 126, float32, within a part in 10^5: the same everywhere, as libraries' are not."""
    whole = np.int32(x + np.float32(128)) - np.int32(128)
    part = x - np.float32(whole)
    y = POWER[3] + part * POWER[4]
    y = POWER[2] + part * y
    y = POWER[1] + part * y
    y = POWER[0] + part * y
    bits = np.float32(y).view(np.int32)
    return np.int32(bits + (np.int32(whole) << FRACTION)).view(np.float32)


@_floating_inlined
def _logarithm(x):
    """log2 of a positive float32, within 10^-4: the same everywhere."""
    bits = np.float32(x).view(np.int32)
    part = np.int32(bits & FRACTION_MASK | ONE).view(np.float32) - np.float32(1)
    y = LOGARITHM[3] + part * LOGARITHM[4]
    y = LOGARITHM[2] + part * y
    y = LOGARITHM[1] + part * y
    y = LOGARITHM[0] + part * y
    return y + np.float32((bits - ONE) >> FRACTION)


@_floating_inlined
def _mass(distance, slope, inside):
    """The share of a logistic in the step that begins at a distance from its mean, or, if not inside, beyond.

    distance: in 2^-6 steps; slope: to powers of two. With A = e^-a, B = e^-b for the arguments of both ends,
    sigma(-a) - sigma(-b) = (A - B) / ((1 + A) (1 + B)), where nothing cancels far from the mean.
    """
    near = _power_of_two(min(max(-distance * slope, -MOST_POWER), MOST_POWER))
    ratio = inside * _power_of_two(max(-slope * STEP, -MOST_POWER))
    one = np.float32(1)
    return near * (one - ratio) / ((one + near) * (one + near * ratio))


@_floating
def shifted_costs(symbols, classes, mixtures, tables, shifts, costs):
    """Add the bits of symbols with each of the shifts of all scales: costs (classes, shifts) float64.

    About, for an encoder's choice: within hundredths of a bit of what mixture_intervals says, in floats of 32
    bits, but by plain operations alone, hence the same on every machine.
    """
    low, nbins, precision = mixtures.low, mixtures.nbins, mixtures.precision
    components, middle = mixtures.scale.shape[0], tables.inverse.size // 2
    distance = np.empty((components, AT_ONCE), np.float32)
    slope, weight = np.empty_like(distance), np.empty_like(distance)
    inside, total = np.empty(AT_ONCE, np.float32), np.empty(AT_ONCE, np.float32)
    factors = np.empty(shifts.size, np.float32)
    for j in range(shifts.size):
        factors[j] = tables.inverse[middle + shifts[j]] / tables.inverse[middle]
    unit = LOG2_OF_E / (1 << ARGUMENT_BITS)
    steepest, flattest = np.float32(tables.inverse[0] * unit), np.float32(tables.inverse[-1] * unit)
    spread, floor = np.float32((1 << precision) - nbins - 2), np.float32(1)
    for first in range(0, symbols.size, AT_ONCE):
        count = min(AT_ONCE, symbols.size - first)
        for i in range(count):
            n = first + i
            below, above = np.int64(low[n]) - 1, np.int64(low[n]) + nbins
            z = min(max(np.int64(symbols[n]), below), above)
            inside[i] = below < z < above
            for k in range(components):
                away = (z << MEAN_BITS) - mixtures.mean[k, n]
                if z == below or (z < above and away < 0):
                    away = -away
                distance[k, i] = away - (1 << MEAN_BITS - 1)
                slope[k, i] = tables.inverse[mixtures.scale[k, n]] * unit
                weight[k, i] = mixtures.weight[k, n] / (1 << WEIGHT_SUM_BITS)
        for j in range(shifts.size):
            factor = factors[j]
            total[:] = 0
            for k in range(components):
                for i in range(count):
                    steep = min(max(slope[k, i] * factor, flattest), steepest)
                    total[i] += weight[k, i] * _mass(distance[k, i], steep, inside[i])
            for i in range(count):
                total[i] = _logarithm(total[i] * spread + floor)
            for i in range(count):
                costs[classes[first + i], j] += precision - total[i]
    return costs
