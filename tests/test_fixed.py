"""Layers in integers: equal to plain integers however computed, near the float layers that they freeze."""

import math

import integers
import numba
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from conftest import make_wild
from hypothesis import given, settings
from hypothesis import strategies as st
from integers import WORKING, computed, drawn
from numba.core import event

from source.networks import Conv, ConvNet
from utils.arithmetic import kernels, passes, products
from utils.arithmetic.fixed import (
    EXACT,
    PLACES,
    WIDE_EXACT,
    FixedConv,
    FixedShares,
    FixedWide,
    Seen,
    observe,
    seen_of,
    units_for,
)
from utils.arithmetic.integers import LIMIT, STEPS
from utils.arithmetic.passes import INPUT_MAX, INT16_MAX, SAMPLE_MAX, WIDE_MAX

CHANNELS = 1, 3, 5, 6, 8, 16, 33
KERNELS = (1, 1), (3, 3), (1, 3)
ALL = dict(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.sampled_from(CHANNELS),
    out=st.sampled_from(CHANNELS),
    kernel=st.sampled_from(KERNELS),
    ends=st.booleans(),
    seed=st.integers(0, 10**6),
    compiled=st.booleans(),
    cached=st.sampled_from([1, 3000, products.CACHED]),
)


def same(y, wanted, dtype):
    """Whether a map is of a type, contiguous, and holds the integers that are wanted."""
    return y.dtype == dtype and y.is_contiguous() and torch.equal(y.long(), wanted)


# -- equal to the oracle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WORKING[False])
@settings(max_examples=60)
@given(**ALL, added=st.booleans())
def test_convolutions_equal_plain_integers(
    way, batch, size, channels, out, kernel, ends, seed, compiled, cached, added
):
    layer = integers.narrow((out, channels, *kernel), seed, ends)
    x = drawn((batch, *size, channels), -INT16_MAX, INT16_MAX, seed + 8, ends)
    onto = drawn((batch, *size, out), -INT16_MAX, INT16_MAX, seed + 9, ends) if added else None
    with computed(way, compiled, cached):
        y = layer(x, onto)
    assert same(y, oracle.conv(layer, x, onto if added else 0), torch.int16)


@settings(max_examples=30)
@given(**ALL)
def test_convolutions_of_what_has_a_sign_equal_plain_integers(
    batch, size, channels, out, kernel, ends, seed, compiled, cached
):
    layer = integers.narrow((out, channels, *kernel), seed, ends, -2047, 2047)
    x = drawn((batch, *size, channels), -INT16_MAX, INT16_MAX, seed + 8, ends)
    with computed(None, compiled, cached):
        y = layer(x)
    assert same(y, oracle.conv(layer, x), torch.int16)


@pytest.mark.parametrize("way", WORKING[True])
@pytest.mark.parametrize(
    ("low", "high"), [(0, INT16_MAX), (-SAMPLE_MAX, SAMPLE_MAX - 1), (-WIDE_MAX, WIDE_MAX)]
)
@settings(max_examples=40)
@given(**ALL, limit=st.sampled_from([INT16_MAX, WIDE_MAX]))
def test_wide_convolutions_equal_plain_integers(
    way, low, high, batch, size, channels, out, kernel, ends, seed, compiled, cached, limit
):
    layer = integers.wide((out, channels, *kernel), seed, ends, limit, low, high)
    most, dtype = (2 * WIDE_MAX, torch.int32) if high == WIDE_MAX else (INT16_MAX, torch.int16)
    x = drawn((batch, *size, channels), -most, most, seed + 8, ends, dtype)
    with computed(way, compiled, cached):
        y = layer(x)
    assert same(y, oracle.wide(layer, x), torch.int16 if limit == INT16_MAX else torch.int32)


