"""Distributions in integers, as the coder takes them: mixture of logistics, histogram.

All that decides a bit comes from integers by exact arithmetic, so that a stream decodes on every machine.
To the coder a distribution is a shape, a precision, intervals(symbols) and its inverse, pop(words, ...).
"""

from copy import copy
from decimal import Context, Decimal
from math import isqrt, prod

import numpy as np

from source import kernels
from source.units import (
    ARGUMENT_BITS,
    LOGIT_BITS,
    LOGIT_CELLS_BITS,
    MAX_OCTAVE,
    MAX_PRECISION,
    MEAN_BITS,
    MIN_OCTAVE,
    MIN_PRECISION,
    SCALE_BITS,
    SCALES,
    SCALES_PER_OCTAVE,
    SIGMOID_BITS,
    SIGMOID_CELL_BITS,
    SIGMOID_REACH,
)


def _sigmoid_table():
    """2^31 sigma(i / 64 - 24), rounded. The exponential is decimal's, correctly rounded as libm's is not."""
    context = Context(prec=30)
    cells = 1 << ARGUMENT_BITS - SIGMOID_CELL_BITS
    one = 1 << SIGMOID_BITS
    negative = [
        round(one / (1 + context.exp(Decimal(i) / cells))) for i in range(SIGMOID_REACH * cells, -1, -1)
    ]
    return np.array(negative + [one - v for v in negative[-2::-1]], np.uint32)


def _power_table(bits):
    """2^(bits - k / 32) for every k, rounded down: the 32nd root of an integer, by five square roots."""

    def root(n):
        for _ in range(SCALES_PER_OCTAVE.bit_length() - 1):
            n = isqrt(n)
        return n

    return np.array([root(1 << SCALES_PER_OCTAVE * bits - k) for k in range(SCALES)], np.int32)


def _logit_table():
    """2^20 logit(i / 1024), the ends at the least probability there is. For guesses only: floats will do."""
    p = np.arange((1 << LOGIT_CELLS_BITS) + 1) / (1 << LOGIT_CELLS_BITS)
    p = p.clip(0.5**MAX_PRECISION, 1 - 0.5**MAX_PRECISION)
    return np.round(np.log(p / (1 - p)) * (1 << LOGIT_BITS)).astype(np.int32)


SIGMOID = _sigmoid_table()
# (z 2^6 - mean) INVERSE[k] is the argument of the sigmoid, (z - mean / 2^6) / s_k, in units of 2^-29
INVERSE = _power_table(ARGUMENT_BITS - MEAN_BITS - MIN_OCTAVE)
SCALE = _power_table(SCALE_BITS + MAX_OCTAVE)[::-1].copy()
LOGIT = _logit_table()
TABLES = kernels.Tables(SIGMOID, INVERSE, SCALE, LOGIT)


