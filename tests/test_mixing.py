"""From networks' outputs to mixtures: in floats, in integers by two passes and by the oracle; their modes."""

import oracle
import pytest
import torch
from conftest import make_wild
from hypothesis import given, settings
from hypothesis import strategies as st
from integers import computed, drawn, seeded

from source import mixing, tables
from source.bands import MAX_OCTAVE, MIN_OCTAVE, Band, Mixer
from source.distribution import FixedMixture, Mixture
from source.units import MEAN_BITS, SCALES, WEIGHT_SUM_BITS
from utils.arithmetic.fixed import FixedConv
from utils.arithmetic.passes import FINE_BITS, INT16_MAX, WIDE_BITS, WIDE_MAX


def drawn_outputs(components, spread=1.0):
    """Fine outputs for one row of pixels, and wide means."""
    outputs = (2**12 * spread * torch.randn(1, 1, 300, 3 * components, generator=seeded())).to(torch.int16)
    return outputs, drawn((1, 1, 300), -(2**14), 2**14, 2, dtype=torch.int32)


def real(outputs, mean):
    """What these integers stand for, as Mixer takes them."""
    return outputs.permute(0, 3, 1, 2).double() / 2**FINE_BITS, mean[:, None].double() / 2**WIDE_BITS


@pytest.mark.parametrize("components", [1, 3, 4])
def test_mixer_follows_its_formulas(components):
    outputs, base = real(*drawn_outputs(components))
    mixture = Mixer(components)(outputs, base)
    logits, mean, octaves = 4 * outputs[0, :, 0].view(3, components, -1)
    octaves = octaves.clamp(MIN_OCTAVE, MAX_OCTAVE)
    assert all(field.shape == (components, 1, 1, 1, 300) for field in mixture)
    weights = torch.softmax(mixture.logits, 0)[:, 0, 0, 0]
    torch.testing.assert_close(weights, torch.exp2(logits) / torch.exp2(logits).sum(0))
    torch.testing.assert_close(mixture.mean[:, 0, 0, 0] * 256, base[0, 0] + mean * torch.exp2(octaves))
    torch.testing.assert_close(mixture.logscale[:, 0, 0, 0].exp() * 256, torch.exp2(octaves))


