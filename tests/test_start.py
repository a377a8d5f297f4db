"""Trainings that begin with another model's weights; Muon's steps."""

import copy
from functools import partial

import pytest
import torch
from conftest import make_wild, noise
from PIL import Image

import easymain
from flow.folder import open_model, read_options
from flow.lifting import Lift, LiftingLevel, LumaLevel
from flow.model import build
from flow.muon import STEP_SIZE, Muon, orthogonal
from flow.start import inherit
from source.distribution import Mixture
from source.networks import SLOW, with_means
from source.prior import parts_in_turn
from utils.arithmetic.integers import bits_per_dimension
from utils.data.images import PHOTOS

SMALL = {"prior": "bands", "repeat": 0, "HUE": True, "width": 6, "components": 2}


def wild(**options):
    return make_wild(build(SMALL | options), 0.05)


@pytest.mark.parametrize("before, after", [(0, 0), (0, 1), (0, 3), (1, 1), (1, 3)])
def test_levels_begin_as_what_served_them(before, after):
    parent, model = wild(ownLevels=before), build(SMALL | {"ownLevels": after})
    images = noise(2, 3, 37, 50)
    inherit(model, parent)
    assert torch.equal(model.log_prob(images), parent.log_prob(images))
    # weights of their own from then on
    with torch.no_grad():
        next(model.detail.parameters()).add_(1)
    fresh = build(SMALL | {"ownLevels": after})
    inherit(fresh, parent)
    assert torch.equal(fresh.log_prob(images), parent.log_prob(images))