@pytest.mark.parametrize("way", WORKING[True])
@settings(max_examples=40)
@given(**ALL)
def test_shares_equal_plain_integers(way, batch, size, channels, out, kernel, ends, seed, compiled, cached):
    layer = integers.shares((out, channels, *kernel), seed, ends)
    x = drawn((batch, *size, channels), -INT16_MAX, INT16_MAX, seed + 8, ends)
    with computed(way, compiled, cached):
        y = layer(x)
    assert same(y, oracle.shares(layer, x), torch.int32)


@pytest.mark.parametrize("way", [None, *WORKING[True]])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 7), (70, 65)])
def test_networks_equal_plain_integers(way, kernel, size):
    net = wild_net(kernel, 0.3)
    fixed, v = net.freeze({}, STEPS, 0.25, int(LIMIT)), drawn((2, 4, *size), -128, 383, dtype=torch.int32)
    v[0] *= 40
    for compiled in (True, False):
        with computed(way, compiled):
            y = fixed(v)
        assert y.dtype == torch.int32 and torch.equal(y.long(), oracle.conv_net(fixed, v))
    assert y.abs().amax() > 100


@pytest.mark.parametrize("compiled", [True, False])
def test_layers_of_many_pixels_and_channels_equal_plain_integers(compiled):
    """By the ways that are fastest here, of maps that are cut into pieces."""
    for channels in (64, 576):
        layer = integers.narrow((40, channels, 3, 3), 1)
        x = drawn((1, 60, 61, channels), -INT16_MAX, INT16_MAX)
        assert len(products.pieces(1, 60, 61, 4 * 9 * channels)) > 1
        with computed(None, compiled):
            assert same(layer(x), oracle.conv(layer, x), torch.int16)
    # sums of more products of bytes than float32 holds must not be taken in bytes
    layer, x = integers.wide((9, 600, 1, 1), 1, True), drawn((1, 50, 60, 600), 0, INT16_MAX, 1, True)
    with computed(None, compiled):
        assert same(layer(x), oracle.wide(layer, x), torch.int16)


@pytest.mark.parametrize("compiled", [True, False])
def test_companding_equals_plain_integers(compiled):
    """Of every difference there is, and of the largest ones that the passes admit."""
    u = torch.cat(
        [torch.arange(-(2**16), 2**16), torch.arange(-(2**21), 2**21, 61), 2**23 - 1 - torch.arange(9)]
    )
    u = torch.cat([u, 2 ** torch.arange(23) - 256, 2 ** torch.arange(23) - 257]).int()
    with computed(None, compiled):
        y = passes.compand(u)
    assert same(y, oracle.compand(u), torch.int16)
    exact = 64 * u.sign() * torch.log2(1 + u.abs().double() / 256)
    assert (y - exact).abs().max() < 64 * 0.0861 + 0.5


@pytest.mark.parametrize("compiled", [True, False])
def test_borders_of_narrow_maps_are_those_of_the_oracle(compiled):
    x = drawn((2, 1, 4, 3), -INT16_MAX, INT16_MAX)
    for border in ((0, 0), (1, 1), (0, 1), (3, 3)):
        assert torch.equal(passes.bordered(x, border).long(), oracle.bordered(x, *border))
        none = torch.zeros(3, dtype=torch.int32)
        with computed(None, compiled):
            table = [none.numpy() if compiled else none] * 2
            y = passes.quantise(x, *table, -100, 100, border, torch.int16, 7)
        assert torch.equal(y.long(), oracle.bordered(x, *border).clamp(-100, 100) - 7)


@pytest.mark.parametrize("limit", [1, 2000, 10**9])
def test_pieces_cover_a_map_once(limit, monkeypatch):
    monkeypatch.setattr(products, "CACHED", limit)
    for batch, height, width, size in ((1, 1, 1, 4), (2, 7, 3, 36), (3, 40, 5, 9)):
        seen = torch.zeros(batch, height)
        for images, rows in products.pieces(batch, height, width, size):
            seen[images, rows] += 1
            assert width * size * (rows.stop - rows.start) <= max(limit, width * size)
        assert (seen == 1).all()


