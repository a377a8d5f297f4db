"""The band-wise prior: what each part is given, fixed point bit for bit, whole models to bytes and back."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_wild, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import utils.arithmetic.fixed
from flow import analysis
from flow.codec import histogram
from flow.codec.container import FLOW, pack, read_head, unpack
from flow.codec.stream import decode, encode
from flow.folder import default_folder, identity, open_frozen, write_options
from flow.model import ARCHITECTURE, build
from source import tables
from source.bands import LEVELS, BandPrior, Mixer
from source.distribution import FixedMixture, Mixture, drawing
from source.networks import Compand, Conv, ConvNet
from source.prior import SimplePrior, generate_details, given_parts
from source.rans import Decoder
from source.units import MAX_OCTAVE, MEAN_BITS, MIN_OCTAVE, SCALES, WEIGHT_SUM_BITS
from utils.arithmetic.fixed import CONV_MAX, GRID, INPUT_MAX, FixedConv, FixedNetwork, on_grid
from utils.arithmetic.integers import bits_per_dimension
from utils.arithmetic.polyphase import band_sizes
from utils.files import load_tensors, save_tensors

SMALL = {"prior": "bands", "width": 6, "components": 2, "hchnl": 4}
SCHEMES = {
    "no couplings": {"repeat": 0},
    "no couplings HUE": {"repeat": 0, "HUE": True},
    "couplings": {},
    "couplings HUE": {"HUE": True, "blocks": 0, "components": 1},
    "lifting": {"lifting": "legall", "blocks": 2},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_model(scheme, std=0.2):
    return make_wild(build(SMALL | SCHEMES[scheme]), std)


def nudged(scheme, std=0.01):
    """A model near its start, as training would leave it: its networks all count, couplings by some steps."""
    torch.manual_seed(0)
    model = build(SMALL | SCHEMES[scheme])
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += (std / 10 if name.startswith("pyramid") else std) * torch.randn(p.shape)
    return model


@pytest.fixture(scope="module")
def learnt(photo):
    """A model after some steps on pieces of a photograph, and its first and last bits per dimension."""
    torch.manual_seed(0)
    model, bits = build(SMALL | {"repeat": 0, "HUE": True}), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.cat([photo[..., i : i + 20, 120:140] for i in range(240, 320, 20)])
    for _ in range(30):
        nats = -model.log_prob(x).mean()
        bits.append(bits_per_dimension(nats.item(), x[0].numel()))
        optimizer.zero_grad()
        nats.backward()
        optimizer.step()
    return model, bits[0], bits[-1]


# -- Compand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compand_is_the_logarithm_with_lines_between_powers_of_two(dtype):
    k = torch.arange(14.0, dtype=dtype)
    power = torch.exp2(k)
    assert torch.equal(Compand()(power - 1), k) and torch.equal(Compand()(1 - power), -k)
    for part in (0.125, 0.25, 0.5, 0.875):
        assert torch.equal(Compand()(power * (1 + part) - 1), k + part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compand_is_odd_and_never_falls(dtype):
    u = (torch.randn(4000, dtype=dtype, generator=seeded()) * 30).sort().values
    y = Compand()(u)
    assert y.dtype == dtype and torch.equal(Compand()(-u), -y)
    assert (y.diff() >= 0).all() and (y - u.sign() * torch.log2(1 + u.abs())).abs().max() < 0.0861


def test_compand_in_float32_is_that_in_float64_where_it_is_exact():
    u = torch.randint(-(2**19), 2**19, (5000,), generator=seeded()) / 256
    assert torch.equal(Compand()(u).double(), Compand()(u.double()))


def test_compand_has_the_gradient_of_its_lines():
    k = torch.arange(12.0, dtype=torch.float64)[:, None]
    u = (torch.exp2(k) * (1 + torch.linspace(0.1, 0.9, 7)) - 1).flatten()
    u = torch.cat([u, -u]).requires_grad_()
    (gradient,) = torch.autograd.grad(Compand()(u).sum(), u)
    assert torch.equal(gradient, torch.exp2(-torch.floor(torch.log2(1 + u.detach().abs()))))
    step = 2.0**-20
    difference = (Compand()(u + step) - Compand()(u - step)) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=0)
    zero = torch.zeros(1, requires_grad=True)
    (gradient,) = torch.autograd.grad(3 * Compand()(zero).sum(), zero)
    assert gradient.item() == 3


def test_autocast_computes_in_bfloat16_what_is_not_precise():
    x = torch.randn(1, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        given = [module(x).dtype for module in (Compand(), Conv(2, 2, 3), Conv(2, 2, 3, precise=True))]
    assert given == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(module(x).dtype == torch.float32 for module in (Compand(), Conv(2, 2, 3)))


# -- FixedConv -----------------------------------------------------------------------------------------------


def conv(channels=4, out=3, size=3, std=0.3):
    return make_wild(Conv(channels, out, size), std)


def steps(*shape, high=2**20, seed=1):
    """Draw multiples of GRID within +-high GRID."""
    return torch.randint(-high, high + 1, shape, generator=seeded(seed)).double() * GRID


def dequantised(fixed):
    """The weights and biases that a FixedConv stands for."""
    scale = torch.exp2(-fixed.exponent.double())
    return fixed.weight.double() * scale.view(-1, 1, 1, 1), fixed.bias.double() * scale * GRID


def plain(x, weight, bias):
    border = weight.shape[-1] // 2
    return F.conv2d(F.pad(x, (border,) * 4, mode="replicate"), weight, bias)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 1), (2, 2), (5, 6)])
@pytest.mark.parametrize("std", [1e-4, 0.3, 40.0])
def test_fixed_conv_is_the_rounded_conv(size, shape, std):
    module, x = conv(size=size, std=std), steps(2, 4, *shape)
    assert torch.allclose(module(x.float()).double(), plain(x, module.weight.double(), module.bias.double()),
                          rtol=1e-4, atol=1e-3 * std)  # fmt: skip
    fixed = module.freeze()
    weight, bias = dequantised(fixed)
    unit = torch.exp2(-fixed.exponent.double())
    # a weight that would be 2^15 units is one unit less
    assert ((weight - module.weight.double()).abs().amax((1, 2, 3)) <= unit).all()
    assert ((weight - module.weight.double()).abs().mean((1, 2, 3)) <= unit / 2).all()
    assert ((bias - module.bias.double()).abs() <= unit * GRID / 2).all()
    assert (weight.abs().amax((1, 2, 3)) / unit >= 2**14 - 1).all() or std < 1e-3
    # every sum is exact in float64: equal, not near
    y = fixed(x)
    assert torch.equal(y, on_grid(plain(x, weight, bias)).clamp(-CONV_MAX, CONV_MAX))
    exact = plain(x, module.weight.double(), module.bias.double())
    bound = x.abs().max() * fixed.weight[0].numel() * unit.max() + GRID
    assert (y - exact.clamp(-CONV_MAX, CONV_MAX)).abs().max() <= bound
    assert std < 40 or y.abs().max() == CONV_MAX


def test_on_grid_rounds_halves_upwards():
    x = torch.tensor([0.5, -0.5, 1.5, 0.49, -0.51, 7.0], dtype=torch.float64)
    assert torch.equal(on_grid(x * GRID) / GRID, torch.tensor([1.0, 0, 2, 0, -1, 7], dtype=torch.float64))


@pytest.mark.parametrize("size", [1, 3])
def test_fixed_conv_does_not_depend_on_the_order_of_its_sums(size, monkeypatch):
    module, x = conv(37, 5, size), steps(3, 37, 9, 8, high=INPUT_MAX << 14)
    with torch.no_grad():
        module.weight /= 1000  # so that not all is at the limit
    y = module.freeze()(x)
    assert 0.2 < (y.abs() < CONV_MAX).double().mean()
    order = torch.randperm(37, generator=seeded())
    permuted = conv(37, 5, size)
    with torch.no_grad():
        permuted.weight.copy_(module.weight[:, order]), permuted.bias.copy_(module.bias)
    assert torch.equal(permuted.freeze()(x[:, order]), y)
    assert torch.equal(module.freeze()(x.contiguous(memory_format=torch.channels_last)), y)
    for pixels in (1, 7, 10**6):
        monkeypatch.setattr(utils.arithmetic.fixed, "PIXELS", pixels)
        assert torch.equal(module.freeze()(x), y)
        assert torch.equal(torch.cat([module.freeze()(image[None]) for image in x]), y)
    for top, bottom in ((0, 5), (2, 9), (4, 8)):
        part, inner = module.freeze()(x[..., top:bottom, :]), y[..., top:bottom, :]
        first, last = (top > 0) * (size // 2), bottom - top - (bottom < 9) * (size // 2)
        assert torch.equal(part[..., first:last, :], inner[..., first:last, :])


def test_fixed_conv_at_the_ends_of_its_range():
    module = conv(std=1e3)
    y = module.freeze()(steps(1, 4, 5, 5).sign() * INPUT_MAX)
    assert y.abs().max() == CONV_MAX and y.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", math.nan, "not finite"),
        ("bias", math.inf, "not finite"),
        ("weight", 2.0**50, "too large"),
        ("weight", 2.0**14, None),
        ("bias", 2.0**40, "too large"),
    ],
)
def test_fixed_conv_refuses_what_it_cannot_hold(name, value, message):
    module = conv()
    with torch.no_grad():
        getattr(module, name).view(-1)[1] = value
    if message is None:
        module.freeze()
        return
    with pytest.raises(ValueError, match=message) as caught:
        module.freeze()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "fits"), [(455, True), (456, False)])
def test_fixed_conv_refuses_sums_beyond_2_53(channels, fits):
    module = conv(channels, 1)
    with torch.no_grad():
        module.weight.fill_(0.99999)
    if not fits:
        with pytest.raises(ValueError, match="too large"):
            module.freeze()
        return
    # no order of these sums loses a bit
    x = (
        torch.full((1, channels, 1, 1), float(INPUT_MAX), dtype=torch.float64)
        - steps(1, channels, 1, 1).abs()
    )
    fixed = module.freeze()
    weight, bias = dequantised(fixed)
    exact = sum(int(v / GRID) for v in x.flatten().tolist()) * int(fixed.weight[0, 0, 0, 0]) * 9
    assert exact < 2**53
    y = (x * weight[0, :, :1, :1] * 9).sum() + bias
    assert y.item() == exact * GRID * 2.0 ** -fixed.exponent.item() + bias.item()
    assert torch.equal(fixed(x).flatten(), torch.tensor([CONV_MAX], dtype=torch.float64))


@pytest.mark.parametrize("exponent", [-128, -29, 29, 127])
@pytest.mark.parametrize("network", ["conv", "net"])
def test_forged_exponents_are_refused(network, exponent):
    if network == "conv":
        fixed = conv().freeze()
        fixed.exponent[0] = exponent
    else:
        fixed = FixedNetwork.of(ConvNet(3, 4, 5, 1), 1.0)
        fixed.exponent1[0] = exponent
    with pytest.raises(ValueError, match="too large"):
        fixed.check()


def test_fixed_conv_checks_the_bound_of_stored_integers():
    fixed = conv().freeze()
    other = FixedConv((3, 4, 3, 3))
    other.load_state_dict(fixed.state_dict())
    assert torch.equal(other(steps(1, 4, 3, 3)), fixed(steps(1, 4, 3, 3)))
    other = FixedConv((3, 4, 3, 3))
    other.bias.fill_(2**62)
    with pytest.raises(ValueError, match="too large"):
        other(steps(1, 4, 2, 2))


# -- Mixer ---------------------------------------------------------------------------------------------------


def drawn_outputs(components, spread=1.0):
    """Outputs for one row of pixels, on the grid, and where they start from."""
    return on_grid(steps(1, 3 * components, 1, 300) / 64 * spread), steps(1, 1, 1, 300, high=2**21, seed=2)


@pytest.mark.parametrize("components", [1, 3, 4])
def test_mixer_follows_its_formulas(components):
    outputs, base = drawn_outputs(components, 0.3)
    mixture = Mixer(components)(outputs, base)
    logits, mean, octaves = 4 * outputs[0, :, 0].view(3, components, -1)
    octaves = octaves.clamp(MIN_OCTAVE, MAX_OCTAVE)
    assert all(field.shape == (components, 1, 1, 1, 300) for field in mixture)
    weights = torch.softmax(mixture.logits, 0)[:, 0, 0, 0]
    torch.testing.assert_close(weights, torch.exp2(logits) / torch.exp2(logits).sum(0))
    torch.testing.assert_close(mixture.mean[:, 0, 0, 0] * 256, base[0, 0] + mean * torch.exp2(octaves))
    torch.testing.assert_close(mixture.logscale[:, 0, 0, 0].exp() * 256, torch.exp2(octaves))


@pytest.mark.parametrize("components", [1, 3])
def test_fixed_mixer_is_near_the_float_mixer(components):
    """In nats: what it costs to code under the frozen distribution what follows the float one."""
    outputs, base = drawn_outputs(components, 0.1)
    base = base / 64
    exact, fixed = (m(outputs, base) for m in (Mixer(components), Mixer(components).freeze()))
    assert isinstance(exact, Mixture) and isinstance(fixed, FixedMixture)
    z = torch.arange(-2000.0, 2300.0, dtype=torch.float64)[:, None, None, None, None]
    p, q = (m.log_prob(z[..., 0])[:, 0, 0] for m in (exact, fixed))
    torch.testing.assert_close(q.exp().sum(0), torch.ones(300, dtype=torch.float64))
    cost = (p.exp() * (p - q)).sum(0)
    assert cost.min() > -1e-6 and cost.mean() < 3e-4 and cost.max() < 0.01
    assert (exact.mode() - fixed.mode()).abs().max() <= 1


@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("high", [1, 2**14, 2**23])
def test_fixed_mixer_stays_within_what_the_coder_admits(components, high):
    """CONV_MAX is 2^23 GRID: outputs as wild as a FixedConv gives them."""
    outputs, base = steps(2, 3 * components, 4, 50, high=high), steps(2, 1, 4, 50, high=2**24, seed=2)
    if high > 2**20:
        outputs[0] = outputs[0].sign() * CONV_MAX
    weight, mean, scale = Mixer(components).freeze()(outputs, base)
    assert weight.min() >= 0 and (weight.amax(0) == 1 << WEIGHT_SUM_BITS).all()
    assert scale.min() >= 0 and scale.max() < SCALES
    assert all(field.dtype == torch.int32 for field in (weight, mean, scale))
    assert mean.long().abs().max() <= 1 << 25 + MEAN_BITS
    assert high < 2**20 or {scale.min().item(), scale.max().item()} == {0, SCALES - 1}
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


# -- BandPrior -----------------------------------------------------------------------------------------------


def wild_prior(std=0.3, **options):
    return make_wild(BandPrior(**{"width": 5, "blocks": 1, "components": 2} | options), std)


def drawn_level(height, width, batch=2):
    """A coarse band and details of an image of that size."""
    coarse, *detail = (noise(batch, 3, *size, seed=k) for k, size in enumerate(band_sizes(height, width)))
    return coarse, tuple(detail)


def distributions(prior, coarse, detail, size, level=0):
    """The distribution of each part; generated from its values, the details must come back under the same."""
    found = list(given_parts(prior, coarse, level, detail))
    distributions, again = [distribution for distribution, _ in found], []
    values = iter([values for _, values in found])

    def following(distribution):
        again.append(distribution)
        return next(values)

    assert all(map(torch.equal, generate_details(prior, coarse, level, size, following), detail))
    assert all(map(same, distributions, again))
    return distributions


def same(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_are_every_plane_once(order):
    prior = wild_prior(order=order)
    planes = [(band, c) for band, channels in prior.parts for c in range(3)[channels]]
    assert sorted(planes) == [(band, c) for band in range(3) for c in range(3)] and len(prior.parts) == 9
    assert [band for band, _ in prior.parts] == [band for band in order for _ in range(3)]
    coarse, detail = drawn_level(7, 4)
    assert len(distributions(prior, coarse, detail, (7, 4))) == 9


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 6), (7, 1), (2, 1), (1, 1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@torch.no_grad()
def test_parts_depend_on_those_before_them_and_on_no_later_one(size, order, frozen):
    prior = wild_prior(0.3, order=order)
    coarse, detail = drawn_level(*size)
    if frozen:
        prior = prior.double().freeze()
        coarse, detail = coarse.double(), tuple(band.double() for band in detail)
    before = distributions(prior, coarse, detail, size)
    for (band, _), distribution in zip(prior.parts, before):
        assert all(f.shape == (2, 2, 1, *band_sizes(*size)[1 + band]) for f in distribution)
        assert all(f.double().isfinite().all() for f in distribution)
    for j, (band, channels) in enumerate(prior.parts):
        if not detail[band].numel():
            continue
        other = [part.clone() for part in detail]
        other[band][:, channels] += (
            40 * torch.randn(other[band][:, channels].shape, generator=seeded(j)).round()
        )
        after = distributions(prior, coarse, other, size)
        for p, (a, b) in enumerate(zip(before, after)):
            assert same(a, b) == (p <= j or not a.mean.numel()), (j, p)
    after = distributions(prior, 255 - coarse, detail, size)
    assert not any(same(a, b) for a, b in zip(before, after) if a.mean.numel())


@torch.no_grad()
def test_trunk_sees_the_coarse_band_alone_and_once():
    prior, inputs = wild_prior(), []
    prior.trunk.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
    coarse, detail = drawn_level(6, 6)
    for known in (detail, [255 - band for band in detail]):
        list(given_parts(prior, coarse, 0, known))
    assert len(inputs) == 2 and torch.equal(*inputs)


@torch.no_grad()
def test_levels_share_all_but_a_bias_and_the_last_serves_all_deeper_ones():
    coarse, detail = drawn_level(6, 6)
    for prior, differ in ((BandPrior(5, 1, 2), False), (wild_prior(), True)):
        levels = [distributions(prior, coarse, detail, (6, 6), level) for level in range(LEVELS + 2)]
        assert all(same(a, b) for other in levels[LEVELS:] for a, b in zip(other, levels[LEVELS - 1]))
        for level in range(1, LEVELS):
            assert differ != all(same(a, b) for a, b in zip(levels[level], levels[0]))
    state = prior.state_dict()
    assert [name for name in state if "level" in name] == ["level"]


@torch.no_grad()
def test_distributions_do_not_depend_on_the_batch():
    prior = wild_prior().double().freeze()
    coarse, detail = (drawn_level(5, 9, 3)[0].double(), [b.double() for b in drawn_level(5, 9, 3)[1]])
    whole = distributions(prior, coarse, detail, (5, 9))
    for i in range(3):
        one = distributions(prior, coarse[i : i + 1], [band[i : i + 1] for band in detail], (5, 9))
        assert all(same(a, [f[:, i : i + 1] for f in b]) for a, b in zip(one, whole))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@torch.no_grad()
def test_predictions_start_as_the_neighbours_in_the_coarse_band(order):
    """Exact on a plane, whatever the other bands hold; but for borders, which are replicated."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(14.0), indexing="ij")
    image = torch.stack([40 + 4 * rows + 8 * columns, -6 * columns, 2 * rows - columns])[None]
    coarse, known = image[..., ::2, ::2], noise(1, 9, 6, 7)
    for index, band in zip(order, BandPrior(5, 1, 1, order).bands):
        row, column = ((0, 1), (1, 0), (1, 1))[index]
        base = band.base(torch.cat([coarse, known], 1)[:, : band.base.in_channels])
        assert torch.equal(base[..., :-1, :-1], image[..., row::2, column::2][..., :-1, :-1])