@pytest.mark.parametrize("before, after", [(1, 2), (3, 5), (2, 4), (4, 4)])
def test_components_that_split_keep_the_rate(before, after, photo):
    parent, model = (build(SMALL | {"components": n, "ownLevels": n - before}) for n in (before, after))
    with torch.no_grad():
        for p in parent.parameters():
            p.add_(0.003 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    inherit(model, parent)
    images = photo[..., :64, :64]
    bits = [bits_per_dimension(-m.log_prob(images), images.numel()).item() for m in (parent, model)]
    assert bits[1] < bits[0] + (0.02 if after > before else 1e-6)
    for out in model.detail.levels[0].bands[0].out if after > before else ():
        means = out.bias.view(3, after)
        assert len({tuple(component.tolist()) for component in means.T}) == after


@pytest.mark.parametrize("width", [7, 8, 13])
def test_a_wider_prior_begins_as_it_was(width):
    parent, model = wild(), build(SMALL | {"width": width, "components": 4, "ownLevels": 1})
    narrow, images = build(SMALL | {"components": 4, "ownLevels": 1}), noise(2, 3, 37, 50)
    for heir in (model, narrow):
        inherit(heir, parent)
    torch.testing.assert_close(model.log_prob(images), narrow.log_prob(images), rtol=1e-5, atol=0)
    model.log_prob(images).sum().backward()
    moved = [p.grad[6:].abs().max() for n, p in model.named_parameters() if n.endswith("trunk.weight")]
    assert all((p.grad[:, 6:] != 0).any() for n, p in model.named_parameters() if n.endswith("trunk.weight"))
    assert not any(moved)  # nobody reads the further channels yet, but each is about to be


@pytest.mark.parametrize("before, after", [(0, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("own", [0, 1])
def test_a_deeper_prior_begins_as_it_was(own, before, after):
    """Of levels with networks of their own, or of all, which may be wider at the same time."""
    parent = wild(ownLevels=own, blocks=before)
    sizes = {"ownBlocks": after, "ownWidth": 8} if own else {"blocks": after, "width": 8}
    model, images = build(SMALL | {"ownLevels": own, "blocks": before} | sizes), noise(2, 3, 37, 50)
    inherit(model, parent)
    torch.testing.assert_close(model.log_prob(images), parent.log_prob(images), rtol=1e-5, atol=0)
    model.log_prob(images).sum().backward()
    finest = model.detail.levels[0] if own else model.detail
    further = [*finest.trunk[2 * before :], *(b for band in finest.bands for b in band.blocks[before:])]
    assert len(further) == 5 * (after - before)
    assert all((block.last.weight.grad != 0).any() for block in further)  # about to add something
    shallow = build(SMALL | sizes | {"ownLevels": own, "ownBlocks": 0, "blocks": before})
    with pytest.raises(ValueError, match=r"that model does not fit: it has detail\.\S+\.last\.bias"):
        inherit(shallow, model)


def read_no_further(model):
    """Leave out of kernels of samples what would be beyond them, were they to read the mean of two."""
    for name, conv in model.named_modules():
        if name.endswith((".base", ".enter")):
            with torch.no_grad():
                taps = conv.taps.clone()
                taps[..., 2, :], taps[..., :, 2] = 0, 0
                conv.weight.copy_(with_means(taps, conv.slow, 1 / SLOW) if conv.slow else taps)


def assert_inside_equal(parent, model, images, fields):
    """The distributions of the finest details, in these fields, but near the edges."""
    pairs = []
    for each in (parent, model):
        (_, coarse, detail), *_ = each.pyramid.analyse(each.from_images(images), 1)
        pairs.append([distribution for _, distribution, _ in parts_in_turn(each.detail, coarse, 0, detail)])
    for before, after in zip(*pairs, strict=True):
        for field in fields:
            one, other = (getattr(x, field)[..., 8:-8, 8:-8] for x in (before, after))
            near = torch.isclose(one, other, rtol=1e-4, atol=1e-4)
            assert (~near).sum() <= 1  # where rounding a mean to quarters falls the other way


@pytest.mark.parametrize("lifting", ["linear", "luma"])
@pytest.mark.parametrize("sight", [(False, False), (False, True), (True, True)])
def test_a_prior_of_pixels_reads_them_out_of_details(sight, lifting):
    """Exactly, in the middle, where lifting but predicts by the mean of two, and the mean is an integer."""
    parent = wild(differences=sight[0])
    read_no_further(parent)
    model = build(SMALL | {"lifting": lifting, "repeat": 1, "differences": sight[1]})
    inherit(model, parent)
    half = LiftingLevel([Lift((0, 1 / 2, 1 / 2), 0)])
    model.pyramid.levels[0] = half if lifting == "linear" else LumaLevel(half)
    images = 64 * (noise(2, 3, 64, 64) // 64)
    assert_inside_equal(parent, model, images, ["logits", "logscale"])


@pytest.mark.parametrize("own", [0, 1])
def test_a_prior_of_pixels_begins_to_see_differences(own):
    """Exactly, but at the edges, where no kernel reads what is beyond it."""
    parent = wild()
    read_no_further(parent)
    model = build(SMALL | {"differences": True, "ownLevels": own})
    inherit(model, parent)
    assert_inside_equal(parent, model, noise(2, 3, 64, 64), Mixture._fields)
    with pytest.raises(ValueError, match="has -differences"):
        inherit(build(SMALL), model)


def test_the_model_in_the_box_behind_lifting(photo):
    parent, _ = open_model(PHOTOS.parent / "model")
    options = read_options(PHOTOS.parent / "model") | {"lifting": "linear", "repeat": 1}
    fresh, model = build(options), build(options)
    inherit(model, parent)
    images = photo[..., :128, :128]
    costs = [bits_per_dimension(-m.log_prob(images), images.numel()).item() for m in (parent, model, fresh)]
    assert costs[0] < costs[1] < costs[0] + 0.6 < costs[2] - 0.5


@pytest.mark.parametrize(
    "change", [{"width": 5}, {"components": 5}, {"components": 1}, {"repeat": 1}, {"HUE": False}]
)
def test_what_does_not_fit_is_refused(change):
    with pytest.raises(ValueError, match="does not fit"):
        inherit(build(SMALL | change), wild())


def test_the_papers_prior_does_not_read_details_for_pixels():
    with pytest.raises(ValueError, match="does not fit"):
        inherit(build({"lifting": "legall"}), build({"repeat": 0}))


@pytest.mark.parametrize("more", [{"blocks": 2}, {"repeat": 1}, {"repeat": 1, "lifting": "linear"}])
def test_nothing_of_the_parent_is_left_out(more):
    with pytest.raises(ValueError, match="does not fit"):
        inherit(build(SMALL), build(SMALL | more))


@pytest.mark.parametrize("before, after", [(1, 0), (2, 1), (3, 1)])
def test_levels_that_share_begin_as_the_finest_of_them(before, after):
    parent, model = wild(ownLevels=before), build(SMALL | {"ownLevels": after})
    inherit(model, parent)
    images, (old, new) = noise(2, 3, 37, 50), (m.detail for m in (parent, model))
    for level in range(4):
        _, coarse, detail = list(parent.pyramid.analyse(parent.from_images(images)))[level]
        one, other = (next(parts_in_turn(d, coarse, level, detail))[1].mean for d in (old, new))
        assert torch.equal(one, other) == (level <= after)


def test_own_levels_may_be_wider():
    parent, model = wild(ownLevels=1), build(SMALL | {"ownLevels": 1, "ownWidth": 10})
    inherit(model, parent)
    assert [prior.enter.out_channels for prior in model.detail.levels] == [10, 6]
    images = noise(2, 3, 37, 50)
    torch.testing.assert_close(model.log_prob(images), parent.log_prob(images), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="ownLevels"):
        build(SMALL | {"ownWidth": 10})


def test_start_is_an_option(tmp_path, capsys):
    for n in range(10):
        Image.fromarray(noise(16, 32, 3, seed=n).byte().numpy()).save(tmp_path / f"{n}.png")
    small = ["-target", str(tmp_path), *"-prior bands -repeat 0 -width 6 -batch 8 -epoch 1 -size 16".split()]
    easymain.main([*small, "-folder", str(tmp_path / "parent")])
    start = ["-start", str(tmp_path / "parent")]
    grown = [
        *small,
        *start,
        *"-ownLevels 1 -lr 1e-9 -optimizer muon -folder".split(),
        str(tmp_path / "grown"),
    ]
    easymain.main(grown)
    images = noise(2, 3, 20, 20)
    parent, model = (open_model(tmp_path / name)[0] for name in ("parent", "grown"))
    torch.testing.assert_close(model.log_prob(images), parent.log_prob(images), rtol=1e-4, atol=0)
    capsys.readouterr()
    for argv in ([*grown[:-1], str(tmp_path / "grown"), "-load"], [*small, "-width", "4", *start]):
        with pytest.raises(SystemExit) as stop:
            easymain.main(argv)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "-start" in error and error.count("\n") == 1


@pytest.mark.parametrize("shape", [(64, 27), (8, 8), (8, 300), (300, 8), (1, 5)])
def test_steps_are_nearly_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    # the same singular vectors, values near 1
    values = (u.T @ orthogonal(matrix) @ v.T).diagonal()
    assert 0.6 < values.min() and values.max() < 1.3
    assert not orthogonal(torch.zeros(shape)).any()


def test_muon_steps():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(8, 12, 3), torch.nn.Conv2d(12, 12, 3, groups=12), torch.nn.Conv2d(12, 4, 1)
    )
    plain = copy.deepcopy(layers)
    muon, adam = Muon(layers, 0.01), torch.optim.Adam(plain.parameters(), 0.01, (0.9, 0.99))
    mean = torch.zeros_like(plain[0].weight)
    for seed in range(3):
        for p, q in zip(layers.parameters(), plain.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            q.grad = p.grad.clone()
        gradient, first = plain[0].weight.grad, plain[0].weight.detach().clone()
        muon.step()
        adam.step()
        mean = 0.95 * mean + 0.05 * gradient
        ahead = (0.05 * gradient + 0.95 * mean).flatten(1)
        first -= 0.01 * STEP_SIZE * 72**0.5 * orthogonal(ahead).view_as(first)
        plain[0].weight.data.copy_(first)
        for p, q in zip(layers.parameters(), plain.parameters()):
            torch.testing.assert_close(p, q)
            assert p.grad is not None


def test_muon_steps_along_the_gradients_of_a_closure():
    models = [make_wild(torch.nn.Conv2d(8, 8, 1), 0.1) for _ in range(2)]
    x, optimizers = noise(1, 8, 3, 3), [Muon(model, 0.01) for model in models]

    def loss(model, optimizer):
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    for _ in range(2):
        wanted = loss(models[0], optimizers[0])
        optimizers[0].step()
        assert torch.equal(optimizers[1].step(partial(loss, models[1], optimizers[1])), wanted)
        assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
