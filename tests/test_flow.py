"""Every flow gives every image back bit for bit, whatever its size and the weights; densities and samples."""

import math
from functools import cache

import pytest
import torch
from conftest import make_wild, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from flow.model import build
from source.distribution import cropped
from utils.arithmetic.polyphase import band_sizes, crop, depth, level_sizes

SCHEMES = {
    "coupling": {},
    "coupling HUE": {"repeat": 2, "HUE": True},
    "identity": {"repeat": 0},
    "heavy": {"heavy": True, "size": 16},
    "heavy haar": {"heavy": True, "size": 16, "lifting": "haar"},
    "haar HUE": {"lifting": "haar", "HUE": True},
    "legall": {"lifting": "legall"},
    "wavelet": {"lifting": "wavelet", "HUE": True},
    "linear": {"lifting": "linear"},
    "luma": {"lifting": "luma", "HUE": True},
    "legall long": {"lifting": "legall", "repeat": 3, "nhidden": 2},
}
SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (5, 3), (1, 2000), (37, 100), (64, 64), (129, 7)]
# Shifts of nothing, of some steps, of hundreds, and beyond what float32 could add exactly without a limit.
WEIGHTS = [None, 0.1, 0.3, 3.0]


@cache
def make_model(scheme, std=None):
    model = build({"hchnl": 4} | SCHEMES[scheme])
    return model if std is None else make_wild(model, std)


def images(height, width):
    """Return noise, black, white, and a checkerboard of both."""
    board = (torch.arange(height)[:, None] + torch.arange(width)) % 2 * 255.0
    flat = [torch.full((3, height, width), v) for v in (0.0, 255.0)]
    return torch.stack([noise(3, height, width), *flat, board.expand(3, -1, -1)])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("std", WEIGHTS)
@torch.no_grad()
def test_inverse_of_every_size_is_exact_and_nothing_is_added(scheme, std):
    model = make_model(scheme, std)
    for size in SIZES:
        x = images(*size)
        top, details = model.transform(x)
        assert torch.equal(model.inverse(top, details), x)
        sizes = level_sizes(*size, depth(*size))
        assert len(details) == len(sizes) - 1 and top.shape == (4, 3, *sizes[-1])
        for detail, whole in zip(details, sizes):
            assert tuple(band.shape[-2:] for band in detail) == band_sizes(*whole)[1:]
        assert top.numel() + sum(band.numel() for detail in details for band in detail) == x.numel()


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_inverse_of_a_photograph_is_exact(scheme, photo):
    for std in (None, 0.3):
        model = make_model(scheme, std)
        assert torch.equal(model.inverse(*model.transform(photo)), photo)
        assert torch.equal(model.inverse(*model.transform(photo.byte(), 2)), photo)


@cache
def make_frozen(scheme, std):
    return make_model(scheme, std).freeze()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("std", [0.1, 0.3])
def test_frozen_inverse_of_every_size_is_exact(scheme, std):
    model = make_frozen(scheme, std)
    for size in SIZES:
        x = images(*size)
        top, details = model.transform(x)
        assert top.dtype == torch.float32 and torch.equal(model.inverse(top, details), x)
        assert torch.equal(top, top.round()) and all(torch.equal(b, b.round()) for d in details for b in d)
        # in float64 the same coefficients
        other = model.pyramid(model.from_images(x).double())
        assert torch.equal(other[0], top.double()) and torch.equal(
            model.pyramid.inverse(*other), model.from_images(x)
        )


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_frozen_transforms_are_near_the_float_ones(scheme, photo):
    """One step here and there, where what is rounded is near a half."""
    torch.manual_seed(0)
    model, x = build({"hchnl": 4} | SCHEMES[scheme]), photo[..., 100:164, 200:248]
    generator = torch.Generator().manual_seed(0)
    for p in model.pyramid.parameters():
        p += 0.02 * torch.randn(p.shape, generator=generator)
    (top, details), (frozen_top, frozen_details) = (m.transform(x, 2) for m in (model, model.freeze(x)))
    pairs = [(top, frozen_top), *(pair for both in zip(details, frozen_details) for pair in zip(*both))]
    error = torch.cat([(a - b).flatten() for a, b in pairs]).abs()
    assert error.mean() < 0.01 and error.max() <= 3


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=15)
@given(height=st.integers(1, 20), width=st.integers(1, 20), std=st.sampled_from(WEIGHTS), data=st.data())
@torch.no_grad()
def test_inverse_from_any_depth_is_exact(scheme, height, width, std, data):
    model = make_model(scheme, std)
    levels = data.draw(st.integers(0, depth(height, width) + 1))
    x = noise(2, 3, height, width, seed=data.draw(st.integers(0, 99)))
    top, details = model.transform(x, levels)
    assert len(details) == levels and torch.equal(model.inverse(top, details), x)


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_levels_up_are_the_levels_down(scheme):
    pyramid, x = make_model(scheme, 0.3).pyramid, noise(2, 3, 13, 18)
    down = list(pyramid.analyse(x, 3))
    assert [level for level, _, _ in down] == [0, 1, 2] and not list(pyramid.analyse(x, 0))
    details, bands = [detail for _, _, detail in down], [x, *(coarse for _, coarse, _ in down)]
    for last in range(4):
        up = list(pyramid.synthesise(bands[3], 3, lambda coarse, level: details[level], last))
        assert [level for level, _ in up] == list(range(3, last - 1, -1))
        assert all(torch.equal(band, bands[level]) for level, band in up)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "identity"])
