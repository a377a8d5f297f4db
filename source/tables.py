"""Distributions in integers, as the coder takes them: logistic, mixture of logistics, histogram.

Every number here comes from integers by exact arithmetic, so that a stream decodes on every machine. In front of the
coder a distribution is three members: shape, precision, intervals(symbols) and its inverse pop(words, ...).
"""

from decimal import Context, Decimal
from math import isqrt

import numpy as np

from source import rans

# Scale k is s_k = 2^(k / 32 - 6) steps between integers, from 1/64 to 1024.
SCALES_PER_OCTAVE = 32
MIN_OCTAVE, MAX_OCTAVE = -6, 10
SCALES = (MAX_OCTAVE - MIN_OCTAVE) * SCALES_PER_OCTAVE + 1


def _sigmoid_table():
    """2^31 sigma(i / 64 - 24), rounded: the exponential of decimal is correctly rounded, unlike that of libm."""
    context = Context(prec=30)
    cells = 1 << rans.ARGUMENT_BITS - rans.CELL_BITS
    one = 1 << rans.SIGMOID_BITS
    negative = [
        round(one / (1 + context.exp(Decimal(i) / cells))) for i in range(rans.SIGMOID_REACH * cells, -1, -1)
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
    """logit(i / 1024), the ends at the smallest probability of all: for guesses only, hence in floating point."""
    p = np.arange((1 << rans.LOGIT_CELLS_BITS) + 1) / (1 << rans.LOGIT_CELLS_BITS)
    p = p.clip(0.5**rans.MAX_PRECISION, 1 - 0.5**rans.MAX_PRECISION)
    return np.round(np.log(p / (1 - p)) * (1 << rans.LOGIT_BITS)).astype(np.int32)


SIGMOID = _sigmoid_table()
# (z 2^6 - mean) INVERSE[k] is the argument of the sigmoid, (z - mean / 2^6) / s_k, in units of 2^-29
INVERSE = _power_table(rans.ARGUMENT_BITS - rans.MEAN_BITS - MIN_OCTAVE)
SCALE = _power_table(rans.SCALE_BITS + MAX_OCTAVE)[::-1].copy()
LOGIT = _logit_table()


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
    if not rans.MIN_PRECISION <= precision <= rans.MAX_PRECISION:
        raise ValueError(f"precision {precision}: need {rans.MIN_PRECISION} .. {rans.MAX_PRECISION}")


class Mixture:
    """Each symbol under its own mixture of discretised logistics, sum_k weight_k [F_k(z + 1/2) - F_k(z - 1/2)].

    weight  (K, *shape) integers >= 0, in proportion to the probabilities; they are brought to a sum of 2^16
    mean    (K, *shape) int32, in units of 2^-6 steps between integers
    scale   (K, *shape) integers k, for scales of 2^(k / 32 - 6) steps; clamped to 0 .. 512
    nbins   the window: as many integers, around the rounded mean of the mixture, have intervals of their own
    Symbols are any int32. With F in units of 2^precision - nbins - 2, rounded down, and low the first of the window,

        0           F(low - 1/2) + 1         F(z - 1/2) + 1 + z - low        F(low + nbins - 1/2) + 1 + nbins
        |-- below --|-- low --|-- ... --|-- ... --|-- z --|-- ... --|-- low + nbins - 1 --|-- above --|
                                                                                               2^precision
    F never falls, so that every interval has a slot at least, `below` and `above` too. These two are followed by the
    distance from the window's edge, d >= 0: the length of d + 1 in 5 bits, then its bits but for the leading one.
    As |mean / 2^6| <= 2^25 and nbins <= 2^23, d + 1 < 2^32.
    """

    def __init__(self, weight, mean, scale, nbins=4096, precision=24):
        _check_precision(precision)
        if not 2 <= nbins <= 1 << precision - 1:
            raise ValueError(f"nbins {nbins}: need 2 .. 2^(precision - 1) = {1 << precision - 1}")
        weight, mean = _integers("weight", weight, low=0), _integers("mean", mean)
        scale = _integers("scale", np.clip(scale, 0, SCALES - 1))
        if not weight.shape == mean.shape == scale.shape:
            raise ValueError(f"weight {weight.shape}, mean {mean.shape}, scale {scale.shape}: need one shape")
        self.shape, self.precision, self.nbins = mean.shape[1:], precision, nbins
        self._mean = mean.reshape(len(mean), -1)
        self._scale = scale.reshape(self._mean.shape)
        self._weight = np.empty_like(self._mean)
        self._low = np.empty(self._mean.shape[1], np.int32)
        if not rans.prepare_mixture(weight.reshape(self._mean.shape), self._mean, nbins, self._weight, self._low):
            raise ValueError("weight: need a positive sum for every symbol")

    def intervals(self, symbols):
        """Integers of shape `shape` -> start and frequency, in order: one each, and three more for one outside."""
        symbols = _integers("symbols", symbols)
        if symbols.shape != self.shape:
            raise ValueError(f"symbols of shape {symbols.shape}: need {self.shape}")
        symbols = symbols.reshape(-1)
        outside = np.count_nonzero((symbols < self._low) | (symbols >= self._low + self.nbins))
        start = np.empty(symbols.size + 3 * outside, np.uint32)
        frequency = np.empty_like(start)
        rans.mixture_intervals(symbols, *self._arguments, start, frequency)
        return start, frequency

    def pop(self, words, position, state, symbols):
        """Inverse of intervals: fill `symbols` from a stream; returns their number, the position and the state."""
        return rans.pop_mixture(words, position, state, symbols, *self._arguments, SCALE, LOGIT)

    @property
    def _arguments(self):
        parameters = self._weight, self._mean, self._scale
        return self._low, self.nbins, self.precision, *parameters, SIGMOID, INVERSE


class Logistic(Mixture):
    """Each symbol under its own discretised logistic: a Mixture of one component; mean, scale: integers of any shape."""

    def __init__(self, mean, scale, nbins=4096, precision=24):
        mean, scale = np.asarray(mean)[None], np.asarray(scale)[None]
        super().__init__(np.ones(mean.shape, np.int32), mean, scale, nbins, precision)

