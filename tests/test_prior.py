"""Log-probabilities are exact where the original's were not, sum to 1, and samples follow them."""

import math
from decimal import Decimal, localcontext

import numpy as np
import oracle
import pytest
import torch
from conftest import make_wild, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from original import naive_log_pmf

from flow.model import build
from source.distribution import LOGSCALE_RANGE, FixedMixture, Mixture, concatenated, cropped, log_prob
from source.prior import LOGSCALE_START, ConditionalPrior, PositionPrior, SimplePrior, TopPrior
from utils.arithmetic.fixed import observe
from utils.arithmetic.integers import LIMIT, STEPS, bits_per_dimension, centre, uncentre

FARTHEST = 3000
LOGSCALES = [math.log(10.0**k) for k in range(-4, 5)]


def reference(z, mean, logscale):
    """Return log P(z) of float64 arrays: log sigma(b) + log sigma(-a) + log(1 - e^(a-b)), in two branches."""
    inverse = np.exp(-logscale)
    a, b = (((z + half - 128) / 256 - mean) * inverse for half in (-0.5, 0.5))
    w = inverse / 256
    with np.errstate(divide="ignore"):
        bin_width = np.where(w < math.log(2), np.log(-np.expm1(-w)), np.log1p(-np.exp(-w)))
    return -np.logaddexp(0, -b) - np.logaddexp(0, a) + bin_width


def exact(z, mean, logscale):
    """Return log P(z) of floats in 80 decimal digits, straight from the definition."""
    with localcontext(prec=80):
        scale = Decimal(logscale).exp()
        lower, upper = (((Decimal(2 * z + k) / 2 - 128) / 256 - Decimal(mean)) / scale for k in (-1, 1))
        if upper > 0 and lower > 0:  # the side on which sigmoids are small, and keep their digits
            lower, upper = -upper, -lower
        return float((1 / (1 + (-upper).exp()) - 1 / (1 + (-lower).exp())).ln())


def grid():
    """Return z, mean and logscale in float32: up to 3000 steps apart, near bins' edges too, at all scales."""
    steps = torch.cat([torch.linspace(0, 1, 9), torch.tensor([1.5, 2, 7.3, 40, 333.3, FARTHEST])])
    steps = torch.cat([-steps, steps])
    logscale = torch.linspace(LOGSCALES[0], LOGSCALES[-1], 401)
    z = torch.tensor([-2900.0, 0, 128, 255, 3100])
    z, steps, logscale = torch.meshgrid(z, steps, logscale, indexing="ij")
    return z, centre(z) - steps / STEPS, logscale


def test_log_prob_is_within_1e_5_of_float64():
    z, mean, logscale = grid()
    wanted = reference(*(t.double().numpy() for t in (z, mean, logscale)))
    given = log_prob(z, mean, logscale)
    assert given.isfinite().all() and (given <= 0).all()
    np.testing.assert_allclose(given.double().numpy(), wanted, rtol=1e-5, atol=0)


@settings(max_examples=100)
@given(
    z=st.integers(-FARTHEST, FARTHEST),
    steps=st.floats(-FARTHEST, FARTHEST) | st.floats(-1, 1),
    logscale=st.floats(LOGSCALES[0], LOGSCALES[-1]),
)
def test_log_prob_is_within_1e_5_of_decimal_arithmetic(z, steps, logscale):
    mean, logscale = torch.tensor([(z - 128 - steps) / 256, logscale])
    wanted = exact(z, mean.item(), logscale.item())
    for real, error in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        given = log_prob(torch.tensor(z), mean.to(real), logscale.to(real))
        assert given.item() == pytest.approx(wanted, rel=error)


@pytest.mark.parametrize("logscale", [-9.2, -6.0, -3.0, 0.0])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_probabilities_of_all_integers_sum_to_one(logscale, dtype, error):
    z = torch.arange(-20_000, 20_000).to(dtype)
    mean, scale = torch.tensor([0.123, logscale], dtype=dtype)
    assert log_prob(z, mean, scale).exp().double().sum().item() == pytest.approx(1, abs=error)
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=dtype).view(3, 1)
    means = torch.tensor([-3.0, 0.5001, 2.0], dtype=dtype).view(3, 1)
    mixture = Mixture(logits, means, torch.tensor([logscale, -5.0, -1.0], dtype=dtype).view(3, 1))
    assert mixture.log_prob(z).exp().double().sum().item() == pytest.approx(1, abs=error)


