"""Corrections: pictures of their own noise and origin cost less, and come back from every decoder."""

import numpy as np
import pytest
import torch
from conftest import make_wild, noise
from PIL import Image

import source.bands
from flow.codec.container import FLOW, pack, read_head, unpack
from flow.codec.stream import DEFAULT, Settings, can_correct, decode, decode_levels, encode
from flow.model import build
from source import corrections
from source.corrections import (
    ALL,
    CLASSES,
    NOTHING,
    RESCALED,
    SAME,
    SCALES_ALONE,
    Corrigible,
    Known,
    Set,
    choose,
    read,
)
from source.rans import Decoder, Encoder, Truncated
from source.tables import Mixture
from tests.decoder import Model
from tests.decoder import decode as decode_by_the_page

SMALL = {"prior": "bands", "repeat": 0, "HUE": True, "width": 6, "components": 2}
CORRECTED = DEFAULT._replace(corrected=True)


def nudged(**options):
    """A model near its start, whose means are those of the coarse band, as before any training."""
    return nudged_in_real_numbers(**options).freeze()


def nudged_in_real_numbers(**options):
    """The same before it is frozen."""
    torch.manual_seed(0)
    model = build(SMALL | options)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn(p.shape)
    return model


@pytest.fixture
def little(monkeypatch):
    """All levels are corrected, in strips of three rows, two of them or more to a group."""
    monkeypatch.setattr(source.bands, "STRIP", 3)
    monkeypatch.setattr(corrections, "LEAST", 1)
    monkeypatch.setattr(corrections, "GROUP", 128)


def smooth(height, width, seed=0):
    """Images that a straight line through their neighbours foretells, and some grain."""
    grain = noise(2, 3, height, width, seed=seed) / 64
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = 60 * torch.sin(rows / 9) + 50 * torch.cos(columns / 7)
    return (128 + waves + grain).round().clamp(0, 255)


def drawn_mixtures(count, shift, octaves, seed=0):
    """Mixtures, and values that lie `shift` steps from them, with scales 2^octaves of theirs."""
    rng = np.random.default_rng(seed)
    mean = rng.integers(-5000, 5000, (1, count)).astype(np.int32)
    scale = rng.integers(150, 320, (1, count)).astype(np.int32)
    u = rng.random(count)
    width = 2 ** (scale[0] / 32 - 6 + octaves)
    values = np.rint(mean[0] / 64 + shift + width * np.log(u / (1 - u))).astype(np.int32)
    return Corrigible(np.ones_like(mean), mean, scale), values


@pytest.mark.parametrize("octaves", [-0.5, 0.0, 0.25, 1.0])
@pytest.mark.parametrize("shift", [0, 3])
def test_what_is_wrong_is_found(shift, octaves):
    mixtures, values = drawn_mixtures(20_000, shift, octaves)
    features = np.full((1, len(values)), 64, np.int32)
    kind, found = choose([(mixtures, features, values)], DEFAULT[:2], 2**14, Set.zero(1))
    # a quarter of an octave is left to mixtures that adapt
    found_wrong = shift or abs(octaves) > 0.25
    assert kind == (ALL if shift else SCALES_ALONE if found_wrong else SAME)
    if shift:
        assert found.coefficients[0] == pytest.approx(64 * shift, abs=20)
    if found_wrong:
        # eighths of an octave, in the classes that there are
        classes = sorted(set(mixtures.classes))
        assert np.abs(found.scales[classes] / 8 - octaves).max() <= 0.13
    assert found_wrong or not found.scales.any()
    # what was right for the group before is kept, what was not is done away with
    again, same = choose([(mixtures, features, values)], DEFAULT[:2], 2**14, found)
    assert again == SAME and all(map(np.array_equal, same, found))
    other = Set(np.full(CLASSES, 8, np.int32), found.coefficients)
    assert found_wrong or choose([(mixtures, features, values)], DEFAULT[:2], 2**14, other)[0] == NOTHING


