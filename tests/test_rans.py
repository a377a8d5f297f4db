"""rANS: symbols and seal come back, every word is used, sizes match the theory, damage is survived."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from source.rans import Decoder, Encoder, Truncated
from source.tables import Histogram, Mixture

EXTREMES = [-(2**31), -(2**31) + 1, -5000, -2049, -2048, -1, 0, 1, 2047, 2048, 2049, 2**31 - 2, 2**31 - 1]
INT32 = st.sampled_from(EXTREMES) | st.integers(-(2**31), 2**31 - 1)
GOLDEN = bytes.fromhex(
    "f657ffccfff87dce93ff8309070074a0f8ffd24e07000322f8ff00830700074a0700582bf8ff3fbaedffdf29f8ff411e2611"
    "6a010700a39407007f88f7fff6b10700b1a41600cf47f8ff9f2608007fb7deb28c53818cde4ff8ffbbb9d5ff1c128f689e70"
    "004bf85f9078008cfffbd96f00a5c276006ffc00000022009203a70000001e005efe20ff1ac196ff1b9dff002cbec4000000"
    "0000922e23ff3ac7deff1666ffff2db6cb000000ffff91ab2d8c8fbdf8000000afc6bcc5551a99ffd1297eef7dffffff8e8c"
    "caf940c2e000fe77cc55e1870f07567b77f0e020997aa9"
)


def encode(groups, seal=0):
    """Push groups of (distribution, symbols); returns the bytes and the information in them, in bits."""
    encoder = Encoder()
    for distribution, symbols in groups:
        encoder.push(distribution, symbols)
    return encoder.finish(seal), encoder.bits


def check_codec(groups, seal=0):
    """Symbols and seal come back, every byte is used, and the size is the theory's."""
    data, bits = encode(groups, seal)
    assert bits / 8 + 4 <= len(data) + 0.01 <= bits / 8 + 6
    decoder = Decoder(data)
    for distribution, symbols in groups:
        symbols = np.asarray(symbols)
        decoded = decoder.pop(distribution, symbols.shape)
        assert decoded.dtype == np.int32
        np.testing.assert_array_equal(decoded, symbols)
    assert decoder.finish() == seal


def sample(shape, components=1, seed=0, nbins=4096, precision=24):
    """A mixture with random parameters, and symbols drawn near its means."""
    random = np.random.default_rng(seed)
    weight = random.integers(0, 1 << 16, (components, *shape)) + 1
    mean = random.integers(-(1 << 14), 1 << 14, (components, *shape))
    scale = random.integers(0, 330, (components, *shape))
    symbols = np.round(mean[0] / 64 + random.logistic(size=shape) * 2.0 ** (scale[0] / 32 - 6))
    return Mixture(weight, mean, scale, nbins, precision), symbols.astype(np.int32)


class Intervals:
    """A distribution that is a list of intervals."""

    shape = None

    def __init__(self, pairs, precision):
        self.pairs, self.precision = pairs, precision

    def intervals(self, symbols):
        return tuple(np.array(self.pairs, np.uint32).reshape(-1, 2).T.copy())


def plain_rans(pairs, precision, seal):
    """The stream as the module's docstring has it, in integers without bounds."""
    state, words = 1 << 32 | seal, []
    for start, frequency in reversed(pairs):
        if state >> 64 - precision >= frequency:
            words.insert(0, state % 2**32)
            state >>= 32
        state = (state // frequency << precision) + state % frequency + start
        assert 2**32 <= state < 2**64
    if state >= 2**54:
        words.insert(0, state % 2**32)
        state >>= 32
    size = next(n for n in (4, 5, 6, 7) if state < 1 << 8 * n - 2)
    head = (size - 4 << 8 * size - 2) + state
    return head.to_bytes(size, "big") + b"".join(w.to_bytes(4, "little") for w in words)


@st.composite
def intervals(draw):
    precision = draw(st.sampled_from([16, 20, 24]))
    ends = st.tuples(st.integers(0, 2**precision), st.integers(0, 2**precision))
    pairs = draw(st.lists(ends.filter(lambda e: e[0] != e[1]), max_size=40))
    return precision, [(min(e), max(e) - min(e)) for e in pairs]


@settings(deadline=None)
@given(intervals(), st.integers(0, 2**32 - 1))
def test_bytes_are_those_of_plain_integers(drawn, seal):
    precision, pairs = drawn
    assert encode([(Intervals(pairs, precision), None)], seal)[0] == plain_rans(pairs, precision, seal)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.lists(st.integers(0, 9), max_size=3))