@pytest.mark.parametrize("logscale", LOGSCALES)
def test_mixture_far_from_its_means(logscale):
    z = torch.tensor([-2900.0, 100.0, 3100.0])
    logits, means, logscales = torch.tensor([[0.5, -1.0], [0.1, -0.2], [logscale, logscale - 0.5]])[..., None]
    given = Mixture(logits, means, logscales).log_prob(z)
    weights = torch.log_softmax(logits.double(), 0).numpy()
    components = reference(*(t.double().numpy() for t in (z, means, logscales)))
    np.testing.assert_allclose(given.double(), np.logaddexp(*(weights + components)), rtol=1e-5)


def test_gradients_are_finite_at_the_extremes():
    z, mean, logscale = (t.flatten() for t in grid())
    beyond = torch.tensor([-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
    z = torch.cat([z, torch.full((6,), 300.0)])
    mean = torch.cat([mean, torch.linspace(-11, 11, 6)]).requires_grad_()
    logscale = torch.cat([logscale, beyond]).requires_grad_()
    for value in (
        log_prob(z, mean, logscale),
        Mixture(*torch.stack([mean, mean, logscale])[:, None]).log_prob(z),
    ):
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), (mean, logscale)):
            assert gradient.isfinite().all()


def test_gradients_are_those_of_the_function():
    z = torch.tensor([100.0, 128, 131, 900], dtype=torch.float64)[:, None].requires_grad_()
    mean = torch.full((4, 5), 0.01, dtype=torch.float64, requires_grad=True)
    logscale = torch.tensor([-8.0, -5, -1, 2, 9], dtype=torch.float64).expand(4, 5).clone().requires_grad_()
    assert torch.autograd.gradcheck(log_prob, (z, mean, logscale))
    fields = [torch.stack([f, 0.7 * f + 0.1]).detach().requires_grad_() for f in (mean, mean, logscale)]
    fields[0] = torch.tensor([0.5, -1], dtype=torch.float64)[:, None, None].requires_grad_()
    assert torch.autograd.gradcheck(lambda z, *of_mixture: Mixture(*of_mixture).log_prob(z), (z, *fields))


@pytest.mark.parametrize("components", [1, 3])
def test_likelihoods_do_not_depend_on_the_pieces_in_which_they_are_computed(components, monkeypatch):
    fields = [noise(components, 2, 3, 4, 5).sub(128).div(100).requires_grad_() for _ in range(3)]
    z = noise(2, 3, 4, 5)

    def found():
        value = Mixture(*fields).log_prob(z)
        return [value, *torch.autograd.grad(value.sum(), fields[components == 1 :])]

    whole = found()
    monkeypatch.setattr("source.distribution.PIECE", 7)
    for a, b in zip(whole, found()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_checkerboard_costs_what_its_logistics_say():
    # 31 wrong pixels of 32 under narrow scales: the original stopped at -log2 1e-25, some 83 bits for each
    x = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 255.0).expand(1, 3, 32, 32)
    model = build({"simplePrior": True})
    for logscale, least in ((-3.0, 3), (-7.0, 80)):
        with torch.no_grad():
            for prior in (model.top, model.detail):
                prior.logscale.fill_(logscale)
            nats = -model.log_prob(x).item()
        # untrained: ur and dl of the finest level are 255, all else is 0; means 0, but five in the top
        values = np.array([0.0, 255.0])
        black, white = -reference(values, 0.0, logscale)
        top = -np.logaddexp.reduce(reference(0.0, (np.arange(5) - 2) / 8, logscale) - math.log(5))
        wanted = 3 * (512 * white + (512 - 4) * black + 4 * top)
        assert nats == pytest.approx(wanted, rel=1e-5)
        bits = bits_per_dimension(nats, 3 * 32 * 32)
        assert least < bits < 1000
    naive = naive_log_pmf(torch.tensor(255.0), torch.tensor(0.0), torch.tensor(-7.0)).item()
    assert -white < naive == pytest.approx(math.log(1e-25), rel=1e-3)


@pytest.mark.parametrize("logscale", [-6.5, -4.0, -1.0])
def test_samples_follow_the_probabilities(logscale):
    count = 200_000
    generator = torch.Generator().manual_seed(0)
    logits, means, logscales = torch.tensor([[0.0, -0.5], [-0.02, 0.03], [logscale, logscale - 1]])[..., None]
    for distribution in (Mixture.logistic(means[0], logscales[0]), Mixture(logits, means, logscales)):
        many = type(distribution)(*(field.expand(*field.shape[:-1], count) for field in distribution))
        x = many.sample(generator=generator)
        assert x.shape == (count,) and torch.equal(x, x.round())
        z, seen = x.unique(return_counts=True)
        frequency, wanted = seen.double() / count, distribution.log_prob(z).double().exp()
        likely = wanted > 1e-4
        assert wanted[likely].sum() > 0.97
        error = (wanted * (1 - wanted) / count).sqrt()
        assert ((frequency - wanted).abs() < 5 * error)[likely].all()


