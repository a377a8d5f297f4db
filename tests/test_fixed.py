"""Fixed-point networks: near the float networks that they freeze, and equal to plain integer arithmetic."""

import numpy as np
import pytest
import torch

import utils.arithmetic.fixed
from source.networks import ConvNet
from utils.arithmetic.fixed import ACTIVATION_MAX, INPUT_MAX, OUTPUT_MAX, FixedNetwork
from utils.arithmetic.integers import STEPS


def network(kernel=(3, 3), hchnl=8, nhidden=2, scale=0.05):
    torch.manual_seed(0)
    net = ConvNet(4, 3, hchnl, nhidden, kernel)
    torch.nn.init.normal_(net.last.weight, std=scale)
    torch.nn.init.normal_(net.last.bias, std=scale)
    return net


def steps(shape, low=-128, high=128):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(1)) / STEPS


def integers(fixed, x):
    """The documented formulas in Python integers, pixel by pixel and tap by tap."""
    rows, columns = fixed.kernel
    x = np.clip(np.rint(x.double().numpy() * STEPS).astype(np.int64), -INPUT_MAX, INPUT_MAX)
    _, _, height, width = x.shape

    def patch(a, i, j):
        at = [(i + di - rows // 2, j + dj - columns // 2) for di in range(rows) for dj in range(columns)]
        return [a[min(max(r, 0), height - 1)][min(max(c, 0), width - 1)] for r, c in at]

    def shift(total, exponent):
        """floor(total 2^-exponent + 1/2)."""
        return (2 * total + 2**exponent) // 2 ** (exponent + 1) if exponent >= 0 else total * 2**-exponent

    layers = [[t.tolist() for t in fixed.layer(i)] for i in range(fixed.layers)]
    out = []
    for image in x:
        a = [[image[:, i, j].tolist() for j in range(width)] for i in range(height)]
        for n, (weight, exponent, bias) in enumerate(layers[:-1]):
            source = [
                [sum(patch(a, i, j), []) if n == 0 else a[i][j] for j in range(width)] for i in range(height)
            ]
            a = [
                [
                    [
                        min(max(shift(sum(w * v for w, v in zip(row, pixel)) + b, e), 0), ACTIVATION_MAX)
                        for row, e, b in zip(weight, exponent, bias)
                    ]
                    for pixel in line
                ]
                for line in source
            ]
        weight, exponent, bias = layers[-1]
        channels = len(bias)
        y = np.empty((channels, height, width))
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    taps = enumerate(patch(a, i, j))
                    total = sum(w * v for t, p in taps for w, v in zip(weight[t * channels + c], p)) + bias[c]
                    y[c, i, j] = min(max(shift(total, exponent[c]), -OUTPUT_MAX), OUTPUT_MAX)
        out.append(y)
    return torch.from_numpy(np.stack(out)) / fixed.unit


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3)])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 7)])
def test_equals_integer_arithmetic(kernel, size):
    fixed = FixedNetwork.of(network(kernel), STEPS, unit=STEPS)
    x = steps((2, 4, *size))
    assert torch.equal(fixed(x), integers(fixed, x))


@pytest.mark.parametrize("scale", [1e-4, 0.05, 3.0])
def test_is_the_float_network_rounded(scale):
    net = network(scale=scale)
    x = steps((2, 4, 9, 6))
    exact = STEPS * net.double()(x.double())
    error = (FixedNetwork.of(net.float(), STEPS)(x) - exact).abs().max().item()
    assert error < 0.5 + 2e-4 * (1 + exact.abs().max().item())


@pytest.mark.parametrize("pixels", [1, 20, 10**6])
def test_equal_however_it_is_cut(pixels, monkeypatch):
    fixed, x = FixedNetwork.of(network(), STEPS), steps((3, 4, 12, 5), -3000, 3000)
    whole = fixed(x)
    monkeypatch.setattr(utils.arithmetic.fixed, "PIXELS", pixels)
    assert torch.equal(fixed(x), whole)
    assert torch.equal(torch.cat([fixed(image[None]) for image in x]), whole)
    assert torch.equal(fixed(x.contiguous(memory_format=torch.channels_last)), whole)


def test_extremes_stay_within_the_bounds():
    fixed = FixedNetwork.of(network(scale=1e4), STEPS)
    y = fixed(steps((1, 4, 6, 6), -(10**6), 10**6))
    assert y.abs().max() == OUTPUT_MAX
    assert torch.equal(y, integers(fixed, steps((1, 4, 6, 6), -(10**6), 10**6)))


def test_refuses_what_it_cannot_hold():
    net = network()
    with torch.no_grad():
        net.last.bias.fill_(2.0**40)
    with pytest.raises(ValueError, match="too large"):
        FixedNetwork.of(net, STEPS)
    with torch.no_grad():
        net.last.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        FixedNetwork.of(net, STEPS)


def test_checks_the_bound_of_stored_integers():
    fixed = FixedNetwork.of(network(), STEPS)
    fixed.bias1.fill_(2**62)
    with pytest.raises(ValueError, match="too large"):
        fixed(steps((1, 4, 2, 2)))