@torch.no_grad()
def test_weights_move_the_coefficients(scheme):
    x = noise(1, 3, 16, 16)
    (start, _), (wild, _) = (make_model(scheme, std).transform(x, 1) for std in (None, 0.3))
    assert (start - wild).abs().mean() > 1


def test_shared_weights_serve_all_levels_and_heavy_has_its_own():
    shared, heavy = (
        {n: p.numel() for n, p in make_model(s).named_parameters()} for s in ("coupling", "heavy")
    )
    assert sum(n for name, n in heavy.items() if name.startswith("pyramid")) == 3 * sum(
        n for name, n in shared.items() if name.startswith("pyramid")
    )


@torch.no_grad()
def test_heavy_levels_are_independent():
    model = build({"hchnl": 4} | SCHEMES["heavy"])
    x = noise(1, 3, 16, 16)
    before = model.transform(x)
    make_wild(model.pyramid.level(1), 0.3)
    after = model.transform(x)
    same = [all(map(torch.equal, a, b)) for a, b in zip(before[1], after[1])]
    assert same == [True, False, False] and not torch.equal(before[0], after[0])


@pytest.mark.parametrize("prior", [{}, {"simplePrior": True}, {"simplePrior": True, "diffDetail": True}])
@pytest.mark.parametrize("scheme", ["coupling HUE", "heavy", "legall"])
@torch.no_grad()
def test_log_prob_is_the_sum_over_the_hierarchy(scheme, prior):
    model = make_wild(build({"hchnl": 4, "size": 16} | SCHEMES[scheme] | prior), 0.3).double()
    x = noise(3, 3, 16, 16)
    for levels in (None, 0, 2):
        top, details = model.transform(x, levels)
        total = model.top(3, top.shape[-2:]).log_prob(top).sum((1, 2, 3))
        coarse = model.from_images(x)
        for i, detail in enumerate(details):
            coarse, _ = model.pyramid.level(i).split(coarse)
            for k, band in enumerate(detail):
                distribution = cropped(model.detail(coarse, i)(detail[:k]), band.shape[-2:])
                total += distribution.log_prob(band).sum((1, 2, 3))
        torch.testing.assert_close(model.log_prob(x, levels), total, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2), (11, 18)])
@torch.no_grad()
def test_log_prob_of_odd_sizes_does_not_depend_on_the_batch(size):
    model = make_wild(build({"hchnl": 4, "HUE": True}), 0.3)
    x = noise(3, 3, *size)
    one_by_one = torch.cat([model.log_prob(image[None]) for image in x])
    assert one_by_one.isfinite().all()
    torch.testing.assert_close(model.log_prob(x), one_by_one, rtol=1e-4, atol=0)


