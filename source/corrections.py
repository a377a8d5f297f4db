"""What a picture corrects of its distributions: their scales by classes, their means by least squares.

A network serves all pictures; noise, sharpness and origin are each picture's own. So for every group of
strips of a band, and each channel of it, the stream has a Set of small integers before the values:

    kind            which of the following are new; others are those of the group before, or 0
    scales          for each of CLASSES, by the mean scale of a mixture: added to the scales of its components
    coefficients    of the features of a position, whose weighted sum is added to the means

Features are differences, in the units of means, within what is known: from the coarse sample of the channel
to those around it, and from the mean of the mixture to it, and to the samples of bands before; how far the
channels before, and this channel in bands before, were from the means of their mixtures; and a step.
All that a decoder does is in integers. Source: least squares as in TMW and MRP, of what a network leaves.
"""

from functools import cache, cached_property
from typing import NamedTuple

import numpy as np

from source import kernels
from source.kernels import AROUND, CROSS
from source.tables import TABLES, Mixture
from source.units import MEAN_BITS, MIN_OCTAVE, SCALES, SCALES_PER_OCTAVE
from utils.arithmetic.integers import MIDDLE

# Levels whose coarse band has fewer positions are left as they are; a group has this many, of whole strips.
LEAST, GROUP = 1 << 12, 1 << 14
# Classes are octaves of the mean scale, from this one on; scales move by eighths of an octave.
CLASSES, FIRST_CLASS, SCALE_STEP = 8, 144, SCALES_PER_OCTAVE // 8
MAX_SHIFT = 8
# Coefficients count 2^-6.
COEFFICIENT_BITS, MAX_COEFFICIENT = 6, 1 << 12
SAMPLE_MAX, FEATURE_MAX, MEAN_MAX = 1 << 14, 1 << 20, 1 << 30
# Kinds of sets: as before; all new; new scales, the coefficients before; new scales alone; zeros.
SAME, ALL, RESCALED, SCALES_ALONE, NOTHING = range(5)
NEW_SCALES = ALL, RESCALED, SCALES_ALONE
# How they are coded: count, octaves and mean of around.
OF_KIND, OF_SCALES, COEFFICIENT_OCTAVES = (1, 0, ALL), (CLASSES, 0), 3
# For scales an encoder looks at fewer positions than for coefficients, by this factor.
SCALES_FEWER = 4
# A multiplier whose products' bits look random.
SCATTER = 2654435761
TRIED = np.array([-8, -5, -3, -2, -1, 0, 1, 2, 3, 5, 8], np.int32)
# Errors of so many scales count half; what the diagonal of the normal equations is raised by.
OUTLIER, RIDGE = 2.5, 1e-4
# Rounds of least squares look at one position of so many: the first ones tell which are outliers.
# No even number, which would be the period of a picture's own pattern.
ROUNDS = 5, 5, 5, 1
# The squares of scales, in squared units of means.
VARIANCES = 4.0 ** (np.arange(SCALES) / SCALES_PER_OCTAVE)
# What a set must take off at least: mixtures that adapt come to less by themselves.
LEAST_GAIN = 0.01
# Bits of a set, about: of a scale as far from the one before, of a coefficient.
SCALE_COST, FARTHER_COST, COEFFICIENT_COST = 1.5, 1.0, 6.0


class Corrigible:
    """Mixtures to be corrected: weight, mean, scale (K, N) int32, and of each the centre, a mean, and spread.

    centre, spread: (N,), the means of its components' means and scales by weight, rounded down; known: both,
    and weights that sum to 2^16.
    """

    def __init__(self, weight, mean, scale, known=None):
        if known is None:
            normalised, known = np.empty_like(weight), np.empty((2, weight.shape[1]), np.int32)
            kernels.centre_mixtures(weight, mean, scale, normalised, *known)
            weight = normalised
        self.fields, (self.centre, self.spread) = (weight, mean, scale), known

    @classmethod
    def joined(cls, several):
        """Those of several Corrigibles, one after the other."""
        fields = (np.concatenate(field, 1) for field in zip(*(one.fields for one in several)))
        return cls(*fields, [np.concatenate(each) for each in zip(*((m.centre, m.spread) for m in several))])

    def at(self, index):
        """Those at some of the positions."""
        fields = (np.ascontiguousarray(field[:, index]) for field in self.fields)
        return Corrigible(*fields, [np.ascontiguousarray(a[index]) for a in (self.centre, self.spread)])

    @cached_property
    def classes(self):
        """The class of each by its spread."""
        octaves = self.spread - FIRST_CLASS >> SCALES_PER_OCTAVE.bit_length() - 1
        return np.clip(octaves, 0, CLASSES - 1)


