"""Pictures of 16 bits a sample: through .nwf and PNG files and back, beside other libraries."""

import io
import pickle
import random
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from flow import Codec
from flow.codec.container import Corrupt, _head, _pack_flow, pack, read_head, unpack
from flow.codec.deep import Deep, filtered, joined, parted, read_png, unfiltered
from flow.codec.files import check_equal
from flow.codec.formats import in_format
from flow.codec.pictures import as_picture, pack_metadata, read_picture, write_png
from flow.codec.planes import DEFLATE, FLOW, QUICK, THOROUGH, WEBP, chunks, pack_deflate, pack_webp, png_of
from flow.codec.stream import DEFAULT
from flow.zoom import load_file, prefixes
from tests.decoder import decode, open_model
from tests.test_container import FIXTURES, MODEL, NAME, PHOTOGRAPH, edits, photo

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def smooth(channels, bits=12, size=(20, 30)):
    """A slope with noise in its lowest bits, in the lowest bits of 16."""
    rows, columns, c = np.indices((*size, channels))
    noise = np.random.default_rng(0).integers(0, 4, rows.shape)
    return ((rows * 37 + columns * 61 + c * 500 + noise) % (1 << bits)).astype(np.uint16)


def noisy(channels):
    return np.random.default_rng(0).integers(0, 1 << 16, (90, 80, channels), np.uint16)


def same(back, array):
    back = np.asarray(back)
    assert back.dtype == np.uint16 and np.array_equal(back.reshape(array.shape), array)


def flow_file(picture):
    """The file of a Deep by the flow, though another method may be smaller."""
    high, low, values = parted(picture)
    low = values, pack_deflate(low)
    return b"".join(_pack_flow(high, pack_metadata(picture), MODEL, NAME, DEFAULT, low=low))


@pytest.mark.parametrize("channels", CHANNELS.values())
@pytest.mark.parametrize("make", [smooth, noisy])
def test_every_mode_comes_back(channels, make):
    array = make(channels)
    for given_array in (array, array[::2, ::-3], array[:1, :1], array << 4, array % 256 * 257):
        data = pack(as_picture(given_array), MODEL, NAME)
        back = unpack(data, MODEL, NAME)
        same(back, given_array)
        assert isinstance(back, Image.Image) == (channels == 1)
        assert len(data) <= given_array.nbytes + 64


@pytest.mark.parametrize("channels", CHANNELS.values())
def test_the_flow_takes_the_high_bytes(channels):
    data = flow_file(as_picture(smooth(channels)))
    same(unpack(data, MODEL, NAME), smooth(channels))
    pixels, *_ = decode(data, open_model(FIXTURES))
    assert np.array_equal(pixels, smooth(channels))
    with pytest.raises(ValueError, match="cut"):
        unpack(data[:-5], MODEL, NAME)
    end = read_head(data).end
    for cut in (data[:-90], data[: end + 9], data[:end]):  # where a number may have no value
        part = np.asarray(unpack(cut, MODEL, NAME, partial=True))
        assert part.dtype == np.uint16 and part.size == smooth(channels).size


@pytest.mark.parametrize("channels", CHANNELS.values())
def test_the_page_is_enough(channels):
    for array in (smooth(channels), noisy(channels), noisy(channels)[:3, :4], smooth(channels) * 0):
        picture = as_picture(array)
        high, low, values = parted(picture)
        planes = {_head(picture, method, b"", plane=plane) for method, plane in picture.planes().items()}
        planes |= {_head(high, WEBP, b"", plane=pack_webp(high), low=(values, pack_webp(low)))}
        for data in (*planes, pack(picture)):
            assert np.array_equal(decode(data)[0], array)
            same(unpack(data), array)


@pytest.mark.parametrize("channels", CHANNELS.values())
def test_what_is_sound_of_a_damaged_file_is_as_bright(channels):
    """In all 16 bits, or in 8 without the finest level, then without a transparent colour of 16."""
    array = np.random.default_rng(0).integers(0, 100, (128, 128, channels), np.uint16) * 40
    picture = as_picture(array)
    if channels in (1, 3):
        picture.info = {"transparency": (40,) * channels if channels > 1 else 40}
    data, pictures = flow_file(picture), []
    head = read_head(data)
    counts = dict(prefixes(MODEL, data[head.end :], head.size, head.settings))
    for levels in range(2):
        at = head.end + (counts[levels] + counts[levels + 1]) // 2
        with pytest.raises(Corrupt, match="sound down to level") as found:
            unpack(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], MODEL, NAME, levels, partial=True)
        pictures.append(found.value.picture)
    whole, small = pictures
    assert isinstance(whole, Image.Image) == (channels == 1) and whole.info == picture.info
    assert np.asarray(whole).dtype == np.uint16 and np.asarray(whole).max() < 4000
    assert small.size == (64, 64) and not small.info
    colours = np.asarray(small).reshape(64, 64, channels)[..., : channels - (channels % 2 == 0)]
    assert colours.dtype == np.uint8 and colours.max() < 16