@torch.no_grad()
def test_freezing_keeps_the_coders_ranges_with_wild_weights():
    for std in (1e-3, 1.0, 30.0):
        prior = wild_prior(std).double().freeze()
        coarse, detail = drawn_level(9, 6)
        for weight, mean, scale in distributions(
            prior, coarse.double(), [b.double() for b in detail], (9, 6)
        ):
            assert weight.min() >= 0 and (weight.amax(0) == 1 << WEIGHT_SUM_BITS).all()
            assert 0 <= scale.min() and scale.max() < SCALES and mean.long().abs().max() < 1 << 31


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@torch.no_grad()
def test_weights_that_cannot_be_frozen(value):
    model = build(SMALL | {"repeat": 0})
    for name, p in model.detail.named_parameters():
        if name == "level" and math.isfinite(value):
            continue  # harmless: what comes after clamps it
        before = p.clone()
        p.view(-1)[0] = value
        with pytest.raises(ValueError, match="not finite|too large") as caught:
            model.freeze()
        assert "\n" not in str(caught.value)
        p.copy_(before)
    model.freeze()


@pytest.mark.parametrize("blocks", [0, 2])
@torch.no_grad()
def test_tiles_make_no_difference(blocks, monkeypatch):
    exact = wild_prior(0.2, blocks=blocks).double()
    fixed, size = wild_prior(0.2, blocks=blocks).double().freeze(), (27, 30)
    coarse, detail = drawn_level(*size)
    coarse, detail = coarse.double(), [band.double() for band in detail]
    whole = [distributions(prior, coarse, detail, size) for prior in (exact, fixed)]
    for tile in (2, 5, 13):
        monkeypatch.setattr(utils.arithmetic.fixed, "TILE", tile)
        for a, b in zip(distributions(fixed, coarse, detail, size), whole[1]):
            assert isinstance(a, FixedMixture) and same(a, b)
        for a, b in zip(distributions(exact, coarse, detail, size), whole[0]):
            torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-9, atol=1e-9)