class Set(NamedTuple):
    """Corrections of one channel in a group: scales (CLASSES,), coefficients (F,)."""

    scales: np.ndarray
    coefficients: np.ndarray

    @classmethod
    def zero(cls, count):
        """That of `count` features which corrects nothing."""
        return cls(np.zeros(CLASSES, np.int32), np.zeros(count, np.int32))

    def apply(self, mixtures, features):
        """The fields of Corrigible mixtures, corrected; features: gives those of Known, where needed."""
        weight, mean, scale = mixtures.fields
        if self.scales.any():
            scale = scale + (SCALE_STEP * self.scales)[mixtures.classes]
        if self.coefficients.any():
            before, mean = mean, np.empty_like(mean)
            arguments = before, features(), self.coefficients, COEFFICIENT_BITS, MEAN_MAX
            kernels.moved_means(*arguments, mean)
        return weight, mean, scale

    def push(self, kind, encoder):
        """Write it after one of which it has what the kind says. Inverse: read."""
        encoder.push(around(*OF_KIND), np.array([kind]))
        if kind in NEW_SCALES:
            encoder.push(around(*OF_SCALES), np.diff(self.scales, prepend=0))
        if kind == ALL:
            encoder.push(around(len(self.coefficients), COEFFICIENT_OCTAVES), self.coefficients)


def read(before, wanted=lambda table: table):
    """A generator of what is wanted, to which its symbols are sent; returns a Set. Inverse: Set.push.

    before: the Set of the group before. wanted: the coder's distribution -> what to yield for it.
    """
    (kind,), (scales, coefficients) = (yield wanted(around(*OF_KIND))), before
    kind = min(max(kind, SAME), NOTHING)
    if kind in (SCALES_ALONE, NOTHING):
        scales, coefficients = Set.zero(len(coefficients))
    if kind in NEW_SCALES:
        steps = yield wanted(around(*OF_SCALES))
        scales = np.clip(np.cumsum(steps, dtype=np.int32), -MAX_SHIFT, MAX_SHIFT)
    if kind == ALL:
        fresh = yield wanted(around(len(coefficients), COEFFICIENT_OCTAVES))
        coefficients = np.clip(fresh, -MAX_COEFFICIENT, MAX_COEFFICIENT)
    return Set(scales, coefficients)


@cache
def around(count, octaves, mean=0):
    """The coder's distribution of `count` symbols: logistics around a mean, of scale 2^octaves."""
    scale = int(SCALES_PER_OCTAVE * (octaves - MIN_OCTAVE))
    return Mixture.logistic(np.full(count, mean << MEAN_BITS), np.full(count, scale))


class Place(NamedTuple):
    """Where a strip of a channel is: band by its number in the prior's order, channel, top row, size."""

    band: int
    channel: int
    top: int
    height: int
    width: int


class Known:
    """What is known of one level of an image: samples of the coarse band and of bands, and errors of means.

    coarse: (H, W, C) integers; sizes: (height, width) of the bands, in the prior's order.
    """

    def __init__(self, coarse, sizes):
        height, width, channels = coarse.shape
        bands = [np.empty((channels, *size), np.int32) for size in sizes]
        self.bands = [np.ascontiguousarray(coarse.transpose(2, 0, 1)), *bands]
        self.errors = np.zeros((len(sizes), channels, height, width), np.int32)
        # all but the last, a position larger on each side than the coarse band, those of `complete` ones
        self.padded = np.empty((len(sizes), channels, height + 2, width + 2), np.int32)
        self.complete = 0

    def count(self, place):
        """The number of features."""
        return len(AROUND) + 1 + len(CROSS) * place.band + place.channel + place.band + 1

    def features(self, place, centre):
        """The features of the positions of a place, whose mixtures have the means `centre`: (F, N) int32."""
        for k in range(self.complete, place.band + 1):
            self._pad(self.bands[k], self.padded[k])
            self.complete = k + 1
        features = np.empty((self.count(place), place.height, place.width), np.int32)
        known = self.padded, self.errors, *place[:3]
        kernels.features_of(*known, centre.reshape(features.shape[1:]), FEATURE_MAX, features)
        return features.reshape(len(features), -1)

    def learn(self, place, values, centre):
        """Take the values of a place, (h, w), whose mixtures had the means `centre`, (N,)."""
        band, channel, top = place[:3]
        self.bands[1 + band][channel, top : top + place.height] = values
        kernels.errors_of(values, centre.reshape(values.shape), FEATURE_MAX, self.errors, band, channel, top)

    def _pad(self, band, padded):
        if not band.size:
            padded[:] = MIDDLE
            return
        sides = [(1, most - 1 - side) for most, side in zip(padded.shape[1:], band.shape[1:])]
        np.clip(np.pad(band, ((0, 0), *sides), "edge"), MIDDLE - SAMPLE_MAX, MIDDLE + SAMPLE_MAX, out=padded)