def test_what_passes_take_of_a_layer_is_made_anew_when_it_changes():
    layer, other = (integers.narrow((5, 6, 3, 3), seed) for seed in (1, 2))
    x = drawn((1, 4, 4, 6), -INT16_MAX, INT16_MAX)
    before = layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), other(x)) and not torch.equal(layer(x), before)


# -- near the float layers -----------------------------------------------------------------------------------


def relative(given, wanted):
    """The root mean square of errors, over that of what is wanted."""
    return ((given - wanted).square().mean() / wanted.square().mean()).sqrt().item()


def image(x, bits):
    """Integers (B, H, W, C) that count 2^-bits -> (B, C, H, W) float64."""
    return x.permute(0, 3, 1, 2).double() / 2**bits


def seen_by(module, x):
    with observe(module) as peaks, torch.no_grad():
        module(x)
    return peaks


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.1])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rectify", [True, False])
@torch.no_grad()
def test_frozen_convolutions_are_near(std, size, rectify):
    """By the 8 bits of their weights: a shift by one bit more would be an error of a half."""
    module = make_wild(Conv(24, 5, size, rectify=rectify), std).double()
    # channels of other sizes, as networks have them
    x = drawn((2, 20, 20, 24), -9000, 9000) // torch.tensor([1, 2, 5, 40]).repeat(6).to(torch.int16)
    wanted, tried = module(image(x, 6)), 0
    for units in (4, 6, 10):
        if wanted.abs().max() * 2**units < INT16_MAX:
            fixed = module.freeze(seen_by(module, image(x, 6)), units)
            rounding = 0.3 / 2**units / wanted.square().mean().sqrt().item()
            assert relative(image(fixed(x), units), wanted) < 0.025 + rounding
            assert fixed.shift.max() > fixed.shift.min()
            # channels' weights use their 8 bits
            assert (fixed.weight.abs().amax((1, 2, 3)) >= 63).all()
            tried += 1
    assert tried


@torch.no_grad()
def test_biases_take_back_what_rounded_weights_do_to_means():
    """What ReLU lets through has a mean, by which errors of many weights add up."""
    module = make_wild(Conv(64, 32, 3, rectify=True), 0.1)
    x = drawn((2, 20, 20, 64), 0, 3000)
    seen = seen_by(module, image(x, 6).float())
    without = {module: seen[module]._replace(total=torch.zeros(64))}
    near, far = (
        (image(module.freeze(peaks)(x), 6) - module(image(x, 6).float())).mean((0, 2, 3)).abs()
        for peaks in (seen, without)
    )
    assert near.max() < 2**-6 + 0.1 * far.mean() < far.max() / 4


@pytest.mark.parametrize("of_samples", [True, False])
@torch.no_grad()
def test_frozen_wide_convolutions_are_nearer(of_samples):
    module = make_wild(Conv(6, 5, 3, precise=True), 0.2).double()
    x = drawn((2, 9, 9, 6), -1000, 1000)
    fixed, wanted = module.freeze_wide(of_samples), module(image(x, 2 if of_samples else 8))
    y = fixed(x if of_samples else x.int())
    assert y.dtype == torch.int32 and relative(image(y, 8), wanted) < 1e-4 + 0.003 / wanted.abs().mean()
    assert (image(y, 8) - wanted).abs().max() < 2**-9 + 1e-4 * wanted.abs().max()


def wild_net(kernel=(3, 3), std=0.2, hidden=2):
    return make_wild(ConvNet(4, 3, 12, hidden, kernel), std)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
@pytest.mark.parametrize("hidden", [0, 1, 3])
@pytest.mark.parametrize("std", [0.02, 0.1, 0.3])
@torch.no_grad()
def test_a_frozen_network_is_the_float_one_rounded(kernel, hidden, std):
    net = wild_net(kernel, std, hidden).double()
    v = drawn((2, 4, 33, 20), -128, 127, dtype=torch.int32)
    fixed = net.freeze(seen_by(net, v.double() / STEPS), STEPS, 0.25)
    wanted = STEPS * net(v.double() / STEPS) + 0.25
    assert (fixed(v) - wanted).abs().max() < 0.5 + 1e-3 * (1 + wanted.abs().max())


