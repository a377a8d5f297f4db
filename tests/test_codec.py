"""The codec: what is decoded is what was encoded, and the bytes are the same whatever computes them."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flow.codec.stream import DEFAULT, Settings, decode, decode_levels, encode
from flow.folder import freeze, identity, open_frozen, write_options
from flow.model import build
from source.rans import Decoder, Truncated
from tests.conftest import make_wild, noise
from tests.integers import WORKING, computed
from utils.arithmetic import products
from utils.arithmetic.crew import in_tiles
from utils.arithmetic.integers import bits_per_dimension
from utils.files import save_tensors

OPTIONS = {
    "paper": dict(hchnl=8, HUE=True),
    "rgb": dict(hchnl=8, repeat=2, nhidden=2, clamp=0.2),
    "simple": dict(hchnl=4, simplePrior=True),
    "legall": dict(hchnl=4, lifting="legall"),
    "wavelet": dict(hchnl=4, lifting="wavelet", prior="bands", width=4, HUE=True),
    "linear": dict(lifting="linear", prior="bands", width=4, HUE=True),
    "linear, seen around 0": dict(lifting="linear", prior="bands", width=4, HUE=True, differences=True),
    "luma": dict(lifting="luma", prior="bands", width=4, HUE=True),
    "luma, seen around 0": dict(lifting="luma", prior="bands", width=4, HUE=True, differences=True),
    "haar": dict(hchnl=4, lifting="haar", simplePrior=True, HUE=True),
    "heavy": dict(hchnl=4, heavy=True, size=16),
    "no couplings": dict(hchnl=4, repeat=0),
    "bands": dict(prior="bands", width=6, components=2, repeat=0, HUE=True),
    "differences": dict(prior="bands", width=6, components=2, repeat=0, HUE=True, differences=True),
    "bands, couplings": dict(prior="bands", width=5, components=3, hchnl=4),
}
PRIORS = ("paper", "bands")


def frozen(name, std=0.2):
    return make_wild(build(OPTIONS[name]), std).freeze()


def coded(model, images, settings=DEFAULT):
    return [encoder.finish() for encoder in encode(model, images, settings)]


def decoded(model, streams, size, sealed=True, **how):
    decoders = [Decoder(stream, sealed) for stream in streams]
    images = decode(model, decoders, size, **how)
    return images, decoders


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 9), (16, 16), (13, 22)])
def test_decodes_what_it_encoded(name, size):
    model, images = frozen(name), noise(3, 3, *size)
    images[1], images[2, :, ::2] = 255, 0
    streams = coded(model, images)
    back, decoders = decoded(model, streams, size)
    assert torch.equal(back.float(), images)
    for decoder in decoders:
        decoder.finish()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0.01, 0.3, 1.0]))
def test_any_size_and_weights(height, width, seed, std):
    images = noise(1, 3, height, width, seed=seed)
    model = make_wild(build(OPTIONS["paper"]), std).freeze(noise(2, 3, 16, 16))
    assert torch.equal(decoded(model, coded(model, images), (height, width))[0].float(), images)


@pytest.mark.parametrize("name", ["paper", "rgb", "legall", "heavy", "bands"])
def test_weights_too_wild_to_be_frozen_are_refused_in_one_line(name):
    model = make_wild(build(OPTIONS[name]), 30.0)
    with pytest.raises(ValueError, match="these weights are too large to be frozen") as caught:
        model.freeze(noise(2, 3, 16, 16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [Settings(16, 16), Settings(4096, 16), Settings(2, 24)])
def test_any_settings(settings):
    model, images = frozen("paper"), noise(2, 3, 8, 8)
    back, _ = decoded(model, coded(model, images, settings), (8, 8), settings=settings)
    assert torch.equal(back.float(), images)


def test_size_is_what_theory_says():
    model, images = frozen("paper", 0.02), noise(4, 3, 32, 32)
    theory = bits_per_dimension(-model.log_prob(images).mean().item(), 3072)
    actual = sum(map(len, coded(model, images))) * 8 / images.numel()
    assert theory - 0.01 < actual < theory + 0.01 + 32 / 3072
    unsealed = [encoder.finish(seal=None) for encoder in encode(model, images)]
    assert sum(map(len, unsealed)) < sum(map(len, coded(model, images)))
    actual = sum(map(len, unsealed)) * 8 / images.numel()
    assert theory - 0.01 < actual < theory + 0.01 + 24 / 3072
    back, decoders = decoded(model, unsealed, (32, 32), sealed=False)
    assert torch.equal(back.float(), images)
    for decoder in decoders:
        assert decoder.finish() is None


def test_frozen_likelihood_is_near_the_float_model(photo):
    model = make_wild(build(OPTIONS["paper"]), 0.05)
    x = photo[..., :64, :64]
    exact, fixed = (m.log_prob(x).item() for m in (model, model.freeze(x)))
    assert fixed == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("name", OPTIONS)
def test_freezing_leaves_the_model_as_it_is_and_gives_integers(name):
    model, images = make_wild(build(OPTIONS[name]), 0.2), noise(9, 3, 16, 16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = [p.requires_grad for p in model.parameters()]
    fixed = model.freeze(images.byte())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == trained
    assert not list(fixed.parameters()) and not fixed.training
    assert not any(buffer.is_floating_point() for buffer in fixed.buffers())
    assert (fixed.dtype, fixed.device) == (torch.float32, images.device)
    # without images, the same names and shapes, to be filled in
    empty = build(OPTIONS[name]).freeze()
    empty.load_state_dict(fixed.state_dict())
    assert coded(empty, images) == coded(fixed, images)


@pytest.mark.parametrize("name", ["paper", "bands"])
def test_ranges_observed_are_those_of_all_images(name):
    """However many of them are looked at together."""
    model, images = make_wild(build(OPTIONS[name]), 0.2), noise(9, 3, 16, 16)
    images[:-1] //= 8
    fixed, other = (model.freeze(x).state_dict() for x in (images, images.flip(0)))
    assert all(torch.equal(fixed[key], other[key]) for key in fixed)
    guessed, fewer = model.freeze().state_dict(), model.freeze(images[:-1]).state_dict()
    for different in (guessed, fewer):
        assert any(not torch.equal(fixed[key], different[key]) for key in fixed)


@pytest.mark.parametrize("name", PRIORS)
def test_same_bytes_for_every_batch_and_layout(name):
    model, images = frozen(name), noise(14, 3, 16, 12)
    streams = coded(model, images)
    assert [stream for image in images for stream in coded(model, image[None])] == streams
    assert coded(model, images[:7]) + coded(model, images[7:]) == streams
    assert coded(model, images.contiguous(memory_format=torch.channels_last)) == streams
    assert coded(model, images.to(torch.uint8)) == streams
    one_by_one = torch.cat([decoded(model, [stream], (16, 12))[0] for stream in streams])
    assert torch.equal(one_by_one.float(), images)


@pytest.mark.parametrize("name", OPTIONS)
def test_same_bytes_by_every_way_to_compute(name, monkeypatch):
    model, images = frozen(name), noise(2, 3, 33, 26)
    if name == "heavy":
        images = images[..., :16, :16]
    streams = coded(model, images)
    for way in dict.fromkeys([*WORKING[False], *WORKING[True]]):
        with computed(way):
            assert coded(model, images) == streams
    for cached in (1, 5000):
        with computed(None, cached=cached):
            assert coded(model, images) == streams
    with computed(None, compiled=False):
        assert coded(model, images) == streams
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert coded(model, images) == streams
    monkeypatch.setitem(in_tiles.__init__.__kwdefaults__, "side", 5)
    assert coded(model, images) == streams


@pytest.mark.parametrize("name", ["paper", "rgb", "legall", "bands", "bands, couplings"])
def test_same_bytes_for_every_number_of_threads(name):
    """Levels, tiles and strips meet in any order."""
    model, images = frozen(name), noise(1, 3, 150, 290)
    streams = coded(model, images)
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            for _ in range(2):
                assert coded(model, images) == streams
            assert torch.equal(decoded(model, streams, (150, 290))[0].float(), images)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


PROCESS = """
import hashlib, sys, torch
from flow.codec.stream import encode
from flow.folder import open_frozen
from tests.conftest import noise
torch.set_num_threads(int(sys.argv[2]))
torch.backends.mkldnn.enabled = sys.argv[3] == "True"
model, _, _ = open_frozen(sys.argv[1])
streams = [e.finish() for e in encode(model, noise(5, 3, 64, 48))]
print(hashlib.sha256(b"".join(streams)).hexdigest())
"""


@pytest.fixture(params=PRIORS)
def folder(request, tmp_path):
    model = make_wild(build(OPTIONS[request.param]), 0.2)
    write_options(tmp_path, OPTIONS[request.param])
    tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
    save_tensors(tmp_path / "savings" / "best_test.safetensors", tensors, {})
    return tmp_path


@pytest.mark.parametrize(
    ("threads", "onednn", "environment"),
    [
        (2, False, {}),
        (4, True, {}),
        (2, True, {"ATEN_CPU_CAPABILITY": "default"}),
        (1, True, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        (1, True, {"ONEDNN_MAX_CPU_ISA": "SSE41"}),
        (1, True, {products.ENVIRONMENT: "int8-product"}),
    ],
)
def test_same_bytes_in_a_fresh_process(folder, threads, onednn, environment):
    """Also on processors that lack what this one has."""
    model, _, _ = open_frozen(folder)
    expected = hashlib.sha256(b"".join(coded(model, noise(5, 3, 64, 48)))).hexdigest()
    command = [sys.executable, "-c", PROCESS, str(folder), str(threads), str(onednn)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("name", PRIORS)
def test_coarse_to_fine(name, photo):
    """Leaving out the finest levels gives the coarse bands, from the first part of the stream."""
    model, x = frozen(name, 0.02), photo[..., :64, :48]
    (stream,) = coded(model, x)
    coarse = model.from_images(x)
    for skip in range(1, 4):
        coarse, _ = model.pyramid.level(skip - 1).split(coarse)
        for part in (stream, stream[: len(stream) * 2 // 3]):
            *_, (level, band, complete) = decode_levels(model, [Decoder(part)], (64, 48), skip=skip)
            assert (level, complete) == (skip, True) and torch.equal(band, coarse)


@pytest.mark.parametrize("name", PRIORS)
def test_cut_stream(name, photo):
    model, x = frozen(name, 0.02), photo[..., :64, :48]
    (stream,) = coded(model, x)
    cut = stream[: len(stream) // 2]
    with pytest.raises(Truncated):
        decoded(model, [cut], (64, 48))
    part, _ = decoded(model, [cut], (64, 48), partial=True)
    assert part.shape == x.shape and not torch.equal(part.float(), x)
    none, _ = decoded(model, [stream[:3]], (64, 48), partial=True)
    error = [(y.float() - x).abs().mean() for y in (part, none)]
    assert error[0] < error[1]


def test_frozen_weights_are_made_once_and_checked(folder):
    _, options, name = open_frozen(folder)
    path = freeze(folder)
    made = path.stat().st_mtime_ns
    model, _, again = open_frozen(folder)
    assert again == name == identity(model, options) and path.stat().st_mtime_ns == made
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        open_frozen(folder)


def test_transforms_that_leave_what_float32_holds_are_refused():
    model = build({"repeat": 64, "hchnl": 1, "nhidden": 0})
    for net in model.pyramid.level(0).networks:
        torch.nn.init.constant_(net.last.bias, 300.0)
    with pytest.raises(ValueError, match="too large"):
        encode(model.freeze(), noise(1, 3, 64, 64))


def test_weights_loaded_into_a_model_in_use_count():
    first, second, x = frozen("bands", 0.1), frozen("bands", 0.3), noise(1, 3, 16, 16)
    before, wanted = coded(first, x), coded(second, x)
    first.load_state_dict(second.state_dict())
    assert coded(first, x) == wanted != before