def test_base_scale_and_mode():
    mean, logscale = torch.full((100_000,), 0.25), torch.full((100_000,), -4.0)
    distribution = Mixture.logistic(mean, logscale)
    assert torch.equal(distribution.mode(), torch.full_like(mean, 192))
    assert torch.equal(distribution.sample(-40.0), distribution.mode())
    for base_scale in (-1.0, 0.0, 2.0):
        x = distribution.sample(base_scale, torch.Generator().manual_seed(1))
        wanted = 256 * math.exp(-4 + base_scale) * math.pi / math.sqrt(3)
        assert x.std().item() == pytest.approx(wanted, rel=0.03)
        assert x.mean().item() == pytest.approx(192, abs=0.02 * wanted)
    mixture = Mixture(torch.tensor([0.0, math.log(3)]), torch.tensor([-0.1, 0.1]), torch.zeros(2))
    assert mixture.mode().item() == round(128 + 256 * 0.05)


def test_samples_from_absurd_scales_are_numbers():
    for logscale in (-1e4, 1e4):
        x = Mixture.logistic(torch.linspace(-1e30, 1e30, 9), torch.full((9,), logscale)).sample(50.0)
        assert (x.abs() <= LIMIT).all()


def test_concatenated_and_cropped_are_the_parts():
    fields = torch.randn(2, 2, 3, 4, 5)
    whole = Mixture.logistic(*fields)
    part = cropped(whole, (3, 5))
    z, z_part = noise(2, 3, 4, 5), noise(2, 3, 3, 5)
    torch.testing.assert_close(part.log_prob(z_part), log_prob(z_part, *fields[..., :3, :]))
    both = concatenated([whole, part]).log_prob(
        torch.cat([z.movedim(1, -1).flatten(1), z_part.movedim(1, -1).flatten(1)], 1)
    )
    total = whole.log_prob(z).flatten(1).sum(1) + part.log_prob(z_part).flatten(1).sum(1)
    torch.testing.assert_close(both.sum(1), total)


def given_of(prior, coarse, level=0):
    """Return the distributions of the three bands."""
    given = prior(coarse, level)
    return [given(noise(k, 1)) for k in range(3)]


def test_conditional_prior_starts_at_the_middle_and_depends_on_the_coarse_band():
    coarse = noise(2, 3, 4, 5)
    for band in given_of(ConditionalPrior(4, 1), coarse):
        assert torch.equal(band.mean[0], torch.zeros_like(coarse))
        assert torch.equal(band.logscale[0], torch.full_like(coarse, LOGSCALE_START))
    prior = make_wild(ConditionalPrior(4, 1), 0.3)
    expected = prior.mean(centre(coarse)), prior.logscale(centre(coarse))
    for level in (0, 3):
        bands = given_of(prior, coarse, level)
        for field, whole in zip(list(zip(*bands))[1:], expected):
            assert torch.equal(torch.cat(field, 2)[0], whole)
    assert not torch.equal(prior(255 - coarse, 0)(()).mean, bands[0].mean)


def test_simple_prior_is_the_same_at_all_levels_and_positions():
    prior = make_wild(SimplePrior(), 1.0)
    assert sum(p.numel() for p in prior.parameters()) == 18
    for level, size in ((0, (8, 6)), (4, (1, 2))):
        for k, band in enumerate(given_of(prior, noise(2, 3, *size), level)):
            for field, parameter in zip(band[1:], (prior.mean, prior.logscale)):
                assert torch.equal(field[0], parameter[3 * k : 3 * k + 3].expand(2, 3, *size))


def test_position_prior_is_separate_for_levels_and_positions_and_refuses_other_sizes():
    prior = make_wild(PositionPrior((12, 10), 3), 1.0)
    assert [tuple(p.shape) for p in prior.mean] == [(9, 6, 5), (9, 3, 3), (9, 2, 2)]
    for level, size in enumerate(((6, 5), (3, 3), (2, 2))):
        for k, band in enumerate(given_of(prior, noise(2, 3, *size), level)):
            assert torch.equal(band.mean[0], prior.mean[level][3 * k : 3 * k + 3].expand(2, -1, -1, -1))
            assert torch.equal(
                band.logscale[0], prior.logscale[level][3 * k : 3 * k + 3].expand(2, -1, -1, -1)
            )
    for level, size in ((0, (5, 6)), (1, (6, 5)), (3, (1, 1))):
        with pytest.raises(ValueError, match="one size only, of which a coarse band has 6x5"):
            prior(noise(1, 3, *size), level)