def _integers(name, values, low=-(2**31), high=2**31 - 1):
    """Integers of any type -> contiguous int32; ValueError if one is outside [low, high]."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name}: need integers, got {values.dtype}")
    known = values.dtype == np.int32 and low == -(2**31)
    if values.size and not known and not low <= values.min() <= values.max() <= high:
        raise ValueError(f"{name}: {values.min()} .. {values.max()}: need {low} .. {high}")
    return np.ascontiguousarray(values, np.int32)


def _check_precision(precision):
    if not MIN_PRECISION <= precision <= MAX_PRECISION:
        raise ValueError(f"precision {precision}: need {MIN_PRECISION} .. {MAX_PRECISION}")


class Mixture:
    """Each symbol under its own mixture of discretised logistics, P(z) = F(z + 1/2) - F(z - 1/2).

    F(x) = sum over k of weight_k sigma((x - mean_k) / s_k)
    weight  (K, *shape) integers >= 0, in proportion to the probabilities: brought to a sum of 2^16
    mean    (K, *shape) int32, in units of 2^-6 steps between integers
    scale   (K, *shape) int32 k, for s = 2^(k / 32 - 6) steps; clamped to 0 .. 512
    nbins   the size of the window, the integers around the rounded mean that have intervals of their own

    With low the first integer of the window and F out of 2^precision - nbins - 2, rounded down:

        0           c(low)    c(low + 1)             c(z)    c(z + 1)       c(low + nbins)   2^precision
        |-- below --|-- low --|-- low + 1 --| ... ---|-- z --|-- ... -------|---- above -----|
        c(z) = F(z - 1/2) + z - low + 1

    As F never falls, no interval is empty. Symbols are any int32: one outside the window is below or above,
    followed by its distance from there, d >= 0: the length of d + 1 in 5 bits, and its bits after the first.
    d + 1 < 2^32, for |mean / 2^6| <= 2^25 and nbins <= 2^23.
    """

    def __init__(self, weight, mean, scale, nbins=4096, precision=24):
        _check_precision(precision)
        if not 2 <= nbins <= 1 << precision - 1:
            raise ValueError(f"nbins {nbins}: need 2 .. 2^(precision - 1) = {1 << precision - 1}")
        weight, mean = _integers("weight", weight, low=0), _integers("mean", mean)
        scale = _integers("scale", scale).clip(0, SCALES - 1)
        if not weight.shape == mean.shape == scale.shape:
            raise ValueError(f"weight {weight.shape}, mean {mean.shape}, scale {scale.shape}: need one shape")
        self.shape, self.precision = mean.shape[1:], precision
        weight, mean, scale = (a.reshape(len(mean), -1) for a in (weight, mean, scale))
        normalised, low = np.empty_like(weight), np.empty(weight.shape[1], np.int32)
        if not kernels.prepare_mixtures(weight, mean, nbins, normalised, low):
            raise ValueError("weight: need a positive sum for every symbol, below 2^37")
        self.fields = kernels.Mixtures(low, int(nbins), int(precision), normalised, mean, scale)

    @classmethod
    def logistic(cls, mean, scale, nbins=4096, precision=24):
        """Each symbol under its own discretised logistic, K = 1; mean and scale: (*shape)."""
        mean, scale = np.asarray(mean)[None], np.asarray(scale)[None]
        return cls(np.ones(mean.shape, np.int32), mean, scale, nbins, precision)

    def each(self):
        """Yield a Mixture for each index of the first axis of the shape, such as each image of a batch."""
        count, *shape = self.shape
        m = self.fields
        low = m.low.reshape(count, prod(shape))
        fields = (f.reshape(len(f), count, low.shape[1]).swapaxes(0, 1) for f in (m.weight, m.mean, m.scale))
        for i, three in enumerate(zip(*map(np.ascontiguousarray, fields))):
            part = copy(self)
            part.shape, part.fields = tuple(shape), kernels.Mixtures(low[i], m.nbins, m.precision, *three)
            yield part

    def in_turn(self, symbols):
        """Symbols of the shape -> (N,) int32. Raises ValueError for others."""
        symbols = _integers("symbols", symbols)
        if symbols.shape != self.shape:
            raise ValueError(f"symbols of shape {symbols.shape}: need {self.shape}")
        return symbols.reshape(-1)

    def intervals(self, symbols):
        """Symbols -> start and frequency of their intervals, four instead of one outside the window."""
        symbols = self.in_turn(symbols)
        low, nbins = self.fields.low, self.fields.nbins
        outside = np.count_nonzero((symbols < low) | (symbols >= low + nbins)) if symbols.size else 0
        start, frequency = np.empty((2, symbols.size + 3 * outside), np.uint32)
        kernels.mixture_intervals(symbols, self.fields, TABLES, start, frequency)
        return start, frequency

    def pop(self, words, position, state, lowest, symbols):
        """Read symbols, (N,): see kernels.Popped for what it returns. Inverse: intervals."""
        return kernels.pop_mixtures(words, position, state, lowest, symbols, self.fields, TABLES)


class Histogram:
    """All symbols of a group under one table: values[j] with a probability in proportion to counts[j].

    values  (M,) int32, increasing; M >= 1
    counts  (M,) integers >= 1, of a sum below 2^31

    With C(j) the sum of the counts before j, out of 2^precision - M, rounded down:

        0               C(j) + j              C(j + 1) + j + 1       2^precision
        |----- ... -----|----- values[j] -----|--------- ... --------|

    It has no shape: tell Decoder.pop one. A decoder gets the table itself from the stream: see write.
    """

    shape = None

    def __init__(self, values, counts, precision=24):
        _check_precision(precision)
        self.values, self.precision = _integers("values", values), precision
        self.counts = _integers("counts", counts, low=1).astype(np.int64)
        size = len(self.values)
        if not 1 <= size <= 1 << precision - 1 or self.counts.shape != self.values.shape:
            raise ValueError(f"{size} values, {len(self.counts)} counts: need 1 .. {1 << precision - 1}")
        if (np.diff(self.values.astype(np.int64)) < 1).any() or self.counts.sum() >= 1 << 31:
            raise ValueError("need increasing values, and counts of a sum below 2^31")
        running = np.concatenate([[0], np.cumsum(self.counts)])
        self._starts = running * ((1 << precision) - size) // running[-1] + np.arange(size + 1)

    @classmethod
    def of(cls, symbols, precision=24):
        """Count integers of any shape, at least one."""
        return cls(*np.unique(_integers("symbols", symbols), return_counts=True), precision)

    def intervals(self, symbols):
        """Symbols -> start and frequency of their intervals. Raises ValueError for one without a count."""
        symbols = _integers("symbols", symbols).reshape(-1)
        j = np.searchsorted(self.values, symbols).clip(max=len(self.values) - 1)
        if (self.values[j] != symbols).any():
            raise ValueError("symbols: one has no count in the histogram")
        return self._starts[j].astype(np.uint32), np.diff(self._starts)[j].astype(np.uint32)

    def pop(self, words, position, state, lowest, symbols):
        """Read symbols, (N,): see kernels.Popped for what it returns. Inverse: intervals."""
        table = self.values, self._starts, self.precision
        return kernels.pop_table(words, position, state, lowest, symbols, *table)

    def write(self, encoder):
        """Push the table: how many symbols are negative, how many of these in the lower half, and so on.

        First a depth d, all values being in [-2^(d - 1), 2^(d - 1)); then d times, for each interval that is
        not empty, the count of its lower half. The reader knows the count of all. Inverse: read.
        """
        depth = 1 + max(int(v if v >= 0 else ~v).bit_length() for v in self.values[[0, -1]])
        encoder.push(_depth(self.precision), np.array([depth]))
        index = self.values.astype(np.int64) + (1 << depth - 1)
        for level in reversed(range(depth)):
            _, first = np.unique(index >> level + 1, return_index=True)
            count = np.add.reduceat(self.counts, first)
            lower = np.add.reduceat(np.where(index >> level & 1, 0, self.counts), first)
            encoder.push(_halving(count, self.precision), lower)

    @classmethod
    def read(cls, decoder, total, precision=24):
        """Pop the table of `total` >= 1 symbols. Raises ValueError if there is none. Inverse: write."""
        depth = int(decoder.pop(_depth(precision))[0])
        if not 1 <= depth <= 32:
            raise ValueError(f"corrupt histogram: depth {depth}")
        index, count = np.zeros(1, np.int64), np.array([total])
        for _ in range(depth):
            lower = decoder.pop(_halving(count, precision))
            if (lower < 0).any() or (lower > count).any():
                raise ValueError("corrupt histogram: a part exceeds the whole")
            index = np.stack([2 * index, 2 * index + 1], axis=1).reshape(-1)
            count = np.stack([lower, count - lower], axis=1).reshape(-1)
            index, count = index[count > 0], count[count > 0]
        return cls(index - (1 << depth - 1), count, precision)


def _depth(precision):
    """Of a histogram's depth: about 9, the range of differences of bytes."""
    mean, scale = 9 << MEAN_BITS, -MIN_OCTAVE * SCALES_PER_OCTAVE
    return Mixture.logistic(np.array([mean]), np.array([scale]), precision=precision)


def _halving(count, precision):
    """Of the lower part of each count: half, give or take a ninth (the best on residuals of photographs)."""
    mean = np.minimum(count << MEAN_BITS - 1, 2**31 - 1)
    return Mixture.logistic(mean, SCALES_PER_OCTAVE * np.frexp(count)[1] + 72, precision=precision)