@torch.no_grad()
def test_a_network_keeps_what_images_unlike_those_observed_make_of_it():
    """Peaks eight times as high as any observed are not cut off."""
    net = wild_net(hidden=1).double()
    for p in (net.first.bias, net.hidden[0].bias):
        p.zero_()
    v = drawn((2, 4, 8, 8), -16, 16, dtype=torch.int32)
    fixed, wanted = net.freeze(seen_by(net, v.double() / STEPS), STEPS), STEPS * net(8 * v.double() / STEPS)
    assert (fixed(8 * v) - wanted).abs().max() < 0.5 + 2e-3 * wanted.abs().max()


def test_extremes_stay_within_the_limits():
    net = wild_net(std=0.3)
    with torch.no_grad():
        net.last.weight *= 1000
    for limit in (100, int(LIMIT)):
        fixed = net.freeze({}, STEPS, 0.0, limit)
        v = drawn((1, 4, 6, 6), -(10**6), 10**6, ends=True, dtype=torch.int32)
        assert fixed(v).abs().max() == limit
        assert torch.equal(fixed(v), fixed(v.clamp(-INPUT_MAX, INPUT_MAX)))


@torch.no_grad()
def test_observed_peaks_are_the_largest_values_read():
    layer, other = Conv(3, 2, 3, rectify=True), Conv(2, 2, 1)
    model = torch.nn.Sequential(layer, other)
    x = torch.tensor([1.0, -5, 0.5])[:, None, None].expand(2, 3, 4, 4)
    with observe(model) as peaks:
        model(x)
        model(x / 2 + torch.tensor([0.0, 0, 3])[:, None, None])
    seen = seen_of(layer, peaks)
    assert seen.peak.tolist() == [1, 1, 3.25]  # 1 where nothing was read
    middle = torch.cat([layer(x), layer(x / 2 + torch.tensor([0.0, 0, 3])[:, None, None])])
    assert torch.equal(peaks[other].peak, middle.abs().amax((0, 2, 3)).double())
    assert (seen.total / seen.count).tolist() == [0.75, 0, 1.875]
    torch.testing.assert_close(peaks[other].total / peaks[other].count, middle.mean((0, 2, 3)).double())
    model(100 * x)
    assert peaks[layer].peak[0] == 1 and not layer._forward_pre_hooks
    for nothing in ({}, None):
        guess = seen_of(layer, nothing)
        assert guess.peak.tolist() == [16, 16, 16] and not guess.total.any() and guess.moments is None