def test_position_prior_in_a_model_refuses_images_of_another_size():
    model = build({"simplePrior": True, "diffDetail": True, "size": 8})
    assert model.log_prob(noise(1, 3, 8, 8)).isfinite().all()
    for size in ((16, 16), (8, 16), (6, 6)):
        with pytest.raises(ValueError, match="one size only, of which a coarse band has 4x4"):
            model.log_prob(noise(1, 3, *size))


@pytest.mark.parametrize("size", [2, 3, 4, 13])
def test_a_frozen_position_prior_refuses_other_sizes_as_the_float_one_does(size):
    model = make_wild(build({"simplePrior": True, "diffDetail": True, "size": size}), 0.2)
    for m in (model, model.freeze(noise(2, 3, size, size)), model.freeze()):
        assert m.log_prob(noise(1, 3, size, size)).isfinite().all()
        for other in ((size + 2, size + 2), (2 * size, 2 * size), (size, size + 2)):
            with pytest.raises(ValueError, match="a model with -diffDetail knows one size only, (of )?which"):
                m.log_prob(noise(1, 3, *other))


# Frozen: what 2^-6 steps, 2^(1/32) of a scale and 2^-16 of a weight can differ.


def near(fixed, exact):
    """Whether a FixedMixture is a Mixture, rounded."""
    real = fixed.real()
    log2 = math.log(2)
    assert (fixed.mean.double() / 64 - uncentre(exact.mean.double())).abs().max() <= 1 / 128 + 1e-4
    assert (real.logscale - exact.logscale).abs().max() <= log2 / 64 + 1e-6
    weights = [torch.softmax(m.logits.double().expand(m.mean.shape), 0) for m in (real, exact)]
    assert (weights[0] - weights[1]).abs().max() < 1e-4
    assert all(field.dtype == torch.int32 for field in fixed)
    return True


@pytest.mark.parametrize("clamp", [-1.0, 0.2])
def test_a_frozen_top_is_the_float_one_rounded(clamp):
    prior = make_wild(TopPrior(4, clamp), 0.5)
    for size in ((1, 1), (2, 2), (3, 5)):
        assert near(prior.freeze()(2, size), prior(2, size))


@pytest.mark.parametrize("make", [SimplePrior, lambda: PositionPrior((12, 10), 3)])
def test_frozen_constants_are_those_of_the_float_prior_rounded(make):
    prior = make_wild(make(), 0.5)
    fixed = prior.freeze({})
    for level, size in enumerate(((6, 5), (3, 3), (2, 2))):
        coarse = noise(2, 3, *size)
        for ours, exact in zip(given_of(fixed, coarse, level), given_of(prior, coarse, level)):
            assert ours.mean.shape == exact.mean.shape and near(ours, exact)


def test_a_frozen_conditional_prior_is_the_float_one_rounded():
    prior, coarse = make_wild(ConditionalPrior(8, 1), 0.2), noise(2, 3, 9, 14)
    with observe(prior) as peaks, torch.no_grad():
        wanted = given_of(prior, coarse)
    fixed = prior.freeze(peaks)
    for ours, exact in zip(given_of(fixed, coarse), wanted):
        real = ours.real()
        assert (uncentre(real.mean) - uncentre(exact.mean.double())).abs().max() < 0.3
        assert (real.logscale - exact.logscale).abs().max() < 0.02
    for k, net in enumerate((fixed.mean, fixed.scale)):
        whole = torch.cat([band[1 + k] for band in given_of(fixed, coarse)], 2)[0]
        assert torch.equal(whole.long(), oracle.conv_net(net, (coarse - 128).int()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [TopPrior, SimplePrior, PositionPrior, ConditionalPrior])
@torch.no_grad()
def test_priors_that_are_not_finite_are_refused(make, value):
    prior = make(*{TopPrior: (3,), PositionPrior: ((6, 6), 2), ConditionalPrior: (4, 1)}.get(make, ()))
    for p in prior.parameters():
        before = p.clone()
        p.view(-1)[-1] = value
        with pytest.raises(ValueError, match="not finite"):
            prior.freeze() if make is TopPrior else prior.freeze({})
        p.copy_(before)


@torch.no_grad()
def test_absurd_constants_are_clamped_to_32_bits():
    for value in (1e30, -1e30):
        for prior in (SimplePrior(), TopPrior(2)):
            for p in (prior.mean, prior.logscale):
                p.fill_(value)
            fixed = prior.freeze() if isinstance(prior, TopPrior) else prior.freeze({})
            fields = fixed(1, (2, 2)) if isinstance(prior, TopPrior) else fixed(noise(1, 3, 2, 2), 0)([])
            for field in (fields.mean, fields.scale):
                assert (field.sign() == math.copysign(1, value)).all() and (field.long().abs() > 2**30).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 2), (3, 5)])