@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one():
    # 1x2 pixels, six values, within 3 steps of the middle: 7^6 images, under a prior that hardly looks beyond
    model = build({"hchnl": 4, "nMixing": 1, "simplePrior": True})
    make_wild(model.pyramid, 0.2, seed=2)
    for name, p in model.named_parameters():
        if name.endswith(("bias", "mean")):
            p.zero_()
        elif name.endswith("logscale"):
            p.fill_(-7.0)
    values = torch.arange(125.0, 132.0)
    x = torch.cartesian_prod(*[values] * 6).view(-1, 3, 1, 2)
    top, [(right, _, _)] = model.transform(x, 1)
    moved = (torch.cat([top, right], -1) != x).flatten(1).any(1)
    probability = model.log_prob(x, 1).double().exp()
    assert probability[moved].sum() > 0.2
    assert probability.sum().item() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_samples_are_images_and_repeat_with_the_seed():
    for std in (0.1, 3.0):
        model = make_wild(build({"hchnl": 4, "HUE": True}), std)
        for size in ((1, 1), (1, 9), (16, 16), (13, 6)):
            draw = [
                model.sample(4, *size, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
            ]
            assert draw[0].shape == (4, 3, *size)
            assert torch.equal(draw[0], draw[0].clamp(0, 255).round())
            assert torch.equal(draw[0], draw[1])
            assert std == 3.0 or not torch.equal(draw[0], draw[2])


@torch.no_grad()
def test_without_a_scale_samples_take_the_means():
    model = make_wild(build({"hchnl": 4}), 0.1)
    top = noise(2, 3, 2, 3)
    means = model.sample(2, 15, 20, base_scale=None, top=top, levels=3)
    x = top
    for i, size in zip((2, 1, 0), ((4, 5), (8, 10), (15, 20))):
        bands = [model.detail(x, i)([None] * k).mode() for k in range(3)]
        x = model.pyramid.level(i).merge(x, [crop(b, s) for b, s in zip(bands, band_sizes(*size)[1:])])
    assert torch.equal(means, x.clamp(0, 255))
    assert torch.equal(model.sample(2, 15, 20, base_scale=-60.0, top=top, levels=3), means)
    assert not torch.equal(model.sample(2, 15, 20, base_scale=3.0, top=top, levels=3), means)


@pytest.mark.parametrize(("scheme", "middle"), [("coupling", 0), ("coupling HUE", 0), ("legall", -0.5)])
@torch.no_grad()
def test_samples_go_on_from_a_given_top(scheme, middle, photo):
    model = build(SCHEMES[scheme])
    model.detail.mean.last.bias.fill_(middle)
    x = photo[..., :51, :70] / 2 + 64
    top, _ = model.transform(x.floor(), 2)
    again, details = model.transform(model.sample(1, 51, 70, base_scale=None, top=top, levels=2), 2)
    assert torch.equal(again, top)
    for i, detail in enumerate(details):
        mode = model.detail(top, i)(()).mode()
        assert all(torch.equal(band, mode[..., :1, :1].expand_as(band)) for band in detail)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hchnl": 0}, "-hchnl 0: need 1 .. 2048"),
        ({"nMixing": 0}, "-nMixing 0: need 1 .. 256"),
        ({"repeat": -1}, "-repeat -1: need 0 .. 64"),
        ({"nhidden": -1}, "-nhidden -1: need 0 .. 32"),
        ({"diffDetail": True, "size": 8}, "give -simplePrior too"),
        ({"lifting": "db4"}, "-lifting db4: need one of none, haar, legall, linear, luma, wavelet"),
        ({"lifting": "haar", "repeat": 0}, "-repeat 0"),
        ({"heavy": True}, "images of one size"),
        ({"simplePrior": True, "diffDetail": True}, "images of one size"),
        ({"prior": "simple", "diffDetail": True}, "images of one size"),
        ({"prior": "bands", "diffDetail": True, "size": 8}, "give -simplePrior too"),
        ({"prior": "bands", "simplePrior": True}, "-simplePrior and -prior bands: need one"),
        ({"prior": "pixels"}, "-prior pixels: need one of paper, bands, simple"),
        ({"prior": "bands", "width": 0}, "-width 0: need 1 .. 2048"),
        ({"prior": "bands", "components": 0}, "-components 0: need 1 .. 32"),
        ({"prior": "bands", "blocks": -1}, "-blocks -1: need 0 .. 6"),
        ({"clamp": math.nan}, "-clamp nan: need a finite number, at least -1"),
    ],
)
def test_options_that_make_no_model(options, message):
    with pytest.raises(ValueError, match=message):
        build(options)
