"""flow/codec/ycc.py: pictures that were luma and chroma are found out, and are much smaller so."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from flow import Codec
from flow.codec import container, tuning, ycc
from flow.codec.container import _pack_flow, pack, read_head, unpack
from flow.codec.feed import Reader
from flow.codec.info import describe
from flow.codec.planes import FLOW
from flow.codec.stream import DEFAULT, can_be_planes
from flow.codec.ycc import CENTRE, CONVERSIONS, CORNER, FULL, TURNED, Form, find, form_of, made
from flow.folder import identity
from flow.model import build
from tests.conftest import make_wild
from tests.decoder import Model, decode
from tests.test_codec import OPTIONS, frozen
from tests.test_container import FIXTURES, tiny_model
from utils.data.images import PHOTOS

JFIF, PHOTO_YCC = range(2)


def photograph(height=96, width=128, top=120):
    """A piece of a photograph, halved in size, that has no traces of other origins: uint8."""
    image = np.asarray(Image.open(PHOTOS / "roman-colosseum.png"))[top : top + 2 * height, 300:][
        :, : 2 * width
    ]
    return image.reshape(height, 2, width, 2, 3).mean((1, 3)).round().astype(np.uint8)


def jpeg(image, subsampling, quality=95):
    """What a JPEG of it is decoded to."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.array(Image.open(file))


def made_of(image, form):
    """A picture whose luma and chroma are much like an image's."""
    conversion, pixels = CONVERSIONS[form.conversion], image.astype(float)
    red, green_1, green_2, blue = (conversion.tables[:, -1] - conversion.tables[:, 0]) / 255
    matrix = np.array(
        [(conversion.luma, 0, red), (conversion.luma, green_1, green_2), (conversion.luma, blue, 0)]
    )
    samples = pixels @ np.linalg.inv(matrix / conversion.divisor).T + (0, *conversion.neutral)
    return made(form, form.turned(samples.round().clip(0, 255).astype(np.uint8)), b"")


def back(found):
    """The picture of a Found, by way of what the pyramid sees."""
    samples = found.form.samples(found.planes())[0].permute(1, 2, 0).clamp(0, 255).numpy().astype(np.uint8)
    return made(found.form, samples, found.exceptions)


