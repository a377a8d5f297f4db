"""Haar and LeGall 5/3, number for number: worked by hand, of the standard, of PyWavelets; frozen lifting."""

import numpy as np
import oracle
import pytest
import pywt
import torch
from conftest import make_wild, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from integers import drawn, seeded

from flow.lifting import CLASSICAL, JointLevel, Lift, LiftingLevel, classical
from flow.model import build
from source.networks import ConvNet
from utils.arithmetic.fixed import observe
from utils.arithmetic.integers import STEPS
from utils.arithmetic.polyphase import depth

# Rows and what becomes of them: low-pass, high-pass.
BY_HAND = {
    "haar": [
        ([7], [7], []),
        ([1, 4], [2], [3]),
        ([5, 0, 0, 7], [2, 3], [-5, 7]),
        ([5, 0, 0, 7, 2], [2, 3, 2], [-5, 7]),
        ([255, 0, 0, 255], [127, 127], [-255, 255]),
    ],
    "legall": [
        ([7], [7], []),
        ([1, 4], [3], [3]),
        ([0, 0, 1], [0, 1], [0]),
        ([1, 4, 9, 16, 25, 36], [1, 9, 28], [-1, -1, 11]),
        ([1, 4, 9, 16, 25], [1, 9, 25], [-1, -1]),
        ([5, 0, 0, 7, 2], [4, 1, 5], [-2, 6]),
        ([255, 0, 0, 255], [192, 32], [-127, 255]),
    ],
}


