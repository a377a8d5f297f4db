"""The codec: what is decoded is what was encoded, and the bytes are the same whatever computes them."""

import hashlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flow.codec.stream import DEFAULT, Settings, decode, decode_levels, encode, reduced
from flow.folder import freeze, identity, open_frozen, write_options
from flow.model import build
from source.rans import Decoder, Truncated
from tests.conftest import make_wild, noise
from utils.arithmetic.integers import STEPS, bits_per_dimension, centre
from utils.files import save_tensors

OPTIONS = {
    "paper": dict(hchnl=8, HUE=True),
    "rgb": dict(hchnl=8, repeat=2, nhidden=2, clamp=0.2),
    "simple": dict(hchnl=4, simplePrior=True),
    "legall": dict(hchnl=4, lifting="legall"),
    "haar": dict(hchnl=4, lifting="haar", simplePrior=True, HUE=True),
    "heavy": dict(hchnl=4, heavy=True, size=16),
    "no couplings": dict(hchnl=4, repeat=0),
    "bands": dict(prior="bands", width=6, components=2, repeat=0, HUE=True),
    "bands, couplings": dict(prior="bands", width=5, components=3, hchnl=4),
}
PRIORS = ("paper", "bands")


def frozen(name, std=0.2):
    return make_wild(build(OPTIONS[name]), std).freeze()


def coded(model, images, settings=DEFAULT):
    return [encoder.finish() for encoder in encode(model, images, settings)]


def decoded(model, streams, size, **how):
    decoders = [Decoder(stream) for stream in streams]
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


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0.01, 0.3, 3.0]))
def test_any_size_and_weights(height, width, seed, std):
    model, images = frozen("paper", std), noise(1, 3, height, width, seed=seed)
    assert torch.equal(decoded(model, coded(model, images), (height, width))[0].float(), images)


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
    back, decoders = decoded(model, unsealed, (32, 32))
    assert torch.equal(back.float(), images)
    for decoder in decoders:
        assert decoder.finish(sealed=False) is None


def test_frozen_likelihood_is_near_the_float_model(photo):
    model = make_wild(build(OPTIONS["paper"]), 0.05)
    x = photo[..., :64, :64]
    exact, fixed = (m.log_prob(x).item() for m in (model, model.freeze()))
    assert fixed == pytest.approx(exact, rel=2e-3)


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


@pytest.mark.parametrize("threads, onednn", [(1, True), (2, False), (4, True)])
def test_same_bytes_in_a_fresh_process(folder, threads, onednn):
    model, _, _ = open_frozen(folder)
    expected = hashlib.sha256(b"".join(coded(model, noise(5, 3, 64, 48)))).hexdigest()
    command = [sys.executable, "-c", PROCESS, str(folder), str(threads), str(onednn)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected


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


def test_reduced_images_have_the_colours_of_the_image(photo):
    """Even where the wavelet shifts its coarse band: here by 40 steps a level."""
    model = build(OPTIONS["legall"])
    with torch.no_grad():
        model.detail.mean.last.bias.fill_(centre(0))
        model.pyramid.levels[0].lifts[1].bias += 20 / STEPS
    model, x = model.freeze(), photo[..., :65, :46].to(torch.uint8)
    band = model.from_images(x)
    for level in range(1, 4):
        band, _ = model.pyramid.level(level - 1).split(band)
        small = reduced(model, band, level, (65, 46)).double()
        scale = 2**level
        crop = x[..., :64, : 46 // scale * scale].double()
        means = torch.nn.functional.avg_pool2d(crop, scale)
        assert small.shape[-2:] == (-(-65 // scale), -(-46 // scale))
        assert (small[..., : means.shape[-2], : means.shape[-1]] - means).abs().mean() < 12
        assert (band.mean() - means.mean()).abs() > 30 * level


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