def exceptions_of(found, image):
    beside = found.chroma.size - ycc._cut(found.chroma, found.form.beside(found.luma.shape)).size
    return len(ycc._unpack_exceptions(found.exceptions, image.size // 3, beside)[0])


@pytest.fixture(scope="module")
def codec():
    return Codec()


@pytest.mark.parametrize("size", [(96, 128), (95, 127), (33, 40), (40, 33)])
@pytest.mark.parametrize("subsampling, siting", [(0, FULL), (2, CENTRE)])
def test_a_decoded_jpeg_is_found_out(size, subsampling, siting):
    image = jpeg(photograph(*size), subsampling)
    found = find(image)
    assert found.form == Form(JFIF, siting)
    assert found.chroma.shape[1:] == tuple((n + 1) // 2 if siting else n for n in size)
    assert np.array_equal(back(found), image)
    assert exceptions_of(found, image) <= 0.002 * image.size / 3


@pytest.mark.parametrize("size", [(64, 96), (63, 95), (33, 40), (40, 33)])
@pytest.mark.parametrize("row, column", [(8, 12), (8, 13), (9, 12), (9, 13)])
def test_a_cropped_jpeg_is_found_out_wherever_it_was_cropped(size, row, column):
    image = jpeg(photograph(), 2)[row : row + size[0], column : column + size[1]]
    found = find(image)
    assert found.form == Form(JFIF, CENTRE, cropped=(row % 2 == 1, column % 2 == 1))
    assert np.array_equal(back(found), image)
    assert exceptions_of(found, image) <= 8 + 0.002 * image.size / 3


@pytest.mark.parametrize("size", [(96, 128), (95, 127)])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_jpeg_is_found_out_however_it_was_turned(quarters, mirrored, size):
    image = jpeg(photograph(*size), 2)
    image = np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, quarters))
    found = find(image)
    assert found.form.siting == (TURNED if quarters % 2 else CENTRE)
    assert np.array_equal(back(found), image)
    assert exceptions_of(found, image) <= 8 + 0.002 * image.size / 3


def test_a_crop_takes_as_much_at_odd_rows_and_columns(codec):
    image = jpeg(photograph(192, 256, top=100), 2)
    even, *odd = (codec.compress(image[y : y + 120, x : x + 160]) for y in (20, 21) for x in (30, 31))
    assert max(map(len, odd)) < 1.01 * len(even)
    full = image[20:140, 30:190]
    assert np.array_equal(codec.decompress(even), full)
    assert np.array_equal(codec.decompress(odd[-1]), image[21:141, 31:191])


@pytest.mark.parametrize("flipped", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("conversion", [JFIF, PHOTO_YCC])
def test_chroma_at_corners_is_found_whichever_corner(conversion, flipped):
    form = Form(conversion, CORNER, flipped)
    image = made_of(photograph(), form)
    found = find(image)
    assert found.form == form and not found.exceptions
    assert np.array_equal(back(found), image)


def test_chroma_of_photo_ycc_may_be_full():
    image = made_of(photograph(), Form(PHOTO_YCC, FULL))
    found = find(image)
    assert found.form == Form(PHOTO_YCC, FULL) and not found.exceptions
    assert np.array_equal(back(found), image)


@pytest.mark.parametrize("saturation", [0.03, 0.06, 0.25])
@pytest.mark.parametrize("subsampling, siting", [(0, FULL), (2, CENTRE)])
def test_pale_pictures_are_not_taken_for_others(saturation, subsampling, siting):
    image = photograph(128, 160).astype(float)
    grey = image.mean(-1, keepdims=True)
    image = jpeg((grey + saturation * (image - grey)).round().astype(np.uint8), subsampling, 75)
    found = find(image)
    assert np.array_equal(back(found), image) and exceptions_of(found, image) < 0.01 * image.size / 3
    assert found.form == Form(JFIF, siting) or not subsampling


def test_where_exceptions_are_many_colours_are_coded(codec, monkeypatch):
    image = jpeg(photograph(), 2)
    less = codec.compress(image)
    found = find(image)
    image[::6, ::6] ^= 5
    places = np.zeros(image.shape[:2], bool)
    places[::6, ::6] = True
    places.reshape(-1)[ycc._unpack_exceptions(found.exceptions, places.size)[0]] = True
    much = found._replace(exceptions=ycc._pack_exceptions(image, places))
    monkeypatch.setattr(ycc, "find", lambda *_: much)
    data = codec.compress(image)
    assert len(less) < len(data) <= len(codec.compress(image, undo=False))
    assert np.array_equal(codec.decompress(data), image)


def test_clipped_colours_are_found_out_or_exceptions():
    image = photograph().astype(float) * 1.6 - 30
    image = jpeg(image.clip(0, 255).astype(np.uint8), 2)
    assert ((image == 255) | (image == 0)).any(-1).mean() > 0.1
    found = find(image)
    assert found.form == Form(JFIF, CENTRE) and np.array_equal(back(found), image)
    assert exceptions_of(found, image) < 0.04 * image.size / 3


def test_what_another_hand_has_changed_is_an_exception():
    image = jpeg(photograph(), 2)
    image[10, 20, 1] ^= 3
    image[50, 100] = 7, 200, 3
    found = find(image)
    assert found.form.siting == CENTRE and np.array_equal(back(found), image)
    places, colours, _ = ycc._unpack_exceptions(found.exceptions, image.size // 3)
    assert {10 * 128 + 20, 50 * 128 + 100} <= set(places)
    assert np.array_equal(colours, image.reshape(-1, 3)[places])


@pytest.mark.parametrize("name", ["photograph", "noise", "black", "tiny"])
def test_other_pictures_are_not(name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    black = np.zeros((64, 64, 3), np.uint8)
    images = dict(photograph=photograph(), noise=noise, black=black, tiny=jpeg(photograph(), 2)[:9, :9])
    assert find(images[name]) is None


def test_a_file_is_much_smaller_and_comes_back(codec):
    image = photograph(192, 256, top=100)
    for subsampling, share in ((0, 0.9), (2, 0.75)):
        decoded = jpeg(image, subsampling)
        data, (bits,) = codec.compress(decoded), codec.bits([decoded])
        assert 8 * len(data) < share * bits
        assert np.array_equal(codec.decompress(data), decoded)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_alpha_levels_cuts_and_pieces(codec, subsampling):
    image = jpeg(photograph(96, 128), subsampling)
    alpha = np.tile(np.arange(128, dtype=np.uint8), (96, 1))[..., None]
    data = codec.compress(np.concatenate([image, alpha], 2))
    about = describe(data, codec.model, codec.identity)
    assert about["colours"] == f"JFIF's YCbCr, {'4:2:0' if subsampling else '4:4:4'}"
    assert np.array_equal(
        codec.decompress(data)[..., :3] if 0 else np.asarray(codec.decompress(data))[..., :3], image
    )
    small = np.asarray(codec.decompress(data, levels=1))[..., :3]
    assert small.shape == (48, 64, 3)
    # the coarse band is every other pixel, of chroma nearly so
    assert np.abs(small.astype(int) - image[::2, ::2]).mean() < 3
    cut = np.asarray(codec.decompress(data[: len(data) * 2 // 3], partial=True))[..., :3]
    assert np.abs(cut.astype(int) - image).mean() < 12
    reader, levels = Reader(codec), []
    for start in range(0, len(data), 5000):
        levels += reader.feed(data[start : start + 5000])
    assert [level for level, _ in levels][-1] == 0
    assert np.array_equal(np.asarray(levels[-1][1])[..., :3], image)


def test_moves_of_biases_are_learned_from_luma_and_chroma(codec, monkeypatch):
    seen, learn = [], container.learn

    def noted(model, learned, image, steps, progress, halved):
        moves = learn(model, learned, image, 16, progress, halved)
        seen.append((tuple(image.shape), halved, moves))
        return moves

    monkeypatch.setattr(container, "learn", noted)
    monkeypatch.setattr(tuning, "LEAST_GAIN", -1)  # whether they pay is not asked here
    image = jpeg(photograph(192, 256, top=100), 2)
    plain, data = codec.compress(image), codec.compress(image, effort=9)
    ((shape, halved, moves),) = seen
    assert shape == (3, 192, 256) and halved and moves
    assert len(data) < 1.005 * len(plain) and np.array_equal(codec.decompress(data), image)
    head, stream = _pack_flow(
        *(Image.fromarray(image), b"", codec.model, codec.identity, DEFAULT), moves=moves, found=find(image)
    )
    assert read_head(head + stream).moves and np.array_equal(codec.decompress(head + stream), image)
    assert len(head + stream) < 1.02 * len(plain)


@pytest.mark.parametrize("name", ["full", "halved", "corner", "corrected", "cropped", "turned"])
def test_stored_files_decode(name):
    """Never make these files anew: what was written once must decode."""
    model, key = tiny_model(FIXTURES / "ycc")
    data = (FIXTURES / "ycc" / f"{name}.nwf").read_bytes()
    assert read_head(data).form
    assert np.array_equal(unpack(data, model, key), Image.open(FIXTURES / "ycc" / f"{name}.png"))


def test_chroma_may_reach_its_ends():
    chroma = np.random.default_rng(0).choice(np.array([0, 255], np.int16), (2, 16, 20))
    samples = np.zeros((32, 40, 3), np.uint8)
    samples[..., 0], samples[::2, ::2, 1:] = 128, chroma.transpose(1, 2, 0)
    form = Form(JFIF, CORNER)
    image = made(form, samples, b"")
    found = ycc.Found(form, samples[..., 0], chroma, b"")
    planes = found.planes()
    # between them, rounding leaves what a sample can be
    assert (form.samples(planes) < 0).any() and not form.outside(planes).any()
    assert np.array_equal(back(found), image)
    planes[0, 1, 2, 4] += 1000
    assert form.outside(planes).sum() == 1


def test_damage_is_refused(codec):
    data = bytearray(codec.compress(jpeg(photograph(96, 128), 2)))
    head = read_head(bytes(data))
    for n in range(head.end + 200, len(data), 997):
        wrong = bytearray(data)
        wrong[n] ^= 16
        with pytest.raises(ValueError):
            codec.decompress(bytes(wrong))


@pytest.mark.parametrize("byte", [2, 4, 7, 7 << 3, 1 << 3 | 4])
def test_unknown_forms_are_refused(byte):
    with pytest.raises(ValueError, match="luma and chroma of kind"):
        form_of(byte)


@pytest.mark.parametrize("form", [Form(c, s, f) for c in (0, 1) for s in (0, 1, 2) for f in ((0, 1), (1, 0))])
def test_a_form_is_a_byte(form):
    assert form_of(form.pack()[0]) == form


def test_forms_in_the_middle_are_bytes():
    corners = (0, 0), (0, 1), (1, 0), (1, 1)
    forms = [Form(0, s, f, c) for s in (CENTRE, TURNED) for f in corners for c in (None, *corners)]
    assert [form_of(form.pack()[0]) for form in forms] == forms
    assert len({form.pack() for form in forms}) == len(forms)


@pytest.mark.parametrize("exceptions", [bytes(6), bytes(8), b"\xff" * 7, bytes(7 * 31), bytes(7 * 40)])
def test_exceptions_that_are_none_are_refused(exceptions):
    samples = np.zeros((5, 6, 3), np.uint8)
    with pytest.raises(ValueError, match="corrupt file"):
        made(Form(JFIF, FULL), samples, zlib.compress(exceptions))


@pytest.mark.parametrize("count", [0, 7, 21, 23])
def test_a_cropped_picture_has_all_chroma_beside_it(count):
    """Of 5x6 pixels, of 3x3 samples; a row before them, a column on each side: 11, or 22 of both."""
    form, samples = Form(JFIF, CENTRE, cropped=(False, False)), np.zeros((5, 6, 3), np.uint8)
    assert form.beside((5, 6)) == ((1, 0), (1, 1))
    with pytest.raises(ValueError, match="corrupt file"):
        made(form, samples, zlib.compress(bytes(count)) if count else b"")


@pytest.mark.parametrize("name", ["paper", "rgb", "no couplings", "linear", "bands", "luma"])
def test_a_model_that_mixes_luma_and_chroma_codes_colours_as_they_are(name):
    model = frozen(name)
    assert can_be_planes(model) == (name in ("bands", "luma"))
    picture, key = Image.fromarray(jpeg(photograph(40, 48), 2)), identity(model, OPTIONS[name])
    data = pack(picture, model, key)
    assert read_head(data).method != FLOW or bool(read_head(data).form) == can_be_planes(model)
    assert np.array_equal(unpack(data, model, key), picture)


@pytest.mark.parametrize("name", ["no couplings", "luma", "luma, seen around 0", "bands", "differences"])
@pytest.mark.parametrize(
    "form",
    [
        Form(JFIF, CENTRE),
        Form(JFIF, FULL),
        Form(PHOTO_YCC, CORNER, (True, False)),
        Form(JFIF, TURNED, (True, False)),
        Form(JFIF, CENTRE, cropped=(False, False)),
        Form(JFIF, CENTRE, cropped=(True, False)),
    ],
)
def test_the_page_is_enough_for_luma_and_chroma(name, form):
    options = OPTIONS[name] | dict(HUE=True)
    float_model = make_wild(build(options), 0.05)
    fixed = float_model.freeze()
    model = Model({n: t.numpy() for n, t in fixed.state_dict().items()}, options)
    if form.cropped:
        row, column = (4 + odd for odd in form.cropped)
        image = jpeg(photograph(28, 32), 2)[row : row + 20, column : column + 24]
    else:
        image = made_of(photograph(20, 24), form)
    image[3, 4, 1] ^= 3
    found = find(image)
    assert found.form == form and found.exceptions
    key = identity(fixed, options)
    head, stream = _pack_flow(Image.fromarray(image), b"", fixed, key, DEFAULT, found=found)
    assert np.array_equal(unpack(head + stream, fixed, key), image)
    pixels, fields, *_ = decode(head + stream, model)
    assert "luma and chroma" in fields and np.array_equal(pixels, image)