@pytest.mark.parametrize("nbins, precision", [(4096, 24), (16, 24), (300, 18)])
def test_estimated_costs_are_about_those_of_the_coder(nbins, precision):
    rng, shape = np.random.default_rng(0), (3, 3000)
    mean = (rng.integers(-5000, 5000, shape[1]) + rng.integers(-300, 300, shape)).astype(np.int32)
    scale, weight = rng.integers(0, 513, shape).astype(np.int32), rng.integers(0, 999, shape).astype(np.int32)
    weight[0] += 1
    far = np.exp(rng.normal(0, 2, shape[1])) * rng.choice([-1, 1], shape[1])
    values = np.rint(mean[0] / 64 + 2 ** (scale[0] / 32 - 6) * far).astype(np.int32)
    mixtures, settings = Corrigible(weight, mean, scale), (nbins, precision)
    costs = corrections._costs(mixtures.fields, mixtures, values, settings)
    fields = Mixture(*mixtures.fields, *settings).fields
    outside = (values < fields.low) | (values >= fields.low + nbins)
    assert outside.any()
    for j, tried in enumerate(corrections.TRIED):
        shifted = Mixture(weight, mean, scale + corrections.SCALE_STEP * tried, *settings)
        _, frequency = shifted.intervals(values)
        first = np.arange(len(values)) + 3 * (np.cumsum(outside) - outside)  # three more for each outside
        bits = precision - np.log2(frequency[first])
        exact = np.bincount(mixtures.classes, bits, CLASSES)
        # intervals far out are few slots wide, to a whole number, which the estimates are not
        assert np.abs(costs[:, j] - exact).max() < 2e-3 * exact.max()