def haar(x):
    """Return (low, high) of a row; one that lacks its last sample repeats it."""
    pairs = list(zip(x[::2], [*x[1::2], x[-1]]))
    high = [odd - even for even, odd in pairs]
    low = [even + d // 2 for (even, _), d in zip(pairs, high)]
    return low, high[: len(x) // 2]


def legall(x):
    """Return (low, high) of a row by the filter of ITU-T T.800, annex F, extended symmetrically."""
    if len(x) == 1:
        return list(x), []
    period = 2 * (len(x) - 1)
    y = {n: x[min(n % period, -n % period)] for n in range(-3, len(x) + 3)}
    for n in range(-1, len(x) + 1):
        if n % 2:
            y[n] -= (y[n - 1] + y[n + 1]) // 2
    for n in range(0, len(x), 2):
        y[n] += (y[n - 1] + y[n + 1] + 2) // 4
    return [y[n] for n in range(0, len(x), 2)], [y[n] for n in range(1, len(x), 2)]


REFERENCE = {"haar": haar, "legall": legall}


def along_rows(function, x):
    """Apply a function of rows to a list of rows; return its two outputs as arrays of rows."""
    low, high = zip(*(function(row) for row in x))
    return np.array(low, int), np.array(high, int)


def reference_level(function, x):
    """Return ul, ur, dl, dr of a 2-D integer array: rows first, then columns."""
    low, high = along_rows(function, x.tolist())
    (ul, dl), (ur, dr) = (
        (side.T for side in along_rows(function, half.T.tolist())) if half.size else (half[::2], half[1::2])
        for half in (low, high)
    )
    return ul, ur, dl, dr


def bands(wavelet, x, levels):
    """Return our top and details of a 2-D array, as arrays of integers."""
    top, details = classical(wavelet).double()(torch.from_numpy(x).double()[None, None], levels)
    return top[0, 0].long().numpy(), [[band[0, 0].long().numpy() for band in detail] for detail in details]


@pytest.mark.parametrize(("wavelet", "row"), [(name, row) for name, rows in BY_HAND.items() for row in rows])
def test_by_hand(wavelet, row):
    x, low, high = row
    assert REFERENCE[wavelet](x) == (low, high)
    top, [(ur, dl, dr)] = bands(wavelet, np.array([x]), 1)
    assert np.array_equal(top, [low]) and np.array_equal(ur, [high]) and not dl.size and not dr.size
    top, [(ur, dl, dr)] = bands(wavelet, np.array([x]).T, 1)
    assert np.array_equal(top.T, [low]) and np.array_equal(dl.T, [high]) and not ur.size and not dr.size


@pytest.mark.parametrize("wavelet", CLASSICAL)
@settings(max_examples=50)
@given(
    x=arrays.arrays(
        int,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.integers(-1000, 1000) | st.integers(0, 3),
    )
)
def test_every_level_is_that_of_the_reference(wavelet, x):
    top, details = bands(wavelet, x, None)
    assert len(details) == depth(*x.shape)
    for detail in details:
        x, *expected = reference_level(REFERENCE[wavelet], x)
        assert all(map(np.array_equal, detail, expected))
    assert np.array_equal(top, x)


def pywt_haar(x, axis):
    """Return PyWavelets' haar coefficients, in our normalisation: low, high."""
    low, high = pywt.dwt(x, "haar", "symmetric", axis)
    high = np.delete(high, x.shape[axis] // 2, axis) if x.shape[axis] % 2 else high
    return low / np.sqrt(2), -high * np.sqrt(2)


def pywt_legall(x, axis):
    """Return PyWavelets' bior2.2 coefficients; its arrays are longer, by what the filters overlap."""
    low, high = pywt.dwt(x, "bior2.2", "reflect", axis)
    size = x.shape[axis]
    low = np.take(low, range(1, 1 + (size + 1) // 2), axis)
    high = np.take(high, range(1, 1 + size // 2), axis)
    return low / np.sqrt(2), -high * np.sqrt(2)


# By a pass along one axis, an integer loses so many factors of 2 where nothing is rounded.
PYWAVELETS = {"haar": (pywt_haar, 1), "legall": (pywt_legall, 3)}


@pytest.mark.parametrize(
    ("wavelet", "levels", "size"),
    [("haar", 1, (7, 10)), ("haar", 2, (16, 12)), ("haar", 3, (37, 64))]
    + [("legall", 1, (7, 10)), ("legall", 2, (22, 15)), ("legall", 3, (1, 75))],
)
def test_equal_to_pywavelets_where_nothing_is_rounded(wavelet, levels, size):
    dwt, factors = PYWAVELETS[wavelet]
    unit = 2 ** (factors * levels * (2 if size[0] > 1 else 1))
    x = np.random.default_rng(0).integers(0, min(256, 2**16 // unit), size) * unit
    top, details = bands(wavelet, x, levels)
    wanted = x.astype(float)
    for ur, dl, dr in details:
        low, high = dwt(wanted, 1)
        if size[0] == 1:
            wanted = low
            np.testing.assert_allclose(ur, high, rtol=0, atol=1e-6)
            continue
        (wanted, wanted_dl), (wanted_ur, wanted_dr) = dwt(low, 0), dwt(high, 0)
        for band, expected in ((ur, wanted_ur), (dl, wanted_dl), (dr, wanted_dr)):
            np.testing.assert_allclose(band, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(top, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wavelet", CLASSICAL)
@pytest.mark.parametrize("repeat", [1, 3])
@torch.no_grad()
def test_trainable_lifting_starts_as_the_classical_transform(wavelet, repeat, photo):
    x = photo[..., :129, :94]
    top, details = build({"lifting": wavelet, "repeat": repeat}).transform(x)
    wanted_top, wanted = classical(wavelet)(x)
    assert torch.equal(top, wanted_top) and len(details) == len(wanted) == 7
    assert all(torch.equal(a, b) for pair in zip(details, wanted) for a, b in zip(*pair))


# Two pairs of predict and update of no wavelet.
PAIRS = [(0.1, -0.2, 0.7, 0.5, 0), (0.3, 0.25, -0.05), (0, 0.25, 0), (-0.1, 0.1, 0.2)]


@pytest.mark.parametrize("size", [(8, 8), (13, 10), (10, 13), (1, 9), (9, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("frozen", [False, True])
@torch.no_grad()
def test_rows_and_columns_at_once_are_rows_then_columns(size, frozen):
    """But for rounding, by which LeGall's taps change no multiple of 64, and any taps a few tones."""
    for taps, near in ([taps for taps, _ in CLASSICAL["legall"]], 0), (PAIRS, 4):
        joint, apart = (kind([Lift(each, 0) for each in taps]) for kind in (JointLevel, LiftingLevel))
        joint = joint.freeze({}) if frozen else joint
        x = 64 * noise(2, 3, *size)
        both = ((top, *details) for top, details in (joint.split(x), apart.split(x)))
        for one, other in zip(*both):
            assert one.shape == other.shape and one.dtype == x.dtype
            assert not one.numel() or (one - other).abs().max() <= near
        assert torch.equal(joint.merge(*joint.split(x)), x)


@torch.no_grad()
def test_both_at_once_are_nearer_to_what_is_not_rounded(photo):
    x, taps = photo[..., :130, :98].double(), PAIRS[:2]
    joint, apart = (kind([Lift(each, 0) for each in taps]).double() for kind in (JointLevel, LiftingLevel))
    finer = apart.split(2**7 * x)
    bands = [(top, *details) for top, details in (joint.split(x), apart.split(x), finer)]
    for once, twice, exact in zip(*bands):
        errors = [(band - exact / 2**7).square().mean() for band in (once, twice)]
        assert errors[0] < 0.75 * errors[1]


@torch.no_grad()
@pytest.mark.parametrize("lifting", ["linear", "luma", "wavelet"])
def test_frozen_lifting_of_both_is_the_trained_one_rounded(lifting, photo):
    model, x = (
        make_wild(build({"lifting": lifting, "hchnl": 8, "repeat": 2, "HUE": True}), 0.05),
        photo[..., :65, :94],
    )
    with observe(model) as peaks:
        model.log_prob(x)
    level = model.double().pyramid.level(0)
    fixed = level.freeze(peaks)
    for real, whole in zip(*((top, *details) for top, details in (level.split(x.double()), fixed.split(x)))):
        assert (real - whole).abs().max() <= 3 and (real - whole).abs().mean() < 0.1
    assert torch.equal(fixed.merge(*fixed.split(x)), x)


def test_trainable_lifting_learns_its_taps():
    model = build({"lifting": "legall", "hchnl": 4})
    model.log_prob(noise(2, 3, 8, 8)).sum().backward()
    for lift in model.pyramid.level(0).lifts:
        assert lift.slow_taps.grad.abs().min() > 0 and lift.network.last.weight.grad.abs().max() > 0


def test_of_both_at_once_all_learns_but_biases():
    model = build({"lifting": "wavelet", "hchnl": 4})
    model.log_prob(noise(2, 3, 8, 8)).sum().backward()
    level = model.pyramid.level(0)
    for lift in level.filters:
        assert lift.slow_taps.grad.abs().min() > 0 and lift.slow_bias.grad is None
    assert all(network.last.weight.grad.abs().max() > 0 for network in level.networks)
    make_wild(level.networks, 1.0)
    even = torch.full((1, 3, 9, 6), 77.0)
    for each in (level, level.freeze({})):
        coarse, details = each.split(even)
        assert torch.equal(coarse, even[..., :5, :3]) and not any(band.any() for band in details)


@torch.no_grad()
def test_lifting_of_luma_predicts_chroma_by_the_nearest():
    model = make_wild(build({"lifting": "luma", "HUE": True}), 0.2)
    level, x = model.pyramid.level(0), noise(2, 3, 9, 12)
    coarse, details = level.split(x)
    luma, lifted = level.luma.split(x[:, :1])
    assert torch.equal(coarse[:, :1], luma) and all(torch.equal(d[:, :1], w) for d, w in zip(details, lifted))
    assert torch.equal(coarse[:, 1:], x[:, 1:, ::2, ::2])
    ul = torch.nn.functional.pad(x[:, 1:, ::2, ::2], (0, 1, 0, 1), mode="replicate")
    right, below, across = ul[..., :-1, 1:], ul[..., 1:, :-1], ul[..., 1:, 1:]
    ul = ul[..., :-1, :-1]
    odd = x[:, 1:, ::2, 1::2], x[:, 1:, 1::2, ::2], x[:, 1:, 1::2, 1::2]
    means = (ul + right) / 2, (ul + below) / 2, (ul + right + below + across) / 4
    for detail, values, mean in zip(details, odd, means):
        height, width = values.shape[-2:]
        assert torch.equal(detail[:, 1:], values - (mean + 1 / 2).floor()[..., :height, :width])
    with pytest.raises(ValueError, match="luma: there is luma with -HUE alone"):
        build({"lifting": "luma"})


@pytest.mark.parametrize("lifting", ["linear", "luma", "wavelet"])
@pytest.mark.parametrize("repeat", [1, 2])
def test_a_wavelet_whatever_it_learns(lifting, repeat):
    """Responses of wild networks: to a constant, and to the highest frequency, across and down."""
    options = {"lifting": lifting, "hchnl": 8, "repeat": repeat, "HUE": True}
    level = make_wild(build(options), 0.2).double().pyramid.level(0)
    x = noise(1, 3, 24, 20).double().requires_grad_()
    ul, details = level.split(x)
    # how the luma of a coefficient in the middle of each band follows each pixel
    gradients = [torch.autograd.grad(b[0, 0, 6, 5], x, retain_graph=True)[0][0] for b in (ul, *details)]
    even = [1 - 2 * (torch.arange(n) % 2).double() for n in (24, 20)]
    for wave in (even[0][:, None], even[1]):
        assert (gradients[0] * wave).sum((1, 2)).abs().max() < 1e-12
    low, *high = (g.sum((1, 2)) for g in gradients)
    assert torch.allclose(low, torch.tensor([1.0, 0, 0]).double(), atol=1e-12)
    assert max(h.abs().max() for h in high) < 1e-12
    # not by staying as it was
    assert all((a - b).abs().max() > 1 for a, b in zip(details, classical("legall").double()(x, 1)[1][0]))


@pytest.mark.parametrize("wavelet", CLASSICAL)
def test_classical_inverse_and_nothing_to_train(wavelet, photo):
    flow = classical(wavelet)
    for x in (photo, noise(2, 1, 37, 100) * 257, torch.full((1, 1, 5, 8), 255.0), noise(1, 3, 1, 1)):
        assert torch.equal(flow.inverse(*flow(x)), x)
    assert not any(p.requires_grad for p in flow.parameters())


# -- frozen --------------------------------------------------------------------------------------------------


def plain_lift(lift, v):
    """FixedLift, sample by sample, in 64-bit integers."""
    taps, width = lift.taps.tolist(), v.shape[-1]
    padded = oracle.bordered(v.permute(0, 2, 3, 1), 0, len(taps) // 2)
    y = lift.bias.item() + sum(tap * padded[:, :, k : k + width] for k, tap in enumerate(taps))
    y = y.permute(0, 3, 1, 2)
    if lift.network is not None:
        y = y + 16 * oracle.conv_net(lift.network, v)
    return torch.div(2 * y + 2**16, 2**17, rounding_mode="floor").clamp(-(2**16), 2**16)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([0.1, 1.0, 300.0]),
    st.booleans(),
    st.sampled_from([1, 3, 5]),
    st.integers(0, 10**6),
)
def test_frozen_lifts_equal_plain_integers(size, std, networks, count, seed):
    batch, height, width = size
    taps, bias = torch.randn(count + 1, generator=seeded(seed)).mul(std).split((count, 1))
    network = make_wild(ConvNet(3, 3, 5, 1, (1, 3)), 0.2) if networks else None
    lift = Lift(taps.tolist(), bias.item() * 100, network)
    fixed = lift.freeze({})
    v = drawn((batch, 3, height, width), -(2**16), 2**16, seed, seed % 2 == 1, torch.int32)
    y = fixed(v)
    assert y.dtype == torch.int32 and torch.equal(y.long(), plain_lift(fixed, v))


@pytest.mark.parametrize("wavelet", CLASSICAL)
def test_frozen_classical_lifts_are_exact(wavelet, photo):
    """Taps of quarters and biases of eighths are multiples of 2^-16."""
    level = classical(wavelet).level(0)
    fixed = level.freeze({})
    for x in (photo[..., :65, :94], noise(2, 1, 37, 20) * 17 - 2000, noise(1, 3, 1, 1)):
        whole, given = level.split(x), fixed.split(x)
        assert torch.equal(whole[0], given[0]) and all(map(torch.equal, whole[1], given[1]))
        assert torch.equal(fixed.merge(*given), x) and given[0].dtype == torch.float32


@pytest.mark.parametrize("wavelet", CLASSICAL)
@torch.no_grad()
def test_frozen_lifting_is_the_trained_one_rounded(wavelet):
    model = make_wild(build({"lifting": wavelet, "hchnl": 8, "repeat": 2}), 0.1)
    x = noise(2, 3, 33, 20)
    with observe(model) as peaks:
        model.log_prob(x)
    for lift in model.pyramid.level(0).lifts:
        v = drawn((2, 3, 9, 14), -128, 383, dtype=torch.int32)
        wanted = STEPS * lift.double()(v.double() / STEPS)
        assert (lift.freeze(peaks)(v) - wanted).abs().max() < 0.5 + 1e-3 * (1 + wanted.abs().max())


@pytest.mark.parametrize("name", ["taps", "bias"])
@pytest.mark.parametrize("value", [2**24 + 1, -(2**24) - 1, 2**62, -(2**63)])
def test_forged_taps_are_refused(name, value):
    lift = Lift((0, 0.5, 0.5), -0.25).freeze({})
    lift.check()
    getattr(lift, name).view(-1)[-1] = value
    with pytest.raises(ValueError, match="too large"):
        lift.check()


@torch.no_grad()
def test_taps_and_biases_that_cannot_be_frozen():
    for value in (float("nan"), float("inf")):
        for name in ("slow_taps", "slow_bias"):
            lift = Lift((0, 0.5, 0.5), -0.25)
            getattr(lift, name).view(-1)[-1] = value
            with pytest.raises(ValueError, match="not finite"):
                lift.freeze({})
    lift = Lift((1e20, -1e20, 0.5), 1e20).freeze({})  # clamped
    lift.check()
    assert lift.taps.tolist() == [2**24, -(2**24), 2**15] and lift.bias == 2**24