def choose(strips, settings, look, before):
    """The kind and Set that make the values of a channel in a group cheapest, as far as a sample tells.

    strips: (Corrigible, features (F, N), values (N,)) of each; settings: nbins and precision; look: how many
    positions to look at, at most; before: the Set of the group before.
    """
    mixtures, features, values = strips[0]
    if len(strips) > 1:
        mixtures, features, values = zip(*strips)
        mixtures = Corrigible.joined(mixtures)
        features, values = np.concatenate(features, 1), np.concatenate(values)

    def sample(most):
        some = _spread_out(len(values), most)
        return mixtures.at(some), *(np.ascontiguousarray(a[..., some]) for a in (features, values))

    fitted, zero = _least_squares(*sample(look)), Set.zero(len(features))
    some, foretelling, looked_at = sample(look // SCALES_FEWER)
    corrected = before.coefficients.any() or before.scales.any()
    tries = [(NOTHING if corrected else SAME, SCALES_ALONE, zero), (None, ALL, Set(zero.scales, fitted))]
    if corrected:
        tries.append((SAME, RESCALED, before))
    least, best = np.inf, None
    for unchanged, rescaled, (scales, coefficients) in tries:
        moved_only = Set(zero.scales, coefficients).apply(some, lambda: foretelling)
        costs = len(values) / len(looked_at) * _costs(moved_only, some, looked_at, settings)
        if unchanged is not None:
            price = costs[range(CLASSES), np.searchsorted(TRIED, scales)].sum()
            if price < least:
                gain = LEAST_GAIN if best is None else 0
                least, best = (1 - gain) * price, (unchanged, Set(scales, coefficients))
        price, scales = COEFFICIENT_COST * len(coefficients) * (rescaled == ALL), [0]
        for cost in costs:
            priced = cost + SCALE_COST + FARTHER_COST * abs(TRIED - scales[-1])
            scales.append(TRIED[priced.argmin()])
            price += priced.min()
        if price < least:
            least, best = price, (rescaled, Set(np.array(scales[1:], np.int32), coefficients))
    return best


def _spread_out(count, most):
    """An index of `most` of `count` at most: all, or one of each stretch, with no pattern of a picture's."""
    step = -(-count // most)
    if step == 1:
        return slice(None)
    index = np.arange(0, count, step)
    return np.minimum(index + (index * SCATTER >> 16) % step, count - 1)


def _costs(fields, mixtures, values, settings):
    """The bits of values, by class, under each of the scales tried: (CLASSES, len(TRIED))."""
    costs = np.zeros((CLASSES, len(TRIED)))
    return kernels.shifted_costs(
        values, mixtures.classes, Mixture(*fields, *settings).fields, TABLES, SCALE_STEP * TRIED, costs
    )


def _least_squares(mixtures, features, values):
    """The coefficients with which features predict errors best, in scales, outliers counting less."""
    errors = values * float(1 << MEAN_BITS) - mixtures.centre
    variances, coefficients = VARIANCES[mixtures.spread], np.zeros(len(features), np.int32)
    for every in ROUNDS:
        arguments = features, errors, variances, coefficients, COEFFICIENT_BITS, OUTLIER, every
        matrix, vector = kernels.normal_equations(*arguments)
        matrix[np.diag_indices_from(matrix)] *= 1 + RIDGE
        matrix[np.diag_indices_from(matrix)] += RIDGE
        coefficients = np.rint(np.linalg.solve(matrix, vector) * (1 << COEFFICIENT_BITS))
        coefficients = np.clip(coefficients, -MAX_COEFFICIENT, MAX_COEFFICIENT).astype(np.int32)
    return coefficients
