"""Distributions in integers: exact tables, intervals that share out all slots, little lost by rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from source import tables
from source.rans import Decoder, Encoder
from source.tables import Histogram, Mixture

COMPONENTS = st.tuples(st.integers(1, 9999), st.integers(-3000, 3000), st.integers(0, 512))


def window(distribution_of, centre, nbins):
    """Intervals of all symbols from the last below the window to the first above: (nbins + 2,) each."""
    symbols = np.arange(centre - nbins // 2 - 1, centre - nbins // 2 + nbins + 1)
    start, frequency = distribution_of(symbols.size).intervals(symbols)
    inside = np.r_[0, 4 : nbins + 5]
    return start[inside].astype(int), frequency[inside].astype(int)


def exact(z, mean, scale):
    """P(z) in real numbers, the difference taken in the tail where it does not cancel."""
    low, high = (z - 0.5 - mean) / scale, (z + 0.5 - mean) / scale
    return np.where(low + high > 0, expit(-low) - expit(-high), expit(high) - expit(low))


def test_tables_are_the_functions_rounded():
    sigmoid = expit(np.arange(-24 * 64, 24 * 64 + 1) / 64) * 2**31
    assert np.abs(tables.SIGMOID - sigmoid).max() <= 0.5 + 1e-6
    assert (np.diff(tables.SIGMOID.astype(int)) >= 0).all()
    k = np.arange(513)
    for table, values in [(tables.INVERSE, 2.0 ** (29 - k / 32)), (tables.SCALE, 2.0 ** (10 + k / 32))]:
        np.testing.assert_array_equal(table, np.floor(values))


@settings(deadline=None)
@given(
    st.lists(COMPONENTS, min_size=1, max_size=4),
    st.sampled_from([(2, 16), (3, 16), (256, 16), (1 << 15, 16), (4096, 20), (4096, 24)]),
)
def test_intervals_share_out_all_slots(components, options):
    nbins, precision = options
    weight, mean, scale = np.array(components).T[:, :, None]
    share = np.diff(np.cumsum(weight, 0) * 2**16 // weight.sum(), axis=0, prepend=0)
    centre = ((share * mean).sum() // 2**16 + 32) // 64
    start, frequency = window(
        lambda n: Mixture(*(a.repeat(n, 1) for a in (weight, mean, scale)), nbins, precision), centre, nbins
    )
    assert frequency.min() >= 1
    np.testing.assert_array_equal(start, np.r_[0, np.cumsum(frequency)[:-1]])
    assert frequency.sum() == 2**precision


@pytest.mark.parametrize("log2_scale", [-6, -3, -1, 0, 1, 3, 5, 7])
def test_little_is_lost(log2_scale):
    """The expected excess over the entropy, nats to bits: almost all of it is the window's 4,098 slots."""
    for mean in np.random.default_rng(0).integers(-20000, 20000, 5):
        centre = (mean + 32) // 64
        scale = np.full(1, 32 * (log2_scale + 6))
        _, frequency = window(
            lambda n, m=mean, k=scale: Mixture.logistic(np.full(n, m), k.repeat(n)), centre, 4096
        )
        p = exact(np.arange(centre - 2048, centre + 2048), mean / 64, 2.0**log2_scale)
        q = frequency[1:-1] / 2**24
        lost = np.sum(p * np.log2(np.maximum(p, 1e-300) / q))
        assert -1e-5 < lost < 4e-4


def test_mixture_follows_real_numbers():
    random = np.random.default_rng(0)
    for _ in range(10):
        weight, mean, scale = (random.integers(*r, 3) for r in [(1, 99), (-900, 900), (128, 320)])
        centre = int(np.round((weight * mean).sum() / weight.sum() / 64))
        z = np.arange(centre - 1000, centre + 1000)
        parts = [w * exact(z, m / 64, 2.0 ** (k / 32 - 6)) for w, m, k in zip(weight, mean, scale)]
        p = sum(parts) / weight.sum()
        parameters = (np.repeat(a[:, None], z.size, 1) for a in (weight, mean, scale))
        _, frequency = Mixture(*parameters).intervals(z)
        assert -1e-4 < np.sum(p * np.log2(np.maximum(p, 1e-300) / (frequency / 2**24))) < 5e-4


def test_components_that_agree_are_one():
    random = np.random.default_rng(0)
    mean, scale, symbols = (random.integers(*r, 200) for r in [(-9000, 9000), (0, 400), (-99, 99)])
    weight = random.integers(1, 2**31 - 1, (3, 200))
    three = Mixture(weight, np.stack([mean] * 3), np.stack([scale] * 3)).intervals(symbols)
    for several, single in zip(three, Mixture.logistic(mean, scale).intervals(symbols)):
        np.testing.assert_array_equal(several, single)