# -- whole models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_log_prob_is_the_sum_over_the_parts(scheme):
    model = make_model(scheme).double()
    for size in ((16, 16), (1, 9), (13, 6), (1, 1)):
        x = noise(2, 3, *size)
        for levels in (None, 1):
            top, details = model.transform(x, levels)
            total, coarse = model.top(2, top.shape[-2:]).log_prob(top).sum((1, 2, 3)), model.from_images(x)
            for i, detail in enumerate(details):
                shape = coarse.shape[-2:]
                coarse, _ = model.pyramid.level(i).split(coarse)
                found = distributions(model.detail, coarse, detail, shape, i)
                for (band, channels), distribution in zip(model.detail.parts, found):
                    total = total + distribution.log_prob(detail[band][:, channels]).sum((1, 2, 3))
            torch.testing.assert_close(model.log_prob(x, levels), total, rtol=1e-11, atol=1e-9)


@torch.no_grad()
def test_it_learns_and_freezing_costs_little(learnt, photo):
    model, first, last = learnt
    assert last < first - 0.8
    for x in (photo[..., 240:304, 120:168], photo[..., 100:141, 200:227]):
        exact, fixed = (bits_per_dimension(-m.log_prob(x).item(), x.numel()) for m in (model, model.freeze()))
        assert abs(fixed - exact) < 0.005


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_freezing_keeps_the_likelihood(scheme, photo):
    model, x = nudged(scheme), photo[..., 300:364, 300:348]
    exact, fixed = (-m.log_prob(x).item() for m in (model, model.freeze()))
    # in far tails, bits go with 1 / s, which is rounded to 1 %
    assert fixed == pytest.approx(exact, rel=1e-2)


