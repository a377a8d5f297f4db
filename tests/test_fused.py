"""Networks as one compiled function each: the integers that layers give one after the other."""

import os
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from integers import computed, drawn, narrow, wide
from numba.core.codegen import get_host_cpu_features
from test_bands import distributions, drawn_level, frozen_prior, same

from source import fused
from utils.arithmetic import dense, passes, products
from utils.arithmetic.crew import in_tiles
from utils.arithmetic.passes import INT16_MAX, SAMPLE_MAX, WIDE_MAX

pytestmark = pytest.mark.skipif(not dense.available(), reason="a processor without AVX-512 VNNI")

LAYERS = "int8-convolution"
# Those of processors that have vectors of products of bytes, but no tiles.
WITHOUT_TILES = ",".join(
    f"-{name[1:]}" if name.startswith("+amx") else name for name in get_host_cpu_features().split(",")
)


def as_map(x):
    """A map (H, W, C) with what `convolve` may read beyond it."""
    out = dense.room(*x.shape)
    out[...] = x
    return out


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (2, 31), (1, 33), (5, 70)])
@pytest.mark.parametrize(
    "shape", [(16, 16, 3, 3), (48, 48, 1, 1), (40, 20, 1, 1), (7, 24, 1, 1), (144, 48, 3, 3)]
)
def test_a_layer_and_what_comes_after_it(shape, size, ends):
    (outputs, channels, taps, _), (height, width) = shape, size
    layer = narrow(shape, 1, ends)
    ours = fused._dense(layer)
    q = drawn((1, height + taps - 1, width + taps - 1, channels), 0, 255, 2, ends, torch.uint8)
    with computed(LAYERS):
        wanted = layer.convolve(q)
    lanes = -(-outputs // dense.LANES) * dense.LANES
    words, bytes_ = np.empty((height, width, lanes), np.int16), dense.room(height, width, lanes)
    source = as_map(q[0].numpy())
    window = 0, height, 0, width
    dense.convolve(source, window, ours, dense.WORDS, words, ours, bytes_, 0)
    assert np.array_equal(words[..., :outputs], wanted[0].numpy())
    if outputs % dense.LANES:
        return
    # what the next layer reads, within a border, alone; then of sums, which stay
    following = narrow((4, outputs, 1, 1), 3, ends)
    for kind in (dense.BYTES_ALONE, dense.BOTH):
        ground = drawn((1, height, width, outputs), -INT16_MAX, INT16_MAX, 4, ends)
        words[...] = ground[0].numpy()
        out = dense.room(height + 2, width + 2, outputs)
        out[...] = 99
        dense.convolve(source, window, ours, kind, words, fused._dense(following), out, 1)
        with computed(LAYERS):
            y = layer.convolve(q, ground) if kind == dense.BOTH else wanted
            read = following.quantise(y)[0].numpy()
        assert np.array_equal(words, (y if kind == dense.BOTH else ground)[0].numpy())
        assert np.array_equal(out[1:-1, 1:-1], read)
        assert (np.delete(out.sum(2), np.s_[1:-1], 0) == 99 * outputs).all()
        dense.replicate(out)
        assert np.array_equal(out, np.pad(read, ((1, 1), (1, 1), (0, 0)), "edge"))


@pytest.mark.parametrize(
    "window", [(0, 4, 3, 60), (1, 3, 20, 37), (2, 4, 69, 70), (3, 3, 0, 70), (0, 4, 9, 9)]
)
def test_a_window_of_a_layer(window):
    layer, following = narrow((48, 16, 3, 3)), fused._dense(narrow((4, 48, 1, 1)))
    q = as_map(drawn((6, 72, 16), 0, 255, 2, dtype=torch.uint8).numpy())
    inside, maps = (slice(*window[:2]), slice(*window[2:])), []
    for wanted in ((0, 4, 0, 70), window):
        words, out = np.full((4, 70, 48), 7, np.int16), dense.room(6, 72, 48)
        out[...] = 99
        dense.convolve(q, wanted, fused._dense(layer), dense.BOTH, words, following, out, 1)
        inner = out[1:-1, 1:-1]
        assert out.astype(int).sum() - inner.astype(int).sum() == 99 * (out.size - inner.size)
        maps.append((words, inner))
    for (whole, part), ground in zip(zip(*maps), (7, 99)):
        assert np.array_equal(part[inside], whole[inside])
        part[inside] = ground
        assert (part == ground).all()


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (2, 40)])
@pytest.mark.parametrize("channels, outputs", [(3, 16), (12, 48), (9, 3), (16, 144)])
def test_a_wide_layer(channels, outputs, size, ends):
    few = outputs < dense.LANES
    layer = wide((outputs, channels, 3, 3), 1, ends, WIDE_MAX, -SAMPLE_MAX, SAMPLE_MAX - 1)
    x = drawn((*size, channels), -(2**15), 2**15 - 1, 2, ends)
    wanted = oracle.wide(layer, x[None])[0]
    words, means = np.zeros((*size, outputs), np.int16), np.zeros((*size, outputs), np.int32)
    fused._wide(x.numpy(), fused._wide_of(layer), (0, size[0], 0, size[1]), not few, words, means)
    if few:
        assert np.array_equal(means, wanted.numpy())
    else:
        assert np.array_equal(words, passes.compand(wanted.int()).numpy())


