"""Our flow against original.py, an independent transcription of the method: float64, equal random weights."""

import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from original import Original, naive_log_pmf, stable_log_pmf
from PIL import Image

from flow.model import build

PHOTOS = sorted((Path(__file__).parents[1] / "etc" / "photos").glob("*.png"))


def parameter_pairs(original, ours):
    networks = [*original.couplings, original.mean, original.logscale]
    counterparts = [*ours.pyramid.level(0).networks, ours.detail.mean, ours.detail.logscale]
    for network, counterpart in zip(networks, counterparts, strict=True):
        yield from zip(network.parameters(), counterpart.parameters(), strict=True)
    yield original.top_mean, ours.top.mean
    yield original.top_logscale, ours.top.logscale
    yield original.top_logits, ours.top.logits


def make_pair(size, repeat=2, hchnl=8, nhidden=2, nmixing=3, seed=0):
    """Build both models with equal random weights, none zero, that move coefficients by tens of steps."""
    torch.manual_seed(seed)
    original = Original(size, repeat, hchnl, nhidden, nmixing, log_pmf=stable_log_pmf).double()
    ours = build({"repeat": repeat, "hchnl": hchnl, "nhidden": nhidden, "nMixing": nmixing}).double()
    pairs = list(parameter_pairs(original, ours))
    assert len(pairs) == len(list(original.parameters())) == len(list(ours.parameters()))
    with torch.no_grad():
        for p, q in pairs:
            p.normal_(std=0.5 if p.dim() == 1 else p[0].numel() ** -0.5)
            q.copy_(p)
    return original, ours


def noise(size, batch=3):
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (batch, 3, size, size), generator=generator).double()


def crops(size):
    """Return the middle of every photograph."""
    images = []
    for path in PHOTOS:
        with Image.open(path) as image:
            left, top = (image.width - size) // 2, (image.height - size) // 2
            images.append(np.array(image.convert("RGB").crop((left, top, left + size, top + size))))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double()


IMAGES = [pytest.param(noise(size), id=f"noise{size}") for size in (2, 4, 8, 32)]
IMAGES.append(pytest.param(crops(64), id="photos"))


@pytest.mark.parametrize("x", IMAGES)
@torch.no_grad()
def test_transforms_agree(x):
    original, ours = make_pair(x.shape[-1])
    latent = original(x)
    top, details = ours.transform(x)
    assert len(details) == original.depth
    for level, (ur, dl, dr) in enumerate(details):
        step = 2**level
        assert torch.equal(ur, latent[..., 0 :: 2 * step, step :: 2 * step])
        assert torch.equal(dl, latent[..., step :: 2 * step, 0 :: 2 * step])
        assert torch.equal(dr, latent[..., step :: 2 * step, step :: 2 * step])
    assert torch.equal(top, latent[..., :: 2**original.depth, :: 2**original.depth])
    if original.depth:
        assert (latent - x).abs().mean() > 5


@pytest.mark.parametrize("x", IMAGES)
@torch.no_grad()
def test_original_inverts(x):
    original, _ = make_pair(x.shape[-1])
    assert torch.equal(original.inverse(original(x)), x)


@pytest.mark.parametrize("x", IMAGES)
@torch.no_grad()
def test_log_probabilities_agree(x):
    original, ours = make_pair(x.shape[-1])
    torch.testing.assert_close(ours.log_prob(x), original.log_prob(x), rtol=1e-9, atol=0)


def test_gradients_agree():
    original, ours = make_pair(8)
    x = noise(8)
    original.log_prob(x).mean().backward()
    ours.log_prob(x).mean().backward()
    for p, q in parameter_pairs(original, ours):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-8 * p.grad.abs().max().item())


def test_original_has_the_published_number_of_parameters():
    parameters = Original(32, repeat=3, hchnl=350, nhidden=3, nmixing=5).parameters()
    assert round(sum(p.numel() for p in parameters) / 1e6, 2) == 5.69


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("steps", [0, 1, 40, 3000, -3000])
def test_stable_log_pmf_against_decimal_arithmetic(steps, scale):
    with localcontext(prec=60):
        # the lower side, by symmetry: there the sigmoids are small and lose no digits
        lower, upper = ((Decimal(-2 * abs(steps) + k) / 512 / Decimal(scale)) for k in (-1, 1))
        wanted = float((1 / (1 + (-upper).exp()) - 1 / (1 + (-lower).exp())).ln())
    z, mean, logscale = torch.tensor([128.0 + steps, 0.0, math.log(scale)], dtype=torch.float64)
    assert stable_log_pmf(z, mean, logscale).item() == pytest.approx(wanted, rel=1e-9)


def test_naive_log_pmf_is_right_where_it_does_not_cancel():
    z = torch.arange(-128.0, 384.0, dtype=torch.float64)
    mean, logscale = torch.tensor([0.1, -2.0], dtype=torch.float64)
    naive, stable = (log_pmf(z, mean, logscale) for log_pmf in (naive_log_pmf, stable_log_pmf))
    torch.testing.assert_close(naive, stable, rtol=1e-9, atol=0)