@torch.no_grad()
def test_autocast_costs_little(photo):
    model, x = nudged("no couplings HUE"), photo[..., 300:364, 300:348]
    with torch.autocast("cpu", torch.bfloat16):
        half = model.log_prob(x).item()
    assert half == pytest.approx(model.log_prob(x).item(), rel=0.02)


@torch.no_grad()
def test_size_is_what_theory_says(photo):
    model, x = nudged("no couplings HUE").freeze(), photo[..., 240:288, 120:168]
    (encoder,) = encode(model, x)
    theory = bits_per_dimension(-model.log_prob(x).item(), x.numel())
    assert 8 * len(encoder.finish()) / x.numel() == pytest.approx(theory, abs=0.01 + 32 / x.numel())


@settings(max_examples=25)
@given(
    st.sampled_from([*SCHEMES]),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 99),
    st.sampled_from([0.02, 0.3, 3.0]),
)
def test_any_size_and_weights_to_bytes_and_back(scheme, height, width, seed, std):
    model, images = make_model(scheme, std).freeze(), noise(3, 3, height, width, seed=seed)
    images[1] = seed
    streams = [encoder.finish() for encoder in encode(model, images)]
    assert [encoder.finish() for encoder in encode(model, images[2:])] == streams[2:]
    for image, stream in zip(images, streams):  # one by one, though they were encoded together
        decoder = Decoder(stream)
        assert torch.equal(decode(model, [decoder], (height, width))[0].float(), image)
        decoder.finish()
    r = histogram.differences(model, images)
    assert torch.equal(histogram.restore(model, r, (height, width)).float(), images)
    assert torch.equal(histogram.restore(model, r[1:2], (height, width)).float(), images[1:2])


