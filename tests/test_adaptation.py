"""Adaptation: mixtures follow the errors around, the same way in encoder and decoder, in pieces and cut."""

import numpy as np
import pytest
import torch
from conftest import make_wild, noise
from PIL import Image
from test_corrections import SMALL, nudged, smooth

import source.bands
from flow.codec.container import pack, read_head, unpack
from flow.codec.feed import Reader
from flow.codec.stream import DEFAULT, Settings, can_adapt, decode, decode_levels, encode
from flow.model import build
from source import adaptation
from source.adaptation import Adaptation
from source.corrections import Place
from source.rans import Decoder, Encoder, Truncated
from source.tables import Mixture
from tests.decoder import Adapting, Model, shares_of
from tests.decoder import decode as decode_by_the_page

ADAPTIVE = DEFAULT._replace(adaptive=True)
WEIGHING = ADAPTIVE._replace(weighing=True)
NEARBY = DEFAULT.adapting()
# what of adaptation there is: weighing, nearby
KINDS = (False, False), (True, False), (True, True)


@pytest.fixture
def little(monkeypatch):
    """All levels adapt, in strips of three rows."""
    monkeypatch.setattr(source.bands, "STRIP", 3)
    monkeypatch.setattr(adaptation, "LEAST", 1)


def drawn(height, width, error, seed=0):
    """Mixtures of two and values that lie error(rng, (height, width)) scales beside their middle."""
    rng, count = np.random.default_rng(seed), height * width
    middle = rng.integers(-3000, 9000, count)
    mean = np.stack([middle - 40, middle + 40]).astype(np.int32)
    scale = np.full((2, count), 256, np.int32) + rng.integers(-30, 30, count).astype(np.int32)
    sizes = 2.0 ** (scale[0] / 32 - 6)
    values = np.rint(middle / 64 + sizes * error(rng, (height, width)).reshape(-1)).astype(np.int32)
    return (np.ones_like(mean), mean, scale), values


def logistic(rng, size):
    u = rng.uniform(1e-6, 1 - 1e-6, size)
    return np.log(u / (1 - u))


def bits(fields, values, size, weighing=True, nearby=False):
    """Without adaptation, and with."""
    encoders = Encoder(), Encoder()
    place = Place(0, 0, 0, *size)
    encoders[0].push(Mixture(*fields), values)
    kind = weighing, nearby
    encoders[1].push(Adaptation(size, (0, 1, 2), 3, *kind).mixture(place, fields, DEFAULT[:2]), values)
    return [encoder.bits for encoder in encoders]


def test_errors_that_go_on_cost_less():
    def drifting(rng, size):
        return np.cumsum(logistic(rng, size), 1) * 0.2 + logistic(rng, size)

    before, after = bits(*drawn(100, 120, drifting), (100, 120))
    assert after < 0.85 * before