def test_wide_layers_of_many_channels_are_left_alone():
    layer = wide((16, products.FEW_CHANNELS + 1, 3, 3))
    assert fused._wide_of(layer) is None and not fused.serves(torch.zeros(1, dtype=torch.int16), [], layer)


@pytest.mark.parametrize("options", [{}, {"width": 32, "blocks": 2, "components": 6}, {"differences": True}])
@pytest.mark.parametrize(
    "size, side", [((2, 2), 128), ((7, 12), 128), ((33, 66), 128), ((33, 66), 5), ((40, 150), 128)]
)
def test_levels_are_those_of_layers_in_turn(size, side, options, monkeypatch):
    """In tiles, too, of which layers compute no more than what the next ones see."""
    prior, level = frozen_prior(0.1, **{"width": 16} | options), drawn_level(*size)
    monkeypatch.setitem(in_tiles.__init__.__kwdefaults__, "side", side)
    calls = []
    for name in ("look", "features", "mixture"):
        plain = getattr(fused, name)
        monkeypatch.setattr(
            fused, name, lambda *args, plain=plain, name=name: calls.append(name) or plain(*args)
        )
    with computed():
        ours = distributions(prior, *level, size)
    assert set(calls) == {"look", "features", "mixture"}
    calls.clear()
    with computed(LAYERS):
        layers = distributions(prior, *level, size)
    with computed(compiled=False):
        tensors = distributions(prior, *level, size)
    assert not calls
    assert all(map(same, ours, layers)) and all(map(same, ours, tensors))


@pytest.mark.parametrize("options", [{"width": 24}, {"blocks": 0}])
def test_others_are_computed_layer_by_layer(options):
    prior, size = frozen_prior(0.1, **{"width": 16} | options), (9, 12)
    with computed():
        ours = distributions(prior, *drawn_level(*size), size)
    with computed(LAYERS):
        layers = distributions(prior, *drawn_level(*size), size)
    assert all(map(same, ours, layers))
    assert not fused.serves(torch.zeros(1, dtype=torch.int16), prior.trunk, prior.enter)


PROCESS = """
import sys
sys.path[:0] = "tests", "."
from test_bands import drawn_level, frozen_prior
from source.prior import parts_in_turn
from utils.arithmetic import dense
prior = frozen_prior(0.05, width=48, blocks=2, components=5)
level = drawn_level(35, 77)
fields = [f for _, d, _ in parts_in_turn(prior, level[0], 0, level[1]) for f in d]
print(dense.available(), dense.has_amx(), sum(hash(f.numpy().tobytes()) for f in fields))
"""


def test_vectors_and_tiles_and_neither_give_the_same():
    """Of this processor, of one without its tiles, and layer by layer."""
    answers = []
    environments = {}, {"NUMBA_CPU_FEATURES": WITHOUT_TILES}, {products.ENVIRONMENT: "float32-product"}
    for environment in environments:
        environment = os.environ | {"PYTHONHASHSEED": "0"} | environment
        command = [sys.executable, "-c", PROCESS]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert not done.returncode, done.stderr
        answers.append(done.stdout.split())
    assert answers[1][:2] == ["True", "False"]
    assert len({numbers for *_, numbers in answers}) == 1


@pytest.mark.parametrize("features", ["", "+avx2,+avx512f,+avx512bw"])
def test_processors_without_are_told(features, monkeypatch):
    monkeypatch.setattr(dense, "CPU_FEATURES", features)
    assert not dense.available.__wrapped__() and not dense.has_amx()


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch):
    monkeypatch.setattr(dense, "packed", lambda weight, packed=dense.packed: packed(-weight))
    assert not dense.available.__wrapped__()
    monkeypatch.setattr(dense, "packed", lambda weight: 1 / 0)
    assert not dense.available.__wrapped__()


@pytest.mark.skipif(not dense.has_amx(), reason="a processor without AMX")
def test_without_leave_there_are_no_tiles(monkeypatch):
    monkeypatch.setattr(dense, "REQUEST", -1)
    assert not dense.available.__wrapped__()