def test_top_prior_repeats_its_block(size):
    prior = make_wild(TopPrior(4), 1.0)
    mixture = prior(2, size)
    for field, parameter in zip(mixture, (prior.logits, prior.mean, prior.logscale)):
        assert field.shape == (4, 2, 3, *size)
        for row in range(size[0]):
            for column in range(size[1]):
                wanted = parameter[:, None, :, row % 2, column % 2].expand(-1, 2, -1)
                assert torch.equal(field[..., row, column], wanted)


def test_top_prior_starts_spread_by_an_eighth_and_clamps():
    means = TopPrior(5)(1, (1, 1)).mean[:, 0, 0, 0, 0]
    assert means.tolist() == [-0.25, -0.125, 0, 0.125, 0.25]
    clamped = TopPrior(5, clamp=0.2)
    assert clamped(1, (1, 1)).mean[:, 0, 0, 0, 0].tolist() == pytest.approx([-0.2, -0.125, 0, 0.125, 0.2])
    make_wild(clamped, 10.0)
    assert clamped(3, (2, 2)).mean.abs().max().item() == pytest.approx(0.2)


def test_a_mixture_of_one_is_a_logistic():
    prior, z = make_wild(TopPrior(1), 1.0), noise(2, 3, 2, 2)
    torch.testing.assert_close(prior(2, (2, 2)).log_prob(z), log_prob(z, prior.mean, prior.logscale))


def test_one_component_costs_no_more_than_its_logistic():
    mean, logscale, z = (noise(2, 3, 4, 5, seed=k) / 256 for k in range(3))
    mixture = Mixture.logistic(mean, -4 * logscale)
    assert torch.equal(mixture.log_prob(256 * z), log_prob(256 * z, mean, -4 * logscale))
    assert torch.equal(mixture.mode(), torch.round(256 * mean + 128))
    state = torch.Generator().manual_seed(5)
    x, after = mixture.sample(generator=state), state.get_state()
    torch.rand(mean.shape, generator=state.manual_seed(5), dtype=torch.float64)
    assert torch.equal(after, state.get_state()) and x.shape == z.shape


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_the_mode_of_one_fixed_component_is_its_rounded_mean(dtype):
    """Every mean that the networks' range of +-2^16 steps allows, and the ends of int32."""
    mean = torch.cat([torch.arange(-(2**22), 2**22 + 1), torch.tensor([-(2**31), 2**31 - 1, 2**31 - 32])])
    wanted = torch.floor(mean.double() / 64 + 0.5)
    distribution = FixedMixture.logistic(mean.to(dtype), torch.zeros_like(mean))
    assert distribution.mode().dtype == torch.float64 and torch.equal(distribution.mode(), wanted)


@pytest.mark.parametrize("components", [1, 2, 3, 5])
def test_equal_weights_give_the_rounded_mean_of_the_means(components):
    """In integers: on every remainder, above and below 0."""
    first = torch.arange(-300 * components, 300 * components)
    means = torch.stack([first, *(torch.full_like(first, 7**k) for k in range(1, components))])
    for weight in (1, 65536):
        mode = FixedMixture(torch.full_like(means, weight), means, means).mode()
        unit = 64 * components
        assert mode.tolist() == [(2 * total + unit) // (2 * unit) for total in means.sum(0).tolist()]


def test_logscales_are_limited_alike_in_densities_and_samples():
    low, high = LOGSCALE_RANGE
    for beyond, limit in ((low - 50, low), (high + 50, high)):
        fields = [Mixture.logistic(torch.tensor(0.1), torch.tensor(float(s))) for s in (beyond, limit)]
        a, b = (field.log_prob(torch.tensor(300.0)) for field in fields)
        assert torch.equal(a, b)
        a, b = (field.sample(0.0, torch.Generator().manual_seed(3)) for field in fields)
        assert torch.equal(a, b)
