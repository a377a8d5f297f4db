"""ConvNet, which pads and convolves in its own way, against the plain composition; smaller layers."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import make_wild
from integers import seeded

from source import networks
from source.networks import SLOW, Compand, Conv, ConvNet, Joined, replicate_pad, shift_sum, with_means

KERNELS = [(3, 3), (1, 3)]
SIZES = [(1, 1), (1, 2), (2, 1), (3, 5), (8, 8)]


def plain_pad(x, kernel):
    rows, columns = (k // 2 for k in kernel)
    return F.pad(x, (columns, columns, rows, rows), mode="replicate")


def plain(net, x):
    """Compute what the docstring of ConvNet says."""
    h = F.relu(F.conv2d(plain_pad(x, net.kernel), net.first.weight, net.first.bias))
    for layer in net.hidden:
        h = F.relu(F.conv2d(h, layer.weight, layer.bias))
    return F.conv2d(plain_pad(h, net.kernel), net.last.weight, net.last.bias)


def wild_net(kernel, nhidden=1):
    return make_wild(ConvNet(3, 4, 5, nhidden, kernel).double(), 0.5)


def batch(size, channels=3):
    x = torch.randn(2, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("nhidden", [0, 2])
def test_values_and_gradients_are_those_of_the_plain_composition(kernel, size, nhidden):
    net, x = wild_net(kernel, nhidden), batch(size)
    wanted, given = plain(net, x), net(x)
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(wanted)
    inputs = [x, *net.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (given, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES[:4])
def test_padding_and_shifted_sums_pass_gradcheck(kernel, size):
    assert torch.equal(replicate_pad(batch(size), kernel), plain_pad(batch(size), kernel))
    taps = kernel[0] * kernel[1]
    for function, channels in ((replicate_pad, 2), (shift_sum, 2 * taps)):
        assert torch.autograd.gradcheck(lambda x: function(x, kernel), batch(size, channels))  # noqa: B023


@pytest.mark.parametrize("size", [*SIZES, (9, 2)])
def test_rectified_padding_in_one_pass_is_both_in_turn(size, monkeypatch):
    """Of bfloat16, bit for bit, infinities and what is no number too."""
    conv = Conv(5, 4, 3, rectify=True).bfloat16()
    x = batch(size, 5).detach().bfloat16()
    x.view(-1)[:5] = torch.tensor([-math.inf, -0.0, 0.0, 1e-40, math.inf])
    results = []
    for passes in ("one", "two"):
        if passes == "two":
            monkeypatch.setattr(networks, "_is_stored_by_pixel", lambda *_: False)
        given = x.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
        seen = []
        monkeypatch.setattr(networks.F, "conv2d", lambda x, *_, seen=seen: seen.append(x) or x)
        y = conv(given)
        weight = torch.randn(y.shape, generator=seeded()).bfloat16()
        (y * weight.contiguous(memory_format=torch.channels_last)).sum().backward()
        results.append([seen[0], given.grad])
    assert results[0][0].shape[2:] == (size[0] + 2, size[1] + 2)
    assert all(torch.equal(one, two) for one, two in zip(*results))
    nan = torch.full((1, 1, 1, 2), math.nan).bfloat16().copysign(torch.tensor([1.0, -1.0]).bfloat16())
    assert networks._RectifiedPad.apply(nan).isnan().all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_jacrev(kernel):
    net, x = wild_net(kernel), batch((2, 3)).detach()
    wanted = torch.autograd.functional.jacobian(lambda v: plain(net, v), x)
    torch.testing.assert_close(torch.func.jacrev(net)(x), wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_layout_and_batch_do_not_matter(kernel):
    net, x = wild_net(kernel), batch((4, 6))
    transposed = x.mT.contiguous().mT
    torch.testing.assert_close(net(transposed), net(x), rtol=1e-12, atol=1e-12)
    one_by_one = torch.cat([net(image) for image in x.split(1)])
    torch.testing.assert_close(one_by_one, net(x), rtol=1e-12, atol=1e-12)


def test_untrained_network_is_zero_and_has_the_layers_of_the_method():
    net = ConvNet(9, 3, 7, 2)
    assert torch.equal(net(torch.randn(2, 9, 4, 4)), torch.zeros(2, 3, 4, 4))
    layers = [net.first, *net.hidden, net.last]
    assert [layer.kernel_size for layer in layers] == [(3, 3), (1, 1), (1, 1), (3, 3)]
    assert (layers[0].in_channels, layers[-1].out_channels) == (9, 3)
    assert all(a.out_channels == b.in_channels == 7 for a, b in pairwise(layers))


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


def test_compand_is_the_same_compiled_and_in_tensors():
    u = torch.randn(3, 7, 5, 6, generator=seeded()) * torch.logspace(-4, 4, 6)
    u[0, 0, 0, :3] = torch.tensor([0.0, -0.0, 1.0])
    gradient, found = torch.randn(3, 7, 5, 6, generator=seeded(1)).bfloat16(), []
    for form in (torch.channels_last, torch.contiguous_format):  # only the first has a compiled pass
        x = u.contiguous(memory_format=form).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = Compand()(x)
        found.append((y, *torch.autograd.grad(y, x, gradient.contiguous(memory_format=form))))
    assert found[0][0].dtype == torch.bfloat16 and found[0][1].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_joined_convolutions_are_each_of_them():
    joined = Joined(Conv(3, out, 1, rectify=True).double() for out in (2, 4, 1))
    x = batch((4, 5)).detach()
    assert joined.in_channels == 3
    for given, layer in zip(joined(x), joined):
        torch.testing.assert_close(given, layer(x), rtol=1e-12, atol=1e-12)


def test_autocast_computes_in_bfloat16_what_is_not_precise():
    x = torch.randn(1, 2, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        given = [module(x).dtype for module in (Compand(), Conv(2, 2, 3), Conv(2, 2, 3, precise=True))]
    assert given == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(module(x).dtype == torch.float32 for module in (Compand(), Conv(2, 2, 3)))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rectify", [False, True])
def test_convolutions_are_the_plain_ones_with_borders_replicated(size, rectify):
    module, x = make_wild(Conv(3, 4, size, rectify=rectify).double(), 0.5), batch((5, 7)).detach()
    read = x.relu() if rectify else x
    wanted = F.conv2d(plain_pad(read, (size, size)), module.weight, module.bias)
    torch.testing.assert_close(module(x), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(module(x, onto=wanted), 2 * wanted, rtol=1e-12, atol=1e-12)


def test_means_of_kernels_of_pixels_learn_slowly():
    plain, slow = (Conv(5, 4, 3, precise=True, slow=count) for count in (0, 2))
    slow.load_state_dict(plain.state_dict())
    x = torch.randn(1, 5, 6, 7, generator=seeded(0))
    for conv in (plain, slow):
        conv(x).sum().backward()
    weight, taps = plain.weight.detach(), plain.weight.detach().clone()
    taps[:, :2] -= (1 - SLOW) * taps[:, :2].mean((2, 3), keepdim=True)
    assert torch.equal(plain.taps, weight)
    torch.testing.assert_close(slow(x), F.conv2d(plain_pad(x, (3, 3)), taps, plain.bias))
    torch.testing.assert_close(with_means(slow.taps, 2, 1 / SLOW), weight)
    # a step along the slope: means move slowly, all else as it would
    steps = [conv.weight.grad.mean((2, 3)) for conv in (plain, slow)]
    torch.testing.assert_close(steps[1][:, :2], SLOW * steps[0][:, :2])
    torch.testing.assert_close(steps[1][:, 2:], steps[0][:, 2:])
    with torch.no_grad():
        plain.weight.copy_(taps)
    assert torch.equal(slow.freeze_wide().weight, plain.freeze_wide().weight)