def test_places_that_are_rough_cost_less():
    def patches(rng, size):
        rough = np.kron(rng.random((size[0] // 10, size[1] // 10)) < 0.2, np.ones((10, 10)))
        return logistic(rng, size) * np.where(rough, 3, 0.5)

    before, after = bits(*drawn(100, 120, patches), (100, 120))
    assert after < 0.96 * before


def test_what_is_right_already_costs_next_to_nothing():
    before, after = bits(*drawn(100, 120, logistic), (100, 120))
    assert after < 1.004 * before


def test_other_shapes_are_refused_before_anything_is_learned():
    fields, values = drawn(6, 7, logistic)
    adaptation_ = Adaptation((6, 7), (0, 1, 2), 3, True)
    mixture = adaptation_.mixture(Place(0, 0, 0, 6, 7), fields, DEFAULT[:2])
    for wrong in (values[:-1], np.append(values, 0), values.reshape(6, 7)):
        with pytest.raises(ValueError, match="symbols of shape"):
            mixture.intervals(wrong)
    memory = adaptation_.memory
    assert not any(
        part.any() for part in (memory.seen[0], memory.errors, memory.logits[0], memory.evidence[0])
    )


def test_bands_and_channels_before_are_known():
    """A channel whose errors are those of the one before, or of the band before, costs less."""
    size, adaptation_ = (60, 80), Adaptation((60, 80), (0, 1, 2), 3, True)
    fields, values = drawn(*size, lambda rng, size: 1.5 * logistic(rng, size))
    costs = []
    for band, channel in ((0, 0), (0, 1), (1, 0)):
        encoder = Encoder()
        encoder.push(adaptation_.mixture(Place(band, channel, 0, *size), fields, DEFAULT[:2]), values)
        costs.append(encoder.bits)
    assert costs[1] < 0.8 * costs[0] and costs[2] < 0.8 * costs[0]


def of_two(height, width, where, seed=0):
    """Mixtures of a narrow and a wide component, and values of either: of the wide one where(rng, size)."""
    rng, count = np.random.default_rng(seed), height * width
    scale = np.repeat([[224], [352]], count, 1).astype(np.int32)
    wide = where(rng, (height, width)).reshape(-1)
    values = np.rint(logistic(rng, count) * 2.0 ** (np.where(wide, 352, 224) / 32 - 6)).astype(np.int32)
    return (np.ones_like(scale), np.zeros_like(scale), scale), values


def test_textures_are_learned_where_they_are():
    """What foretells an error in one place misleads in the next, so that one filter for all is of no use."""

    def textures(rng, size):
        errors = logistic(rng, size)
        sign = np.kron(rng.choice((-1, 1), (size[0] // 25, size[1] // 25)), np.ones((25, 25)))
        for x in range(1, size[1]):
            errors[:, x] += 0.8 * sign[:, x] * errors[:, x - 1]
        return errors

    given = *drawn(100, 125, textures), (100, 125)
    assert bits(*given, True, True)[1] < 0.98 * bits(*given)[1]


def test_what_is_right_already_costs_little_more_where_it_is_learned_nearby():
    before, after = bits(*drawn(100, 120, logistic), (100, 120), True, True)
    assert after < 1.006 * before


def test_components_that_are_right_are_weighed_more():
    """Of a component that nothing comes from; of one that is right here and there, as those around tell."""

    def patches(rng, size):
        return np.kron(rng.random((size[0] // 10, size[1] // 10)) < 0.3, np.ones((10, 10))) > 0

    for where, most in ((lambda rng, size: np.zeros(size, bool), 0.9), (patches, 0.93)):
        given = *of_two(100, 120, where), (100, 120)
        (before, moved), (_, after) = bits(*given, False), bits(*given)
        assert after < most * before and after < 0.97 * moved


def test_components_that_are_too_narrow_are_widened():
    rng, count = np.random.default_rng(0), 12000
    scale = np.repeat([[256], [416]], count, 1).astype(np.int32)
    mean = np.repeat([[-(1 << 13)], [1 << 13]], count, 1).astype(np.int32)
    one = rng.random(count) < 0.5  # of scales four times as large as the first says, as the second does
    sizes = np.where(one, 2.0 ** (320 / 32 - 6), 2.0 ** (416 / 32 - 6))
    values = np.rint(np.where(one, -128, 128) + logistic(rng, count) * sizes).astype(np.int32)
    given = (np.ones_like(scale), mean, scale), values, (100, 120)
    assert bits(*given)[1] < 0.98 * bits(*given, False)[1]


@pytest.mark.parametrize("weighing, nearby", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_page_says_the_same(seed, weighing, nearby):
    """Moved mixtures, symbol by symbol, in strips, of bands smaller than the coarse one."""
    rng, size = np.random.default_rng(seed), (21, 17)
    ours = Adaptation(size, (0, 1, 2), 3, weighing, nearby)
    theirs = Adapting(*size, 4096 * weighing, nearby)
    for band, (height, width) in enumerate(((21, 16), (20, 17), (20, 16))):
        theirs.begin(band)
        for top, rows in ((0, 9), (9, height - 9)):
            for channel in range(3):
                fields, values = drawn(
                    rows, width, lambda rng, size: 2 * logistic(rng, size), rng.integers(99)
                )
                values[rng.integers(0, values.size, 3)] = rng.integers(-(2**31), 2**31 - 1, 3)
                mixture = ours.mixture(Place(band, channel, top, rows, width), fields, DEFAULT[:2])
                mixture.intervals(values)
                theirs.top = top
                for i, value in enumerate(values):
                    moved = theirs.moved(
                        channel, *divmod(i, width), *(f[:, i].tolist() for f in fields), width
                    )
                    assert shares_of(moved[0]) == mixture.fields.weight[:, i].tolist()
                    assert moved[1] == mixture.fields.mean[:, i].tolist()
                    assert np.clip(moved[2], 0, 512).tolist() == mixture.fields.scale[:, i].tolist()
                    theirs.learn(int(value))


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("size", [(40, 50), (17, 64), (1, 30), (30, 1), (7, 5)])
@pytest.mark.parametrize("weighing, nearby", KINDS)
@pytest.mark.parametrize("options", [{}, {"ownLevels": 1, "differences": True}])
def test_images_come_back(little, size, options, weighing, nearby, corrected, monkeypatch):
    if corrected:
        monkeypatch.setattr("source.corrections.LEAST", 1)
    settings = ADAPTIVE._replace(corrected=corrected, weighing=weighing, nearby=nearby)
    model, images = nudged(**options), smooth(*size)
    streams = [encoder.finish() for encoder in encode(model, images, settings)]
    back = decode(model, [Decoder(stream) for stream in streams], size, settings)
    assert torch.equal(back.float(), images)
    for image, stream in zip(images, streams):
        assert encode(model, image[None], settings)[0].finish() == stream
        for part in (len(stream) // 3, len(stream) - 5):
            *_, (_, band, complete) = decode_levels(
                model, [Decoder(stream[:part])], size, settings, partial=True
            )
            assert band.shape[-2:] == size and not complete
            with pytest.raises(Truncated):
                decode(model, [Decoder(stream[:part])], size, settings)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_files_adapt_at_every_effort(mode, by_flow):
    model = nudged()
    picture = Image.fromarray(smooth(70, 90)[0].permute(1, 2, 0).byte().numpy()).convert(mode)
    assert can_adapt(model, (70, 90)) and can_adapt(model, (31, 32)) and not can_adapt(model, (30, 30))
    assert not can_adapt(build({"repeat": 0, "hchnl": 4, "nhidden": 0}).freeze(), (70, 90))
    for effort in (1, 5):
        data = pack(picture, model, "00" * 32, effort=effort)
        assert read_head(data).settings._replace(corrected=False, luma=False, halved=False) == NEARBY
        assert unpack(data, model, "00" * 32).tobytes() == picture.tobytes()


def test_files_come_in_pieces(by_flow):
    """A strip that is cut is read anew when there is more of it, as if nothing had been learned of it."""
    from flow.codec.api import Codec

    codec = Codec(threads=1)
    picture = Image.fromarray(smooth(100, 70)[0].permute(1, 2, 0).byte().numpy())
    data, reader, levels = codec.compress(picture), Reader(codec), []
    assert read_head(data).settings.adaptive
    for start in range(0, len(data), 97):
        levels += reader.feed(data[start : start + 97])
    assert levels[-1][0] == 0 and levels[-1][1].tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_page_is_enough(mode, by_flow):
    from flow.folder import identity

    own = {"ownLevels": 1, "differences": True}
    frozen = nudged(**own)
    model = Model({n: t.numpy() for n, t in frozen.state_dict().items()}, SMALL | own)
    picture = Image.fromarray(smooth(45, 70)[0].permute(1, 2, 0).byte().numpy()).convert(mode)
    data = pack(picture, frozen, identity(frozen, model.options))
    assert read_head(data).settings.adaptive and not read_head(data).settings.corrected
    assert np.array_equal(np.squeeze(decode_by_the_page(data, model)[0]), np.asarray(picture))


def test_wild_models_and_wild_symbols(little):
    model, settings = make_wild(build(SMALL), 0.3).freeze(), Settings(16, 16).adapting()
    images = noise(1, 3, 20, 30)
    (encoder,) = encode(model, images, settings)
    assert torch.equal(decode(model, [Decoder(encoder.finish())], (20, 30), settings).float(), images)
    junk = np.random.default_rng(0).bytes(4000)
    for first in (b"\x3f", b"\x7f", b"\xbf"):
        list(decode_levels(model, [Decoder(first + b"\xff" + junk)], (20, 30), NEARBY, partial=True))