@torch.no_grad()
def test_frequencies_of_halfway_means_do_not_depend_on_the_batch():
    """All components of all bands at n + 1/2, with weights whose sum is not a power of two."""
    model = build(SMALL | {"repeat": 0, "components": 3})
    for name, p in model.detail.named_parameters():
        if not name.endswith("base.weight"):
            p.zero_()
    for band in model.detail.bands:
        band.base.bias.fill_(0.5)
        for out in band.out:
            out.bias.copy_(torch.tensor([0.3, 0.1, -0.2, 0, 0, 0, 0.1, 0.2, 0.3]))
    model = model.freeze()
    x = noise(5, 3, 1, 1).expand(-1, -1, 17, 19).contiguous()
    r = histogram.differences(model, x)
    for image, row in zip(x, r):
        assert np.array_equal(histogram.differences(model, image[None])[0], row)
        assert torch.equal(histogram.restore(model, row[None], (17, 19))[0].float(), image)


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_samples(scheme):
    model = nudged(scheme)
    for m in (model, model.freeze()):
        for size in ((1, 1), (1, 9), (13, 6)):
            a, b, c = (m.sample(3, *size, generator=seeded(seed)) for seed in (0, 0, 1))
            assert a.shape == (3, 3, *size) and torch.equal(a, a.clamp(0, 255).round())
            assert torch.equal(a, b) and not torch.equal(a, c)