def test_mixtures(seed, components, sizes):
    check_codec([sample((n, 3), components, seed + n) for n in sizes], seed)


@settings(deadline=None)
@given(st.data(), st.sampled_from([(2, 16), (4096, 16), (1 << 15, 16), (4096, 24), (1 << 23, 24)]))
def test_any_symbol_mean_and_scale(data, options):
    n = data.draw(st.integers(1, 4))

    def draw(values):
        return np.array(data.draw(st.lists(values, min_size=n, max_size=n)))

    symbols = draw(INT32)
    mean = np.stack([draw(INT32), draw(INT32)])
    scale = np.stack([draw(st.integers(-3, 600)), draw(st.integers(-3, 600))])
    weight = np.stack([draw(st.integers(1, 2**31 - 1)), draw(st.integers(0, 2**31 - 1))])
    check_codec([(Mixture(weight, mean, scale, *options), symbols)])
    check_codec([(Mixture.logistic(mean[0], scale[0], *options), symbols)])


@settings(deadline=None)
@given(st.lists(INT32 | st.integers(-9, 9), min_size=1, max_size=60))
def test_histograms(symbols):
    histogram = Histogram.of(np.array(symbols))
    check_codec([(histogram, symbols), (histogram, symbols[::-1])])


@pytest.mark.parametrize("seal", [0, 1, 2**31, 2**32 - 1])
def test_nothing(seal):
    check_codec([], seal)
    check_codec(
        [(Mixture.logistic(np.zeros((0, 3), int), np.zeros((0, 3), int)), np.zeros((0, 3), int))], seal
    )


def test_groups_may_come_from_several_encoders():
    """As of levels, which threads encode beside each other; of each group, its intervals are kept."""
    groups = [sample((40 + n,), 1 + n % 3, seed=n) for n in range(5)]
    encoders = [Encoder() for _ in range(3)]
    for n, which in ((3, 2), (4, 2), (1, 1), (2, 1), (0, 0)):  # those read last are known first
        encoders[which].push(*groups[n])
    encoder = encoders[0]
    for other in (encoders[1], Encoder(), encoders[2]):
        encoder.extend(other)
    data, bits = encode(groups, 7)
    assert encoder.finish(7) == data and encoder.bits == bits
    kept = [part for group in encoder._groups for part in group if isinstance(part, np.ndarray)]
    assert sum(part.nbytes for part in kept) == 8 * sum(symbols.size for _, symbols in groups)


def test_one_certain_symbol_costs_nothing():
    histogram = Histogram([7], [10])
    assert encode([(histogram, [7] * 1000)])[0] == encode([])[0]
    check_codec([(histogram, [7] * 1000)])


def test_many_symbols():
    groups = [sample((30000,)), sample((20, 500), 3, seed=1), sample((3,), 2, nbins=200, precision=16)]
    check_codec([*groups, (Histogram.of(groups[0][1]), groups[0][1])], 0xDEADBEEF)


def test_seal_out_of_range():
    for seal in (-1, 2**32):
        with pytest.raises(ValueError, match="seal"):
            Encoder().finish(seal)