def test_scales_are_clamped():
    symbols = np.arange(-9, 9)
    for outside, inside in [(-1, 0), (-128, 0), (10**6, 512)]:
        ours, theirs = (
            Mixture.logistic(0 * symbols, 0 * symbols + k).intervals(symbols) for k in (outside, inside)
        )
        np.testing.assert_array_equal(ours, theirs)
    Mixture.logistic(np.zeros(3, np.int8), np.full(3, 127, np.int8)).intervals(np.zeros(3, np.int8))


@pytest.mark.parametrize(
    "change",
    [
        {"precision": 15},
        {"precision": 25},
        {"nbins": 1},
        {"nbins": 2**15 + 1, "precision": 16},
        {"mean": np.zeros((2, 3))},
        {"scale": np.zeros((2, 3))},
        {"mean": np.full((2, 3), 2**31)},
        {"mean": np.zeros((2, 4), int)},
        {"scale": np.zeros((1, 3), int)},
        {"weight": np.zeros((2, 3), int)},
        {"weight": np.full((2, 3), -1)},
    ],
)
def test_wrong_mixtures(change):
    ones = np.ones((2, 3), int)
    with pytest.raises(ValueError, match="need"):
        Mixture(**{"weight": ones, "mean": ones, "scale": ones} | change)


def test_wrong_symbols():
    distribution = Mixture.logistic(np.zeros(3, int), np.zeros(3, int))
    for symbols in (np.zeros(2, int), np.zeros(3), np.array([0, 0, 2**31])):
        with pytest.raises(ValueError, match="need"):
            distribution.intervals(symbols)
    with pytest.raises(ValueError, match="no count"):
        Histogram.of([1, 2, 4]).intervals(np.array([3]))


def test_wrong_histograms():
    twice, falling, uneven, many = ([1, 1], [2, 2]), ([2, 1], [1, 1]), ([1], [1, 1]), ([1, 2], [2**30] * 2)
    for values, counts in [([], []), twice, falling, uneven, many, ([1], [0]), ([1], [2**31])]:
        with pytest.raises(ValueError, match="need"):
            Histogram(np.array(values, int), np.array(counts, int))
    with pytest.raises(ValueError, match="need"):
        Histogram.of(np.arange(2**15 + 1), precision=16)


def recode(histogram):
    """A histogram -> bytes -> the same; returns the number of bytes."""
    encoder = Encoder()
    histogram.write(encoder)
    data = encoder.finish()
    decoder = Decoder(data)
    copy = Histogram.read(decoder, histogram.counts.sum(), histogram.precision)
    decoder.finish()
    np.testing.assert_array_equal(copy.values, histogram.values)
    np.testing.assert_array_equal(copy.counts, histogram.counts)
    return len(data)


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(-(2**31), 2**31 - 1) | st.integers(-9, 9), st.integers(1, 2**20), min_size=1),
    st.sampled_from([16, 24]),
)
def test_histograms_are_recoded(counts, precision):
    values = sorted(counts)
    recode(Histogram(np.array(values), np.array([counts[v] for v in values]), precision))


def test_histograms_are_small():
    """3,072 residuals like those of a small photograph: one byte, or less, for each value that occurs."""
    symbols = np.round(np.random.default_rng(0).laplace(0, 8, 3072)).astype(int)
    histogram = Histogram.of(symbols)
    assert recode(histogram) < len(histogram.values)


@pytest.mark.parametrize("value", [-(2**31), -8, -1, 0, 7, 8, 2**31 - 1])
def test_histograms_of_one_value(value):
    recode(Histogram([value], [2**31 - 1]))


@pytest.mark.parametrize("size", [3072, 786432])
def test_histograms_cost_what_their_entropy_is(size):
    symbols = np.round(np.random.default_rng(0).laplace(0, 8, size)).astype(int)
    histogram = Histogram.of(symbols)
    p = histogram.counts / size
    encoder = Encoder()
    encoder.push(histogram, symbols)
    entropy = -size * np.sum(p * np.log2(p))
    assert entropy < encoder.bits < 1.0001 * entropy
    assert len(encoder.finish()) < 1.0001 * entropy / 8 + 6


def test_forged_histograms():
    for forged in (bytes(400), b"\xff" * 400, *(np.random.default_rng(n).bytes(400) for n in range(200))):
        try:
            assert Histogram.read(Decoder(forged), 1000).counts.sum() == 1000
        except ValueError:
            pass