@torch.no_grad()
def test_samples_without_a_scale_take_the_means():
    model = nudged("couplings HUE")  # of one component, whose mean a narrow scale leaves
    top = noise(2, 3, 2, 3)
    means = model.sample(2, 15, 20, base_scale=None, top=top, levels=3)
    assert torch.equal(model.sample(2, 15, 20, base_scale=-60.0, top=top, levels=3), means)
    sizes = (15, 20), (8, 10), (4, 5), (2, 3)
    levels = list(model.synthesise(top, sizes, drawing()))
    assert [level for level, _ in levels] == [3, 2, 1, 0] and torch.equal(levels[0][1], top)
    for i, x in levels[1:]:
        size = sizes[i]
        assert x.shape[-2:] == size
        coarse, detail = model.pyramid.level(i).split(x)
        for (band, channels), d in zip(
            model.detail.parts, distributions(model.detail, coarse, detail, size, i)
        ):
            assert torch.equal(d.mode(), detail[band][:, channels])
    assert torch.equal(model.to_images(x).clamp(0, 255), means)


@torch.no_grad()
def test_samples_cost_what_their_entropy_is():
    """Drawn part by part, each given those before it: under another order they would cost more."""
    model, coarse = nudged("no couplings", 0.05), noise(8, 3, 16, 16)
    _, image = list(model.synthesise(coarse, ((32, 32), (16, 16)), drawing(0.0, seeded())))[-1]
    _, detail = model.pyramid.level(0).split(image)
    found = distributions(model.detail, coarse, detail, (32, 32))
    again = [d.sample(generator=seeded(k)) for k, d in enumerate(found)]
    parts = [detail[band][:, channels] for band, channels in model.detail.parts]
    cost, usual = (
        sum(d.log_prob(part).sum().item() for d, part in zip(found, values)) for values in (parts, again)
    )
    assert cost == pytest.approx(usual, rel=0.03)