def test_deflate_is_looked_at_before_it_is_searched(monkeypatch):
    levels, planes = [], Deep.planes

    def recorded(self, level=THOROUGH):
        levels.append(level)
        return planes(self, level)

    monkeypatch.setattr(Deep, "planes", recorded)
    photograph = Deep(np.asarray(photo(150, 150)).astype(np.uint16) << 4)
    assert read_head(Codec().compress(photograph)).method == FLOW and levels == [QUICK]
    levels.clear()
    drawn = Deep(257 * np.bitwise_xor(*np.indices((60, 90))).astype(np.uint16))
    head, best, look = read_head(pack(drawn, MODEL, NAME)), planes(drawn), planes(drawn, QUICK)
    assert levels == [QUICK, THOROUGH] and head.plane == best[DEFLATE] != look[DEFLATE]


def test_samples_of_fewer_bits_cost_nothing_for_their_gaps():
    array = np.asarray(PHOTOGRAPH.crop((400, 300, 480, 380)))
    small = len(pack(as_picture(array)))
    for factor in (257, 256, 16, 1):
        assert len(pack(as_picture(array.astype(np.uint16) * factor))) < small + 200


@given(arrays.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))))
def test_parted_and_joined_are_inverse(array):
    parts = parted(Deep(array))
    assert all(part.mode == Deep(array).mode for part in parts[:2])
    same(joined(*parts), array)


def test_values_by_hand():
    array = np.array([[0, 300, 600]] * 300, np.uint16)
    high, low, values = parted(Deep(array))
    assert np.asarray(high)[0].tolist() == [0, 1, 2] and np.asarray(low).max() == 0
    assert zlib.decompress(values)[0] == 128 and zlib.decompress(values)[37] == 8
    assert np.asarray(joined(high, None, values))[0].tolist() == [0, 1, 2]  # 600 >> 8
    with pytest.raises(ValueError, match="no value"):
        joined(high.point(lambda v: v + 1), low, values)
    with pytest.raises(ValueError, match="no value"):
        joined(high, low.point(lambda v: v + 1), values)
    for wrong in (zlib.compress(bytes(1 << 13)), zlib.compress(bytes([255] * 100)), b"wrong"):
        with pytest.raises(ValueError, match="corrupt"):
            joined(high, low, wrong)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_levels_are_of_8_bits(mode):
    photograph = np.asarray(photo(64, 48, mode)).astype(np.uint16) * 257
    for array in (photograph, smooth(CHANNELS[mode], 16, (48, 64)), noisy(CHANNELS[mode])[:48, :64]):
        for data in (pack(as_picture(array), MODEL, NAME), pack(as_picture(array))):
            small = unpack(data, MODEL, NAME, levels=2)
            assert small.mode == mode and small.size == (16, 12)
        every = (array >> 8)[::4, ::4].reshape(np.asarray(small).shape)
        assert abs(np.asarray(small).astype(int) - every).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_loading_shows_the_high_bytes(channels):
    """From coarse to fine, what is completed is as bright as what was read."""
    picture = as_picture(smooth(channels, 16))
    *coarser, last = load_file(MODEL, NAME, flow_file(picture))
    expected = np.broadcast_to((picture.array >> 8).reshape(20, 30, channels), (20, 30, 3))
    assert last.level == 0 and np.array_equal(last.image.permute(1, 2, 0), expected)
    assert all(stage.image.shape == (3, 20, 30) for stage in coarser)
    assert abs(coarser[-1].image.float().mean() - expected.mean()) < 8


@pytest.mark.parametrize("channels", CHANNELS.values())
def test_png_there_and_back(channels, tmp_path):
    picture = as_picture(smooth(channels))
    picture.info = {"gamma": 0.5, "icc_profile": b"some profile"}
    if channels in (1, 3):
        picture.info["transparency"] = 300 if channels == 1 else (1, 300, 65535)
    write_png(picture, tmp_path / "deep.png")
    back = read_picture(tmp_path / "deep.png")
    same(back, smooth(channels))
    assert back.info == picture.info == unpack(pack(back)).info
    file = io.BytesIO()
    write_png(unpack(pack(back)), file)
    assert file.getvalue() == (tmp_path / "deep.png").read_bytes()