@pytest.mark.parametrize("kernel", [1, 3])
@torch.no_grad()
def test_observed_moments_are_of_what_kernels_read(kernel):
    """Borders replicated, channel by channel, tap by tap; of some places of a large map, in all columns."""
    layer = Conv(2, 3, kernel, rectify=True)
    x = torch.randn(2, 2, 9, 7)
    read = (
        F.unfold(F.pad(x.relu(), [kernel // 2] * 4, mode="replicate"), kernel).transpose(1, 2).flatten(0, 1)
    )
    read = torch.cat([read, torch.ones(len(read), 1)], 1).double()
    torch.testing.assert_close(seen_by(layer, x)[layer].moments, read.T @ read, rtol=1e-5, atol=1e-4)
    wide = torch.arange(256.0).expand(1, 2, 256, 256)
    moments = seen_by(layer, wide)[layer].moments
    assert 0.9 * PLACES < moments[-1, -1] <= PLACES
    assert moments[-1, kernel**2 // 2] / moments[-1, -1] == pytest.approx(127.5, abs=1)


@torch.no_grad()
def test_rounding_weights_in_turn_makes_up_for_errors():
    """Where channels have much in common, the error is a fraction of what rounding each by itself leaves."""
    module = make_wild(Conv(64, 16, 3, rectify=True), 0.1).double()
    common = torch.rand(4, 3, 40, 40)
    x = (
        800 * torch.einsum("oc,bchw->bohw", torch.rand(64, 3), common) + 40 * torch.rand(4, 64, 40, 40)
    ).long()
    x = x.permute(0, 2, 3, 1).contiguous().to(torch.int16)
    seen = seen_by(module, image(x, 6))
    alone = {module: seen[module]._replace(moments=None)}
    wanted = module(image(x, 6))
    near, far = (relative(image(module.freeze(peaks, 8)(x), 8), wanted) for peaks in (seen, alone))
    assert near < 0.65 * far


def test_units_are_the_largest_for_which_peaks_fit():
    peak = torch.tensor([255.0, 256, 1, 0.9, 3e-5, 510], dtype=torch.float64)
    units = units_for(peak, 255)
    assert units[:3].tolist() == [0, -1, 7]
    assert (peak * 2.0**units <= 255).all() and (peak * 2.0 ** (units + 1) > 255).all()


def frozen(module, peaks=None):
    if isinstance(module, ConvNet):
        return module.freeze(peaks, STEPS)
    return module.freeze_wide() if getattr(module, "precise", False) else module.freeze(peaks)


MODULES = {
    "convolution": lambda: make_wild(Conv(6, 5, 3, rectify=True), 0.2),
    "with a sign": lambda: make_wild(Conv(6, 5, 1), 0.2),
    "wide": lambda: make_wild(Conv(6, 5, 3, precise=True), 0.2),
    "network": lambda: wild_net(),
}


@pytest.mark.parametrize("name", MODULES)
def test_freezing_leaves_a_module_as_it_is_and_gives_integers(name):
    module = MODULES[name]()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    fixed = frozen(module)
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not list(fixed.parameters()) and list(fixed.buffers())
    assert not any(buffer.is_floating_point() for buffer in fixed.buffers())
    twin = frozen(MODULES[name]())
    for buffer in twin.buffers():
        buffer.zero_()
    twin.load_state_dict(fixed.state_dict())
    shape = (2, 4, 5, 6) if name == "network" else (2, 5, 4, 6)
    x = drawn(shape, -3000, 3000)
    assert torch.equal(twin(x), fixed(x))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "not finite"), (math.inf, "not finite"), (1e30, "too large"), (-1e30, "too large")],
)
@torch.no_grad()
def test_weights_and_biases_that_do_not_fit_are_refused(name, value, message):
    module = MODULES[name]()
    for p in module.parameters():
        before = p.clone()
        p.view(-1)[1] = value
        with pytest.raises(ValueError, match=message) as caught:
            frozen(module)
        assert "\n" not in str(caught.value)
        p.copy_(before)
    frozen(module)


@torch.no_grad()
def test_weights_and_biases_of_nothing_are_nothing():
    for name, make in MODULES.items():
        module = make()
        for p in module.parameters():
            p.zero_()
        x = drawn((2, 4, 5, 6) if name == "network" else (2, 5, 4, 6), -3000, 3000)
        assert not frozen(module)(x).any()


# -- forged integers -----------------------------------------------------------------------------------------

FORGEABLE = {
    "convolution": lambda: integers.narrow((5, 6, 3, 3)),
    "with a sign": lambda: integers.narrow((5, 6, 1, 1), low=-2047, high=2047),
    "wide": lambda: integers.wide((5, 6, 3, 3)),
    "shares": lambda: integers.shares((5, 6, 3, 3)),
}


@pytest.mark.parametrize("name", FORGEABLE)
@pytest.mark.parametrize("exponent", [-128, -7, 61, 127])
def test_forged_exponents_are_refused(name, exponent):
    layer = FORGEABLE[name]()
    layer.exponent[2] = exponent
    with pytest.raises(ValueError, match="a shift by more bits"):
        layer.check()


@pytest.mark.parametrize("name", ["convolution", "with a sign"])
@pytest.mark.parametrize("shift", [-128, -1, 16, 100])
def test_forged_shifts_are_refused(name, shift):
    layer = FORGEABLE[name]()
    layer.shift[1] = shift
    with pytest.raises(ValueError, match="a shift by more bits"):
        layer.check()


@pytest.mark.parametrize("name", FORGEABLE)
def test_biases_that_pass_the_bound_are_refused(name):
    layer = FORGEABLE[name]()
    kind = torch.iinfo(layer.bias.dtype)
    for value in (kind.max, kind.min, EXACT if kind.bits == 32 else WIDE_EXACT):
        layer.bias[1] = value
        with pytest.raises(ValueError, match="too large"):
            layer.check()


@pytest.mark.parametrize(
    ("layer", "reach", "exact"),
    [
        (FixedConv((2, 64, 3, 3)), 255, EXACT),
        (FixedConv((2, 64, 1, 1), -2047, 2047), 2047, EXACT),
        (FixedWide((2, 64, 3, 3)), 2 * (2 * SAMPLE_MAX - 1), WIDE_EXACT),
        (FixedWide((2, 64, 3, 3), -WIDE_MAX, WIDE_MAX), 4 * WIDE_MAX, WIDE_EXACT),
        (FixedShares((2, 64, 3, 3), 2**24), INT16_MAX, WIDE_EXACT),
    ],
)
def test_the_bound_is_that_of_the_largest_sum_there_is(layer, reach, exact):
    """A bias one below what the weights leave is exact, one more is refused."""
    layer.weight[1] = torch.iinfo(layer.weight.dtype).max - (128 if exact == WIDE_EXACT else 0)
    left = exact - layer.weight[1].long().sum().item() * reach
    if left <= 0:
        layer.weight[1, 20:] = 0
        left = exact - layer.weight[1].long().sum().item() * reach
    layer.bias[1] = left - 1
    layer.check()
    layer.bias[1] = -left
    with pytest.raises(ValueError, match="too large"):
        layer.check()
    layer.bias[1] = 0
    layer.weight[1] = -layer.weight[1]
    layer.check()


@pytest.mark.parametrize("name", ["wide", "shares"])
def test_weights_that_are_no_two_bytes_are_refused(name):
    layer = FORGEABLE[name]()
    layer.weight[0, 0] = 2**15 - 128
    with pytest.raises(ValueError, match="too large"):
        layer.check()


@pytest.mark.parametrize("channels", [518, 519])
@torch.no_grad()
def test_weights_become_smaller_where_sums_would_pass_the_bound(channels):
    """519 products of 127 and 255 pass 2^24."""
    module = Conv(channels, 1, 1, rectify=True)
    module.weight.fill_(126.9)
    seen = Seen(torch.full((channels,), 255.0, dtype=torch.float64), torch.zeros(channels), 1)
    layer = FixedConv.of(module.weight, module.bias, seen, units=0, out_units=0)
    assert layer.weight[0, 0].item() == (127 if channels == 518 else 63)
    x = (torch.arange(channels) < 100).to(torch.int16).view(1, 1, 1, -1)
    assert layer(x).item() == pytest.approx(12690, rel=0.01)


def test_compiling_is_told_of_our_own_functions_alone(caplog):
    def compile_ours():
        numba.njit(kernels.compand.py_func)(np.zeros(1, np.int32), np.zeros(1, np.int16))

    compile_ours()  # of which the listener of this process may tell
    caplog.clear()
    with event.install_listener("numba:compile", kernels._Told()):
        numba.njit(lambda x: x + 1)(1)
        assert not caplog.messages
        for _ in range(2):
            compile_ours()
    assert len(caplog.messages) == 1 and "once" in caplog.messages[0]