@pytest.mark.parametrize("scheme", ["no couplings HUE", "couplings"])
@torch.no_grad()
def test_residuals_and_means_make_the_bands(scheme, photo):
    model, x = nudged(scheme), photo[..., :21, :18]
    coarse, details, residuals = analysis.pyramid(model, x, 2)
    for i in (1, 0):
        for k, band in enumerate(details[i]):
            assert residuals[i][k].shape == band.shape and (band - residuals[i][k]).abs().max() > 0
    again = analysis._with_residuals(model, coarse, ((21, 18), (11, 9), (6, 5)), residuals)
    assert torch.equal(model.to_images(again), x)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_pictures_to_files_and_back(mode, learnt, photo):
    model, name = learnt[0].freeze(), "ab" * 32
    pixels = photo[0, :, 240:320, 120:180].permute(1, 2, 0).byte().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)
    data = pack(picture, model, name)
    assert read_head(data).method == FLOW
    back = unpack(data, model, name)
    assert (back.mode, back.size) == (mode, picture.size) and back.tobytes() == picture.tobytes()
    small = unpack(data, model, name, levels=2)
    assert unpack(data[: len(data) // 2], model, name, levels=2).tobytes() == small.tobytes()
    part = unpack(data[: len(data) * 2 // 3], model, name, partial=True)
    errors = [np.abs(np.asarray(p, int) - np.asarray(picture, int)).mean() for p in (part, back)]
    assert part.size == picture.size and 0 == errors[1] < errors[0] < 15


# -- options -------------------------------------------------------------------------------------------------


def test_options_shape_the_prior():
    assert isinstance(build({"prior": "bands"}).detail, BandPrior)
    width, blocks, components = (ARCHITECTURE[name].default for name in ("width", "blocks", "components"))
    count = {
        name: sum(p.numel() for p in build({"prior": "bands"} | options).parameters())
        for name, options in {
            "usual": {},
            "wide": {"width": width + 1},
            "long": {"blocks": blocks + 1},
            "many": {"components": components + 1},
        }.items()
    }
    assert count["usual"] < count["wide"]
    # nine parts, three outputs of each component; two residual blocks of the trunk, one of each band
    assert count["many"] - count["usual"] == 9 * 3 * (width // 2 + 1)
    assert count["long"] - count["usual"] == 5 * (10 * width**2 + 2 * width)


def test_simple_prior_by_either_name():
    for options in ({}, {"diffDetail": True, "size": 8}):
        old, new = (build(options | o) for o in ({"simplePrior": True}, {"prior": "simple"}))
        assert str(old) == str(new)
        assert {n: p.shape for n, p in old.named_parameters()} == {
            n: p.shape for n, p in new.named_parameters()
        }
    assert isinstance(build({"prior": "simple"}).detail, SimplePrior)


def test_identity_counts_the_later_options_where_they_are_not_their_defaults():
    model = build({"hchnl": 4}).freeze()
    later = {name: ARCHITECTURE[name].default for name in ("prior", "width", "blocks", "components")}
    old = {"hchnl": 4, "repeat": 1, "size": 8}
    name = identity(model, old)
    assert identity(model, old | later) == name
    others = {
        identity(model, old | later | change)
        for change in ({"components": 4}, {"width": 5}, {"width": 6}, {"blocks": 0}, {"prior": "bands"})
    }
    assert len(others | {name}) == 6


def test_default_folder_names_later_options_where_they_are_not_their_defaults():
    options = {name: option.default for name, option in ARCHITECTURE.items()} | {"target": "photos"}
    old = (
        "default_easyMera_photos_repeat_1_hchnl_12_nhidden_1_nMixing_5_simplePrior_False_diffDetail_False"
        "_HUE_False_clamp_-1.0_heavy_False_lifting_none"
    )
    assert default_folder(options).name == old
    assert default_folder(options | {"prior": "bands"}).name == old + "_prior_bands"
    changed = options | {"components": 5, "prior": "bands", "blocks": 0}
    assert default_folder(changed).name == old + "_prior_bands_blocks_0_components_5"


def test_folder_of_a_model(tmp_path):
    options = SMALL | {"repeat": 0, "HUE": True}
    model = make_model("no couplings HUE")
    write_options(tmp_path, options)
    tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
    save_tensors(tmp_path / "savings" / "best_test.safetensors", tensors, {})
    made, _, name = open_frozen(tmp_path)
    again, _, _ = open_frozen(tmp_path)  # from the frozen file
    x = noise(2, 3, 9, 10)
    streams = [[encoder.finish() for encoder in encode(m, x)] for m in (made, again, model.freeze())]
    assert streams[0] == streams[1] == streams[2] and name == identity(again, options)
    _, state = load_tensors(tmp_path / "savings" / "best_test_frozen.safetensors")
    assert json.dumps(state).count(name) == 1