def test_truncated_at_every_byte():
    far = np.array(EXTREMES * 3)
    groups = [
        sample((150,)),
        (Mixture.logistic(0 * far, 0 * far), far),
        sample((60,), 3, nbins=64, precision=16),
    ]
    groups.append((Histogram.of(groups[2][1]), groups[2][1]))
    expected = np.concatenate([symbols for _, symbols in groups])
    data, _ = encode(groups)
    known = []
    for length in range(len(data)):
        decoder, decoded, cut = Decoder(data[:length]), [], False
        for distribution, symbols in groups:
            try:
                decoded.append(decoder.pop(distribution, symbols.shape))
                assert not cut
            except Truncated as error:
                decoded.append(error.symbols)
                assert not cut or error.symbols.size == 0
                cut = True
        decoded = np.concatenate(decoded)
        np.testing.assert_array_equal(decoded, expected[: decoded.size])
        known.append(decoded.size)
        with pytest.raises(ValueError, match="corrupt"):
            decoder.finish()
    assert known[0] == 0 and known == sorted(known)
    assert known[len(data) // 2] > 0.3 * expected.size and known[-1] > 0.9 * expected.size


def test_symbols_left_over():
    distribution, symbols = sample((100,))
    data, _ = encode([(distribution, symbols)])
    for more in (b"\0", b"\0\0\0\0"):
        decoder = Decoder(data + more)
        decoder.pop(distribution)
        with pytest.raises(ValueError, match="corrupt"):
            decoder.finish()
    with pytest.raises(ValueError, match="corrupt"):
        Decoder(data).finish()


def test_damage_is_survived():
    random = np.random.default_rng(0)
    groups = [sample((200,), nbins=16), sample((50,), 3, seed=1)]
    histogram = Histogram.of(groups[0][1])
    encoder = Encoder()
    histogram.write(encoder)
    encoder.push(histogram, groups[0][1])
    for group in groups:
        encoder.push(*group)
    data = encoder.finish()
    noticed = 0
    for trial in range(2000):
        damaged = bytearray(data) if trial % 4 else bytearray(random.bytes(random.integers(0, 300)))
        for _ in range(random.integers(1, 4)):
            position = random.integers(0, len(damaged) + 1)
            damaged[position : position + random.integers(0, 3)] = random.bytes(random.integers(0, 3))
        try:
            decoder = Decoder(damaged)
            decoder.pop(Histogram.read(decoder, 200), 200)
            for distribution, _ in groups:
                decoder.pop(distribution)
            decoder.finish()
        except ValueError:
            noticed += 1
    assert noticed > 1900


def golden_groups():
    """Groups of every kind from a congruential generator: integers that nobody's library decides."""
    state = 1

    def draw(count, low, high):
        nonlocal state
        values = []
        for _ in range(count):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            values.append(low + (state >> 33) * (high - low) // 2**31)
        return np.array(values)

    logistic = Mixture.logistic(draw(40, -9000, 9000), draw(40, 100, 420))
    mixture = Mixture(*(draw(60, *r).reshape(3, 20) for r in [(0, 999), (-900, 900), (-9, 300)]), 256, 16)
    extremes = Mixture.logistic(draw(len(EXTREMES), -(2**31), 2**31), draw(len(EXTREMES), 0, 513))
    symbols = draw(40, -200, 200)
    return [(logistic, symbols), (mixture, draw(20, -20, 20)), (extremes, np.array(EXTREMES))]


def test_golden_stream():
    """A stream of another day and machine decodes, and comes out the same."""
    groups = golden_groups()
    encoder = Encoder()
    for group in groups:
        encoder.push(*group)
    residuals = groups[0][1] // 50
    histogram = Histogram.of(residuals)
    histogram.write(encoder)
    encoder.push(histogram, residuals)
    assert encoder.finish(2101_11306).hex() == GOLDEN.hex()

    decoder = Decoder(GOLDEN)
    for distribution, symbols in groups:
        np.testing.assert_array_equal(decoder.pop(distribution), symbols)
    np.testing.assert_array_equal(decoder.pop(Histogram.read(decoder, 40), 40), residuals)
    assert decoder.finish() == 2101_11306


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 10**6), st.sampled_from([(4096, 24), (2, 16)]))
def test_unsealed(size, seed, options):
    """Without a seal: the information, one symbol's precision for nothing, 2 bits, and to whole bytes."""
    table, symbols = sample((size,), 2, seed, *options)
    none = Mixture.logistic(np.zeros(0, np.int32), np.zeros(0, np.int32))
    encoder = Encoder()
    encoder.push(table, symbols)
    encoder.push(none, symbols[:0])
    data = encoder.finish(seal=None)
    assert 8 * len(data) <= max(encoder.bits + table.precision + 2 + 8, 32)
    decoder = Decoder(data, sealed=False)
    np.testing.assert_array_equal(decoder.pop(table), symbols)
    assert decoder.finish() is None


@pytest.mark.parametrize("size", [0, 1, 2, 50])
def test_unsealed_and_too_long(size):
    symbols = np.arange(size, dtype=np.int32)
    table = Mixture.logistic(np.zeros(size, np.int32), np.full(size, 300))
    encoder = Encoder()
    encoder.push(table, symbols)
    data = encoder.finish(seal=None)
    assert len(data) <= len(encoder.finish())
    with pytest.raises(ValueError, match="corrupt"):
        longer = Decoder(data + b"1234", sealed=False)
        longer.pop(table)
        longer.finish()


@given(st.integers(0, 5), st.integers(0, 4), st.integers(1, 3))
def test_each_image_of_a_batch_has_the_mixtures_of_the_batch(count, size, components):
    (batch, symbols) = sample((count, size, 2), components)
    parts = list(batch.each())
    assert len(parts) == count and all(part.shape == (size, 2) for part in parts)
    found = [part.intervals(z) for part, z in zip(parts, symbols)]
    for k, whole in enumerate(batch.intervals(symbols)):
        assert np.concatenate([part[k] for part in found] or [whole[:0]]).tolist() == whole.tolist()