@settings(max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([1, 40, 3000, INT16_MAX]),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_fields_equal_plain_integers(components, batch, size, high, ends, seed):
    outputs = drawn((batch, *size, 3 * components), -high, high, seed, ends)
    mean = drawn((batch, *size), -2 * WIDE_MAX, 2 * WIDE_MAX, seed + 1, ends, torch.int32)
    wanted = oracle.mixture_fields(outputs, mean)
    for compiled in (True, False):
        with computed(None, compiled):
            fields = mixing.mixture_fields(outputs, mean)
        for field, expected in zip(fields, wanted):
            assert field.dtype == torch.int32 and torch.equal(field.long(), expected)


@pytest.mark.parametrize("components", [1, 3])
def test_fields_are_near_the_float_mixture(components):
    """In nats: what it costs to code under the frozen distribution what follows the float one."""
    outputs, mean = drawn_outputs(components, 0.1)
    exact, fixed = (
        Mixer(components)(*real(outputs, mean)),
        FixedMixture(*mixing.mixture_fields(outputs, mean)),
    )
    assert isinstance(exact, Mixture)
    z = torch.arange(-2000.0, 2300.0, dtype=torch.float64)[:, None, None, None, None]
    p, q = (m.log_prob(z[..., 0])[:, 0, 0] for m in (exact, fixed))
    torch.testing.assert_close(q.exp().sum(0), torch.ones(300, dtype=torch.float64))
    cost = (p.exp() * (p - q)).sum(0)
    assert cost.min() > -1e-6 and cost.mean() < 3e-4 and cost.max() < 0.01
    assert (exact.mode() - fixed.mode()).abs().max() <= 1


@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("high", [1, 2**8, INT16_MAX])
def test_fields_stay_within_what_the_coder_admits(components, high):
    outputs = drawn((2, 4, 50, 3 * components), -high, high, 1)
    mean = drawn((2, 4, 50), -2 * WIDE_MAX, 2 * WIDE_MAX, 2, dtype=torch.int32)
    if high == INT16_MAX:
        outputs[0] = outputs[0].sign() * high
    weight, mean, scale = mixing.mixture_fields(outputs, mean)
    assert weight.min() >= 0 and (weight.amax(0) == 1 << WEIGHT_SUM_BITS).all()
    assert scale.min() >= 0 and scale.max() < SCALES
    assert mean.long().abs().max() <= 1 << 25 + MEAN_BITS
    assert high < INT16_MAX or {scale.min().item(), scale.max().item()} == {0, SCALES - 1}
    fields = (field[:, 0].permute(0, 2, 3, 1).contiguous().numpy() for field in (weight, mean, scale))
    tables.Mixture(*fields)


def test_mode_of_a_fixed_mixture_is_exact():
    """Also where it lies halfway, and wherever it stands in a tensor: decoders must find the encoder's."""
    weight = torch.randint(0, 65537, (3, 2, 1, 1, 3001), generator=seeded(), dtype=torch.int32)
    weight[0] = 65536
    mean = torch.randint(-99, 256, (1, 2, 1, 1, 3001), generator=seeded()) * 64 + 32
    mean[:, 1] = torch.randint(-9999, 9999, (1, 1, 1, 3001), generator=seeded())
    mixture = FixedMixture(weight, mean.int().expand_as(weight), weight)
    assert torch.equal(mixture.mode(), torch.floor(mean[0].double() / 64 + 0.5))
    one_by_one = [FixedMixture(*(f[..., i : i + 1] for f in mixture)).mode() for i in range(0, 3001, 50)]
    assert torch.equal(torch.cat(one_by_one, -1), mixture.mode()[..., ::50])
    wide = FixedMixture(
        weight, torch.randint(-(2**31), 2**31, weight.shape, generator=seeded()).int(), weight
    )
    wanted = (wide.weight.double() * wide.mean).sum(0) / weight.sum(0) / 64
    assert (wide.mode() - wanted).abs().max() < 0.5 + 1e-6


# -- what the last layer of a channel reads -----------------------------------------------------------------


def frozen_band(width, std=0.3):
    """A band of wild layers, frozen: `width` channels for each of three."""
    with torch.no_grad():
        return make_wild(Band(0, 1, 2 * width, 0, 2), std).freeze({})


@settings(max_examples=60)
@given(
    st.sampled_from([1, 3, 6, 8, 33]),
    st.integers(0, 2),
    st.integers(1, 3),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_looks_beside_equal_plain_integers(width, channel, batch, size, ends, seed):
    band = frozen_band(width)
    out = band.out[channel]
    out.shift.copy_(drawn((width,), 0, 9, seed))
    layers = (band.beside[channel - 1], band.linear[channel - 1]) if channel else None
    base = drawn((batch, *size, 3), -WIDE_MAX, WIDE_MAX, seed, ends, torch.int32)
    hidden = drawn((batch, *size, 3 * width), -INT16_MAX, INT16_MAX, seed + 1, ends)
    planes = drawn((batch, *size, 7), -(2**14), 2**14, seed + 2, ends)
    if not ends:  # near each other, as they are
        base[..., :], planes = base // 2**6, planes // 2**6
    wanted = oracle.look_beside(base, hidden, planes, 4, channel, layers, out)
    for compiled in (True, False):
        with computed(None, compiled):
            q, mean = mixing.look_beside(base, hidden, planes, 4, channel, layers, out)
            mixture = band.mixture(base, hidden, planes, 4, channel)
        assert (q.dtype, mean.dtype) == (torch.uint8, torch.int32)
        assert torch.equal(q.long(), wanted[0]) and torch.equal(mean.long(), wanted[1])
        outputs = oracle.scaled(oracle.sums(wanted[0], out.weight) + out.bias.long(), out.exponent)
        fields = oracle.mixture_fields(outputs.clamp(-INT16_MAX, INT16_MAX), wanted[1])
        assert all(torch.equal(a.long(), b) for a, b in zip(mixture, fields))


@pytest.mark.parametrize("compiled", [True, False])
def test_looks_beside_of_a_part_of_the_rows(compiled):
    """Strips are views of planes, whose rows do not begin where these do."""
    band = frozen_band(5)
    base, hidden = drawn((2, 4, 6, 3), -999, 999, 1, dtype=torch.int32), drawn((2, 4, 6, 15), -999, 999)
    planes = drawn((2, 9, 6, 6), -999, 999, 2)
    with computed(None, compiled):
        one, other = (band.mixture(base, hidden, p, 3, 2) for p in (planes[:, 3:7], planes[:, 3:7].clone()))
    assert all(map(torch.equal, one, other))


def test_sums_beside_at_their_bound_do_not_overflow():
    """All weights at their end, and all differences."""
    band = frozen_band(4)
    beside = FixedConv((4, 4, 1, 1), -2047, 2047)
    beside.weight[:2], beside.weight[2:] = 127, -128
    beside.bias.copy_(torch.tensor([1, -1, 1, -1]) * (2**24 - 1 - 4 * 128 * 2047))
    beside.exponent.copy_(torch.tensor([-6, -6, 4, 30]))
    beside.check()
    planes = drawn((1, 2, 8, 2), -(2**14), 2**14, ends=True)
    base = drawn((1, 2, 8, 3), -WIDE_MAX, WIDE_MAX, 3, True, torch.int32)
    hidden = drawn((1, 2, 8, 12), -INT16_MAX, INT16_MAX, 4, True)
    layers = beside, band.linear[1]
    wanted = oracle.look_beside(base, hidden, planes, 0, 2, layers, band.out[2])
    for compiled in (True, False):
        with computed(None, compiled):
            found = mixing.look_beside(base, hidden, planes, 0, 2, layers, band.out[2])
        assert all(torch.equal(a.long(), b) for a, b in zip(found, wanted))