def test_grey_is_pillows_too(tmp_path):
    array = smooth(1)[..., 0]
    for suffix in ("png", "tif"):
        Image.fromarray(array).save(tmp_path / f"grey.{suffix}")
        same(read_picture(tmp_path / f"grey.{suffix}"), array)
    with Image.open(tmp_path / "grey.tif") as image:
        back = unpack(pack(as_picture(image)))
    assert back.mode == "I;16" and np.array_equal(back, array)


@pytest.mark.parametrize("channels", CHANNELS.values())
def test_other_libraries_read_our_png_and_we_theirs(channels):
    imagecodecs = pytest.importorskip("imagecodecs")
    array, file = smooth(channels, 16)[..., : channels if channels > 1 else None], io.BytesIO()
    write_png(as_picture(array), file)
    assert np.array_equal(imagecodecs.png_decode(file.getvalue()).reshape(array.shape), array)
    theirs = imagecodecs.png_encode(np.ascontiguousarray(array.squeeze()))
    same(read_picture(io.BytesIO(theirs)), array)


def test_interlaced_png():
    """Adam7, less the two passes that a picture of 3x3 pixels does not have."""
    array = np.arange(9, dtype=np.uint16).reshape(3, 3) * 5000
    parts = array[::8, ::8], array[::4, 2::4], array[2::4, ::2], array[::2, 1::2], array[1::2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts for row in part)
    header = (3).to_bytes(4, "big") * 2 + bytes([16, 0, 0, 0, 1])
    png = png_of([(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])
    same(read_picture(io.BytesIO(png)), array)
    with Image.open(io.BytesIO(png)) as image:
        assert np.array_equal(np.asarray(image), array)


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 12))), st.integers(1, 8))
def test_filters_are_undone(rows, step):
    assert np.array_equal(unfiltered(filtered(rows, step), step), rows)
    lines = np.concatenate([np.arange(len(rows), dtype=np.uint8)[:, None] % 5, rows], 1)
    header = rows.shape[1].to_bytes(4, "big") + len(rows).to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    png = png_of([(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])
    assert np.array_equal(unfiltered(lines, 1), np.asarray(Image.open(io.BytesIO(png))))


def test_wrong_files_are_refused():
    """What is no .nwf file, and PNGs that are damaged behind right checksums."""
    draw = random.Random(0)
    for array in (smooth(3), noisy(1)[:9, :9]):
        data = pack(as_picture(array), MODEL, NAME)
        for _ in range(300):
            wrong = edits(data, draw)
            if wrong != data:
                with pytest.raises(ValueError):
                    unpack(wrong, MODEL, NAME)
        end = read_head(data).end
        for _ in range(500):
            head = edits(data[: end - 4], draw)
            try:
                unpack(head + zlib.crc32(head).to_bytes(4, "big") + data[end:], MODEL, NAME)
            except ValueError as error:
                assert "\n" not in str(error)
    file = io.BytesIO()
    write_png(as_picture(smooth(3)), file)
    for change in (lambda body: body[:-9], lambda body: zlib.compress(b"\7" + zlib.decompress(body)[1:])):
        png = png_of((n, change(b) if n == b"IDAT" else b) for n, b in chunks(file.getvalue()))
        with pytest.raises(ValueError):
            read_png(png)


def test_16_bits_of_other_files_are_refused_by_name():
    for header in (b"P6 2 1 1023\n", b"P5 2 1 1023\n", b"P3 2 1 65535\n1 2 3 4 5 6", b"P6 2 1 65534 "):
        with pytest.raises(ValueError, match="16 of PNG, PPM and TIFF"):
            read_picture(io.BytesIO(header + bytes(12)))
    file = io.BytesIO()
    Image.new("F", (2, 1)).save(file, "TIFF")
    with pytest.raises(ValueError, match="16 of PNG, PPM and TIFF"):
        read_picture(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("channels", [1, 3])
def test_pnm_there_and_back(channels, tmp_path):
    """As files, by way of a .nwf file; grey as Pillow reads it, which cuts colour to 8 bits."""
    array = smooth(channels, 16)
    data, lost = in_format(unpack(pack(as_picture(array))), "ppm")
    height, width = array.shape[:2]
    head = b"P%d\n%d %d\n65535\n" % (6 if channels == 3 else 5, width, height)
    assert data == head + array.astype(">u2").tobytes() and not lost
    (tmp_path / "deep.ppm").write_bytes(data)
    same(read_picture(tmp_path / "deep.ppm"), array)
    with Image.open(tmp_path / "deep.ppm") as image:
        theirs = np.asarray(image).reshape(array.shape)
    assert np.array_equal(theirs, array if channels == 1 else np.round(array / 257))


def test_pnm_by_hand():
    body = bytes(range(12))
    wanted = np.arange(1, 12, 2) + 256 * np.arange(0, 12, 2)
    for head in (b"P6 1 2 65535\n", b"P6\n#of 9 9 1\n1\t2#\n# #\r\n65535 ", b"P6\r\n1\r\n2\r\n65535\r"):
        same(read_picture(io.BytesIO(head + body)), wanted.astype(np.uint16).reshape(2, 1, 3))
        for wrong in (head + body[:-1], head):
            with pytest.raises(ValueError, match="not an image that Pillow can read"):
                read_picture(io.BytesIO(wrong))
    same(read_picture(io.BytesIO(b"P5 3 2 65535 " + body)), wanted.astype(np.uint16).reshape(2, 3))


def test_sixteen_bits_as_files_of_other_formats():
    values = np.arange(600, dtype=np.uint16) * 97
    grey, colour = (as_picture(values.reshape(shape)) for shape in ((20, 30), (10, 20, 3)))
    data, dropped = in_format(grey, "tif")
    back = Image.open(io.BytesIO(data))
    assert back.mode == "I;16" and np.array_equal(np.asarray(back), grey.array) and not dropped
    assert np.array_equal(
        as_picture(read_picture(io.BytesIO(in_format(colour, "png")[0]))).array, colour.array
    )
    clear = as_picture(values.reshape(10, 30, 2))
    with pytest.raises(ValueError, match="transparency"):
        in_format(clear, "ppm")
    colour.info = {"gamma": 0.5}
    assert in_format(colour, "ppm")[1] == ["gamma"]
    for picture in (grey, clear, colour):
        with pytest.raises(ValueError, match="16 bits a sample"):
            in_format(picture, "webp")


@pytest.mark.parametrize("form", ["png", "ppm", "tif", "webp"])
def test_a_picture_keeps_its_metadata_when_written(form):
    picture, info = photo(9, 7), {"gamma": 0.5, "icc_profile": b"profile"}
    picture.info = dict(info)
    in_format(picture, form)
    assert picture.info == info


# As a camera or an editor leaves it, with tags of another picture's layout.
LAID_OUT = {
    256: 9,
    257: 9,
    258: 8,
    259: 5,
    262: 0,
    266: 2,
    273: 8,
    277: 1,
    284: 2,
    317: 2,
    320: 1,
    338: 1,
    339: 3,
}
EXIF = {
    271: "somebody's",
    274: 1,
    0x8769: {0x9003: "2026:11:26 00:00:00"},
    0x8825: {1: "N", 2: (1.0, 2.0, 3.5)},
}


def exif_of(tags):
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    return exif.tobytes()


def check_exif(exif):
    assert exif[271] == "somebody's" and exif.get_ifd(0x8769)[0x9003] == "2026:11:26 00:00:00"
    assert dict(exif.get_ifd(0x8825)) == EXIF[0x8825]


@pytest.mark.parametrize("channels", CHANNELS.values())
def test_tiff_there_and_back(channels):
    """By way of our own reader and another library's, with metadata and transparent colours."""
    array = smooth(channels, 16)
    picture = as_picture(array)
    profile, xmp = b"some profile" * 9, b"<x:xmpmeta/>"
    picture.info = {
        "icc_profile": profile,
        "exif": exif_of(EXIF),
        "xmp": xmp,
        "dpi": (300, 200),
        "gamma": 0.5,
    }
    data, dropped = in_format(picture, "tif")
    back = read_picture(io.BytesIO(data))
    assert dropped == ["gamma"] and back.info["icc_profile"] == profile and back.info["xmp"] == xmp
    assert back.info["dpi"] == pytest.approx((300, 200), rel=1e-3)
    exif = Image.Exif()
    exif.load(back.info["exif"])
    check_exif(exif)
    shown = array[..., [0, 0, 0, 1]] if channels == 2 else array
    same(back, shown)
    same(unpack(pack(back)), shown)
    if channels in (1, 3):
        picture.info = {"transparency": tuple(array[3, 7].tolist()) if channels == 3 else int(array[3, 7, 0])}
        back = read_picture(io.BytesIO(in_format(picture, "tif")[0])).array
        assert np.array_equal(back[..., :3], np.broadcast_to(array, (*array.shape[:2], 3)))
        assert np.array_equal(back[..., 3] == 0, (array == array[3, 7]).all(2)) and back[0, 0, 3] == 65535
    imagecodecs = pytest.importorskip("imagecodecs")
    assert np.array_equal(imagecodecs.tiff_decode(data), shown.squeeze())


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize(
    "compression, predictor", [(None, False), ("lzw", False), ("lzw", True), ("zlib", True)]
)
def test_tiffs_of_another_library(channels, order, tile, compression, predictor):
    tifffile, array = pytest.importorskip("tifffile"), smooth(channels, 16)
    how = {"compression": compression, "predictor": predictor, "byteorder": order, "tile": tile}
    how |= {"photometric": "rgb" if channels > 2 else "minisblack"}
    how |= {"extrasamples": ["unassalpha"]} if channels != 3 else {}
    together, apart = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(together, array, planarconfig="contig", **how)
    tifffile.imwrite(apart, np.moveaxis(array, -1, 0), planarconfig="separate", **how)
    for file in (together, apart):
        try:
            back = read_picture(io.BytesIO(file.getvalue()))
        except ValueError as error:  # none is read in part
            assert channels == 2 or file is apart
            assert "16 of PNG, PPM and TIFF" in str(error) or "can read" in str(error)
        else:
            same(back, array)


def test_what_came_back_changed_is_not_kept():
    deep = as_picture(np.arange(600, dtype=np.uint16).reshape(10, 20, 3))
    other = as_picture(deep.array ^ 1)
    check_equal(deep, deep)
    with pytest.raises(ValueError, match="came back changed"):
        check_equal(other, deep)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_tiff_of_a_camera_picture(mode):
    """Its EXIF tells how another picture is laid out, and more that libtiff does not take of Pillow."""
    picture = PHOTOGRAPH.crop((300, 200, 341, 230)).convert(mode)
    for exif in (EXIF, LAID_OUT | EXIF):
        picture.info = {"exif": exif_of(exif)}
        data, dropped = in_format(picture, "tif")
        assert len(data) < len(picture.tobytes()) + (600 if mode != "P" else 2200) and not dropped
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == mode and np.array_equal(image, picture)
            assert np.array_equal(image.convert("RGB"), picture.convert("RGB"))
            check_exif(image.getexif())
        back = read_picture(io.BytesIO(data))
        assert np.array_equal(back, picture) and set(back.info) == {"exif"}


def test_damaged_exif_is_left_out_of_a_tiff_and_named():
    picture, draw, whole = PHOTOGRAPH.crop((300, 200, 341, 230)), random.Random(0), exif_of(EXIF)
    left_out = 0
    for _ in range(200):
        wrong = bytearray(whole)
        for _ in range(4):
            wrong[draw.randrange(6, len(wrong))] = draw.randrange(256)
        picture.info = {"exif": bytes(wrong)}
        data, dropped = in_format(picture, "tif")
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(image, picture)
        left_out += dropped == ["exif"]
    assert 0 < left_out < 200


def test_white_may_be_zero():
    tifffile, array = pytest.importorskip("tifffile"), smooth(1, 16)[..., 0]
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="miniswhite", byteorder="<")
    same(read_picture(io.BytesIO(file.getvalue())), 65535 - array)


@pytest.mark.parametrize(
    "tag", [(65005, "Q", 1, 2**40, True), (33723, "I", 2, (1, 2), True), (65004, "b", 1, -3, True)]
)
def test_tags_of_anybody_do_not_hide_a_picture(tag):
    tifffile, array, file = pytest.importorskip("tifffile"), np.asarray(PHOTOGRAPH)[:20, :30], io.BytesIO()
    tifffile.imwrite(file, array, photometric="rgb", extratags=[tag, (271, "s", 0, "somebody's", True)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = read_picture(io.BytesIO(file.getvalue()))
    exif = Image.Exif()
    exif.load(back.info["exif"])
    assert np.array_equal(back, array) and exif[271] == "somebody's"
    assert unpack(pack(back)).info == back.info


def test_a_tiff_that_was_pickled_is_a_picture():
    file = io.BytesIO()
    PHOTOGRAPH.crop((300, 200, 341, 230)).save(file, "TIFF")
    image = pickle.loads(pickle.dumps(Image.open(io.BytesIO(file.getvalue()))))
    assert np.array_equal(as_picture(image), image)