def test_corrections_follow_their_formulas():
    mixtures, _ = drawn_mixtures(500, 0, 0.0)
    rng = np.random.default_rng(1)
    features = rng.integers(-1000, 1000, (3, 500)).astype(np.int32)
    scales, coefficients = rng.integers(-8, 9, CLASSES), rng.integers(-64, 65, 3)
    weight, mean, scale = Set(scales, coefficients).apply(mixtures, lambda: features)
    wanted = mixtures.fields[1] + np.floor(coefficients @ features / 64 + 0.5)
    assert np.array_equal(mean, wanted) and weight is mixtures.fields[0]
    octave = np.clip((mixtures.fields[2][0] - 144) // 32, 0, 7)
    assert np.array_equal(scale[0], mixtures.fields[2][0] + 4 * scales[octave])


@pytest.mark.parametrize("kind", range(5))
def test_sets_come_back(kind):
    rng, encoder = np.random.default_rng(0), Encoder()
    before, new = (Set(rng.integers(-8, 9, CLASSES), rng.integers(-4096, 4097, 20)) for _ in range(2))
    zero = Set.zero(20)
    given = {
        SAME: before,
        ALL: new,
        RESCALED: Set(new.scales, before.coefficients),
        SCALES_ALONE: Set(new.scales, zero.coefficients),
        NOTHING: zero,
    }[kind]
    given.push(kind, encoder)
    decoder, reading, symbols = Decoder(encoder.finish()), read(before), None
    while True:
        try:
            symbols = decoder.pop(reading.send(symbols))
        except StopIteration as done:
            found = done.value
            break
    decoder.finish()
    assert all(map(np.array_equal, found, given))


def test_features_are_of_what_is_known():
    rng = np.random.default_rng(0)
    coarse, sizes = rng.integers(0, 256, (5, 4, 3)), [(5, 3), (4, 4), (4, 3)]
    known, bands = Known(coarse, sizes), [rng.integers(0, 256, (*size, 3)) for size in sizes]
    for k in (0, 1):
        for c in range(3):
            place = corrections.Place(k, c, 0, *sizes[k])
            known.learn(place, bands[k][..., c], np.full(sizes[k], 64 * 100).reshape(-1))
    place = corrections.Place(2, 1, 2, 2, 3)
    centre = rng.integers(0, 2**14, 6).astype(np.int32)
    features = known.features(place, centre).reshape(-1, 2, 3)
    assert len(features) == known.count(place) == 9 + 10 + 1 + 2 + 1
    for y in range(2):
        for x in range(3):
            here, m = coarse[2 + y, x, 1], centre[3 * y + x]
            around = [
                64 * (coarse[min(max(2 + y + dy, 0), 4), min(max(x + dx, 0), 3), 1] - here)
                for dy, dx in corrections.AROUND
            ]
            crosses = [
                64 * band[min(max(2 + y + dy, 0), len(band) - 1), min(max(x + dx, 0), band.shape[1] - 1), 1]
                - m
                for band in bands[:2]
                for dy, dx in corrections.CROSS
            ]
            errors = [64 * (band[2 + y, x, 1] - 100) for band in bands[:2]]
            assert features[:, y, x].tolist() == [*around, 64 * here - m, *crosses, 0, *errors, 64]


@pytest.mark.parametrize("size", [(40, 50), (17, 64), (1, 30), (30, 1), (7, 5)])
@pytest.mark.parametrize(
    "options", [{}, {"ownLevels": 1, "differences": True}, {"lifting": "linear", "repeat": 1}]
)
def test_images_come_back(little, size, options):
    model, images = nudged(**options), smooth(*size)
    streams = [encoder.finish() for encoder in encode(model, images, CORRECTED)]
    assert torch.equal(
        decode(model, [Decoder(stream) for stream in streams], size, CORRECTED).float(), images
    )
    # one by one, and of every level as far as it is there
    for image, stream in zip(images, streams):
        assert encode(model, image[None], CORRECTED)[0].finish() == stream
        decoder = Decoder(stream)
        assert torch.equal(decode(model, [decoder], size, CORRECTED)[0].float(), image)
        decoder.finish()
        for part in (len(stream) // 3, len(stream) - 5):
            *_, (_, band, complete) = decode_levels(
                model, [Decoder(stream[:part])], size, CORRECTED, partial=True
            )
            assert band.shape[-2:] == size and not complete
            with pytest.raises(Truncated):
                decode(model, [Decoder(stream[:part])], size, CORRECTED)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_files_cost_less_and_come_back(mode, by_flow, monkeypatch):
    monkeypatch.setattr("flow.codec.container.can_adapt", lambda *_: False)  # which would gain the same here
    model = nudged()
    picture = Image.fromarray(smooth(150, 170)[0].permute(1, 2, 0).byte().numpy()).convert(mode)
    assert can_correct(model, (150, 170)) and not can_correct(model, (126, 126))
    plain, corrected = (pack(picture, model, "00" * 32, effort=effort) for effort in (1, 5))
    assert [read_head(data).method for data in (plain, corrected)] == [FLOW, FLOW]
    assert read_head(corrected).settings.corrected and not read_head(plain).settings.corrected
    assert len(corrected) < 0.98 * len(plain)
    for data in (plain, corrected):
        assert unpack(data, model, "00" * 32).tobytes() == picture.tobytes()
    best = pack(picture, model, "00" * 32, effort=9)
    assert len(best) < len(corrected) + 50 and unpack(best, model, "00" * 32).tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(130, 200), (260, 127)])
def test_the_page_is_enough(mode, size, by_flow):
    from flow.folder import identity

    own = {"ownLevels": 1, "differences": True}
    frozen = nudged(**own)
    model = Model({n: t.numpy() for n, t in frozen.state_dict().items()}, SMALL | own)
    picture = Image.fromarray(smooth(*size)[0].permute(1, 2, 0).byte().numpy()).convert(mode)
    data = pack(picture, frozen, identity(frozen, model.options))
    assert read_head(data).settings.corrected
    assert np.array_equal(np.squeeze(decode_by_the_page(data, model)[0]), np.asarray(picture))


def test_wild_models_and_wild_symbols(little):
    model = make_wild(build(SMALL), 0.3).freeze()
    images = noise(1, 3, 20, 30)
    (encoder,) = encode(model, images, Settings(16, 16, corrected=True))
    assert torch.equal(
        decode(model, [Decoder(encoder.finish())], (20, 30), Settings(16, 16, corrected=True)).float(), images
    )
    junk = np.random.default_rng(0).bytes(4000)
    for first in (b"\x3f", b"\x7f", b"\xbf"):
        list(decode_levels(model, [Decoder(first + b"\xff" + junk)], (20, 30), CORRECTED, partial=True))
