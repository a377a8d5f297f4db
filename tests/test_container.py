"""The .nwf file: every picture comes back with all it shows by; no other bytes are taken for one."""

import io
import json
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from flow.codec.container import MODES, _checked_levels, _head, _pack_flow, pack, read_head, unpack
from flow.codec.formats import in_format
from flow.codec.pictures import (
    as_picture,
    pack_metadata,
    read_picture,
    srgb_curve,
    unpack_metadata,
    write_png,
)
from flow.codec.planes import (
    BEST,
    CHANNELS,
    DEFLATE,
    FLOW,
    GOOD,
    LOOK,
    QUICK,
    RAW,
    THOROUGH,
    WEBP,
    chunks,
    pack_deflate,
    pack_planes,
    pack_webp,
    png_of,
    searched,
    smallest_plane,
    unpack_deflate,
    unpack_webp,
)
from flow.codec.stream import DEFAULT, Settings
from flow.folder import identity
from flow.model import build
from flow.zoom import load_file
from tests.conftest import make_wild
from utils.data.datasets import PHOTOS
from utils.files import load_tensors

FIXTURES = Path(__file__).parent / "fixtures"
# Pictures of flow, flow, deflate, no compression and WebP, in this order.
GOLDEN = ("flow", "alpha", "deflate", "raw", "webp")
# To refuse a wrong stream takes the networks: some ten milliseconds.
EDITS = {"flow": 350, "alpha": 250, "deflate": 3000, "raw": 3000, "webp": 1500}


def tiny_model(folder=FIXTURES):
    """A frozen model in the fixtures, and its identity."""
    options = json.loads((folder / "parameter.json").read_text())
    tensors, state = load_tensors(folder / "frozen.safetensors")
    model = build(options).freeze()
    model.load_state_dict(tensors)
    assert identity(model, options) == state["identity"]
    return model, state["identity"]


MODEL, NAME = tiny_model()
PHOTOGRAPH = Image.open(PHOTOS / "oakland-zoo-otters.png").convert("RGB")


def photo(width=64, height=64, mode="RGB"):
    """A part of a photograph; alpha, where there is, falls off to the right."""
    picture = PHOTOGRAPH.crop((400, 300, 400 + width, 300 + height))
    if mode in ("LA", "RGBA"):
        alpha = Image.fromarray(np.tile(np.linspace(255, 0, width).astype(np.uint8), (height, 1)))
        return Image.merge(mode, (*picture.convert(mode[:-1]).split(), alpha))
    if mode == "P":
        return picture.quantize(11)
    return picture.convert(mode)


def noise(width, height, mode="RGB", seed=0):
    drawn = random.Random(seed)
    length = height * ((width + 7) // 8 if mode == "1" else width * CHANNELS[mode])
    picture = Image.frombytes(mode, (width, height), drawn.randbytes(length))
    if mode == "P":
        picture.putpalette(drawn.randbytes(768))
    return picture


def same(a, b):
    assert (a.mode, a.size) == (b.mode, b.size)
    assert np.array_equal(np.asarray(a), np.asarray(b))
    assert a.info == b.info
    if a.mode == "P":
        assert a.getpalette() == b.getpalette()


def round_trip(picture, settings=DEFAULT):
    data = pack(picture, MODEL, NAME, settings)
    same(unpack(data, MODEL, NAME), picture)
    return data


@pytest.mark.parametrize("mode", CHANNELS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (300, 2), (33, 57), (64, 64)])
def test_every_mode_and_size(mode, size):
    round_trip(photo(*size, mode))
    assert len(round_trip(noise(*size, mode))) <= len(noise(*size, mode).tobytes()) + 768 * (mode == "P") + 64


@pytest.mark.usefixtures("without_webp")
def test_photographs_go_through_the_flow():
    for mode in ("RGB", "RGBA"):
        data = round_trip(photo(96, 64, mode))
        assert read_head(data).method == FLOW
        assert len(data) < len(pack_deflate(photo(96, 64, mode)))
    assert read_head(round_trip(photo(32, 32))).end <= 20


@pytest.mark.parametrize("mode", CHANNELS)
def test_flat_and_synthetic_pictures_stay_small(mode):
    for picture in (Image.new(mode, (400, 300)), Image.new(mode, (400, 300), 1)):
        if mode == "P":
            picture.putpalette([0, 0, 0, 9, 9, 9])
        assert len(round_trip(picture)) < 1000
    checks = np.kron(np.indices((30, 40)).sum(0) % 2, np.ones((8, 8))).astype(np.uint8) * 255
    picture = Image.fromarray(checks).convert("RGB")
    assert len(round_trip(picture)) <= len(pack_deflate(picture)) + 64


def drawing(mode):
    """Lines and patches on a ground, alpha too; transparent pixels keep their colours."""
    rows, columns = np.indices((90, 120))
    waves, stripes = rows * columns // 300 % 5 * 40, (rows + columns) // 9 % 3 * 99
    bands = waves, stripes, rows // 30 * 60, columns // 20 % 2 * 255
    red, green, blue, alpha = (Image.fromarray(band.astype(np.uint8)) for band in bands)
    pictures = {
        "1": green.point(bool, "1"),
        "L": red,
        "LA": Image.merge("LA", (red, alpha)),
        "P": Image.merge("RGB", (red, green, blue)).quantize(9),
        "RGB": Image.merge("RGB", (red, green, blue)),
        "RGBA": Image.merge("RGBA", (red, green, blue, alpha)),
    }
    return pictures[mode]


@pytest.mark.parametrize("mode", CHANNELS)
def test_a_drawing_is_no_larger_than_its_png_and_its_webp(mode):
    picture = drawing(mode)
    plane = pack_webp(picture, BEST)
    assert unpack_webp(plane, mode, picture.size).tobytes() == picture.tobytes()
    data = round_trip(picture)
    palette = 27 if mode == "P" else 0
    assert len(data) <= min(len(plane), len(pack_deflate(picture))) + palette + 64
    assert read_head(data).method == WEBP


def test_alpha_beside_the_flow_may_be_webp():
    picture = photo(160, 120, "RGBA")
    rings = np.hypot(*np.indices((120, 160))) // 3 % 64 * 4
    picture.putalpha(Image.fromarray(rings.astype(np.uint8)))
    head, stream = _pack_flow(picture, b"", MODEL, NAME, DEFAULT)
    assert read_head(head).plane[:1] == b"\x2f"
    same(unpack(head + stream, MODEL, NAME), picture)


def test_luma_alone_is_of_the_flow_and_read_in_part():
    options = dict(prior="bands", width=6, components=2, repeat=0, HUE=True)  # no chroma in grey
    model, name = make_wild(build(options), 0.2).freeze(), "ab" * 32
    head, stream = _pack_flow(photo(80, 70, "L"), b"", model, name, DEFAULT)
    settings = DEFAULT.adapting()._replace(luma=True)
    assert head[4] & 7 == 6 and read_head(head).settings == settings
    data = head + stream
    same(unpack(data, model, name), photo(80, 70, "L"))
    small = unpack(data, model, name, levels=1)
    assert unpack(data[: 2 * len(data) // 3], model, name, levels=1) == small and small.mode == "L"
    part = unpack(data[: len(data) // 2], model, name, partial=True)
    assert part.size == (80, 70) and part.mode == "L"
    for kind in (head[4] & ~24 | RAW << 3, head[4] & ~24 | WEBP << 3):
        wrong = head[:4] + bytes([kind]) + head[5:-4]
        with pytest.raises(ValueError, match="no kind of picture"):
            unpack(wrong + zlib.crc32(wrong).to_bytes(4, "big"))


@pytest.mark.parametrize("wrong", [{"adaptive": False}, {"weighing": False}])
def test_adaptation_without_what_it_builds_on_is_refused(wrong):
    settings = DEFAULT.adapting()
    fields = photo(4, 4), FLOW, b""
    assert read_head(_head(*fields, settings, bytes(8))).settings == settings
    with pytest.raises(ValueError, match="how its mixtures adapt makes no sense"):
        read_head(_head(*fields, settings._replace(**wrong), bytes(8)))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "RGBA"])
def test_wrong_webp_is_refused(mode):
    picture, draw = drawing(mode), random.Random(mode)
    plane = pack_webp(picture)
    for wrong in (b"", plane[:-20], b"\x2e" + plane[1:], plane[:2]):
        with pytest.raises(ValueError, match="corrupt"):
            unpack_webp(wrong, mode, picture.size)
    with pytest.raises(ValueError, match="120x91"):
        unpack_webp(plane, mode, (120, 91))
    for _ in range(200):
        try:
            assert unpack_webp(edits(plane, draw), mode, picture.size).size == picture.size
        except ValueError as error:
            assert "\n" not in str(error)


def test_photographs_are_not_searched_but_at_high_effort(monkeypatch):
    tried = []

    def look(picture, search=LOOK):
        tried.append(search)
        return pack_webp(picture)

    monkeypatch.setattr("flow.codec.planes.pack_webp", look)
    planes = {WEBP: b"six by"}
    assert searched(photo(), planes, 5) == planes and tried == []
    pack(photo())  # without the flow, WebP is the smallest
    assert tried == [LOOK, GOOD]
    pack(photo(), effort=9)
    assert tried[2:] == [LOOK, GOOD, BEST]
    pack(drawing("RGB"))
    assert tried[5:] == [LOOK, BEST]
    # nor then, where another method is smaller by more than the best search may give
    plane = pack_webp(photo())
    searched(photo(), {WEBP: plane}, len(plane) * 2 // 3, 9)
    assert tried[7:] == [GOOD]


def patterned(side):
    """Exclusive sums of rows and columns: of all methods, deflate is the smallest for it."""
    return Image.fromarray(np.bitwise_xor(*np.indices((side, side))).astype(np.uint8))


def test_deflate_is_looked_at_before_it_is_searched(monkeypatch):
    levels = []

    def deflate(picture, level=THOROUGH):
        levels.append(level)
        return pack_deflate(picture, level)

    monkeypatch.setattr("flow.codec.planes.pack_deflate", deflate)
    picture = photo(200, 200)
    planes = pack_planes(picture)
    assert searched(picture, planes, len(planes[DEFLATE]) // 2)[DEFLATE] == planes[DEFLATE]
    assert levels == [QUICK]
    # where others leave as much, it is searched
    assert searched(picture, planes, len(planes[DEFLATE]))[DEFLATE] == pack_deflate(picture)
    for picture in (patterned(64), photo(200, 200, "P"), photo(200, 200, "1"), photo(16, 16)):
        levels.clear()
        planes = pack_planes(picture)
        assert levels == [QUICK, THOROUGH] and planes[DEFLATE] == pack_deflate(picture)
        levels.clear()
        assert searched(picture, planes, len(planes[DEFLATE]))[DEFLATE] == planes[DEFLATE] and not levels
    assert smallest_plane(patterned(200)) == pack_deflate(patterned(200))


@pytest.mark.parametrize("side", [24, 64, 200])
def test_deflate_is_chosen_where_it_is_smallest(side):
    picture = patterned(side)
    data = pack(picture, MODEL, NAME)
    assert read_head(data).method == DEFLATE and read_head(data).plane == pack_deflate(picture)
    same(unpack(data, MODEL, NAME), picture)


@pytest.mark.usefixtures("without_webp")
@pytest.mark.parametrize("settings", [Settings(64, 16), Settings(300, 20), Settings(4096, 23)])
def test_settings_are_in_the_file(settings):
    data = round_trip(photo(), settings)
    assert read_head(data).settings == settings and read_head(data).method == FLOW


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    file.seek(0)
    return file


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def gamma_png(picture, value):
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", value))
    return saved(picture, "PNG", pnginfo=chunks)


SHOWN = {
    "icc": saved(photo(), "PNG", icc_profile=b"some profile" * 20),
    "exif png": saved(photo(), "PNG", exif=orientation(6)),
    "exif jpeg": saved(photo(), "JPEG", exif=orientation(3)),
    "gamma": gamma_png(photo(), 45455),
    "key": saved(photo(), "PNG", transparency=(1, 2, 3)),
    "black key": saved(photo(mode="L"), "PNG", transparency=0),
    "palette": saved(photo(mode="P"), "PNG", transparency=bytes([0, 128, 255])),
    "palette index": saved(photo(mode="P"), "GIF", transparency=3),
    "1-bit key": saved(photo(mode="1"), "PNG", transparency=0),
}


TOLD = {
    "xmp png": {"XML:com.adobe.xmp": "<x:xmpmeta>\u00e4</x:xmpmeta>"},
    "texts": {"Title": "A title", "Author": "\u00c5ngstr\u00f6m", "Comment": "\u5149\nlines", "empty": ""},
    "long": {"Description": "words " * 400_000},
}


@pytest.mark.parametrize("name", TOLD)
def test_what_a_picture_tells_is_kept(name):
    chunks = PngImagePlugin.PngInfo()
    for key, text in TOLD[name].items():
        chunks.add_itxt(key, text, zip=True)
    picture = read_picture(saved(photo(8, 8), "PNG", pnginfo=chunks, dpi=(300, 72.5)))
    back = unpack(round_trip(picture), MODEL, NAME)
    assert back.info["dpi"] == pytest.approx((300, 72.5), abs=0.02)
    file = io.BytesIO()
    write_png(back, file)
    with Image.open(file) as written:
        assert written.text == TOLD[name]
        assert written.info["dpi"] == pytest.approx((300, 72.5), abs=0.02)
    assert read_picture(io.BytesIO(file.getvalue())).info == picture.info


def test_a_comment_is_a_text_and_xmp_of_jpeg_is_kept():
    picture = read_picture(saved(photo(), "JPEG", comment=b"a comment", xmp=b"<xmp/>", dpi=(96, 96)))
    assert picture.info["text"] == {"Comment": "a comment"} and picture.info["xmp"] == b"<xmp/>"
    same(unpack(pack(picture)), picture)


def test_a_large_profile_is_no_reason_to_refuse_a_png():
    profile = random.Random(0).randbytes(1 << 19) * 4
    picture = read_picture(saved(photo(), "PNG", icc_profile=profile))
    assert unpack(pack(picture)).info["icc_profile"] == profile


def test_a_profile_with_the_curve_of_most_takes_little():
    """And files of before, which have no dictionary, are read as ever; those of another one are not."""
    words = b"a profile's words, as long as they are"
    picture = photo(4, 4)
    picture.info["icc_profile"] = profile = (
        random.Random(0).randbytes(100) + words + srgb_curve() + words[::-1]
    )
    packed = pack_metadata(picture)
    assert len(packed) < 260 and unpack_metadata(packed, "RGB") == picture.info
    before = zlib.compress(b"i" + struct.pack(">I", len(profile)) + profile, 9)
    assert len(before) > 1500 and unpack_metadata(before, "RGB") == picture.info
    other = zlib.compressobj(9, zdict=srgb_curve()[::-1])
    with pytest.raises(ValueError, match="corrupt"):
        unpack_metadata(other.compress(profile) + other.flush(), "RGB")
    assert zlib.crc32(srgb_curve()) == 0x7740FB2A


def test_long_texts_may_come_last_and_no_limit_stays_raised():
    text = b"Description\0\0" + zlib.compress(b"words " * 400_000)
    *first, last = chunks(saved(photo(8, 8), "PNG").getvalue())
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    picture = read_picture(io.BytesIO(png_of([*first, (b"zTXt", text), last])))
    assert picture.info["text"] == {"Description": "words " * 400_000}
    with pytest.raises(ValueError):
        read_picture(io.BytesIO(b"no picture"))
    assert PngImagePlugin.MAX_TEXT_CHUNK == limit < 1 << 21


def test_sizes_that_pillow_warns_of_are_read_without_a_word(monkeypatch):
    pictures = [photo(64, 64), as_picture(np.asarray(photo(64, 64)).astype(np.uint16) * 100)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for picture in pictures:
            for form in ("png", "tif"):
                back = read_picture(io.BytesIO(in_format(picture, form)[0]))
                assert np.array_equal(back, picture)
        planes = pack_deflate(pictures[0]), pack_webp(pictures[0])
        for unpack_plane, plane in zip((unpack_deflate, unpack_webp), planes):
            same(unpack_plane(plane, "RGB", (64, 64)), pictures[0])
    assert Image.MAX_IMAGE_PIXELS == 3000


def test_threads_leave_filters_of_warnings_as_they_were(monkeypatch):
    """However they overlap: here the second begins within the first, and ends after it."""
    picture, begun, ended = photo(8, 8), threading.Event(), threading.Event()

    def slow(shown, **kept):
        if not begun.is_set():
            begun.set()
            ended.wait(0.2)
        else:
            ended.set()
            time.sleep(0.2)
        return b""

    monkeypatch.setattr("flow.codec.formats.tiff_of", slow)
    with warnings.catch_warnings():
        before = list(warnings.filters)
        threads = [threading.Thread(target=in_format, args=(picture, "tif")) for _ in range(2)]
        for thread in threads:
            thread.start()
            begun.wait()
        for thread in threads:
            thread.join()
        assert warnings.filters == before


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparency_of_grey_of_few_bits(bits):
    """Samples 0 .. 2^bits - 1, of which the last but one is transparent, and 0 of one bit."""
    clear = (1 << bits) - 2
    row = sum(value << 8 - bits * (1 + value) for value in range(1 << bits)) if bits < 4 else None
    body = bytes([0, row]) if row is not None else bytes([0, *(16 * n + n + 1 for n in range(0, 16, 2))])
    width = {1: 2, 2: 4, 4: 16}[bits]
    header = width.to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    pixels = (b"IDAT", zlib.compress(body)), (b"IEND", b"")
    png = png_of([(b"IHDR", header), (b"tRNS", clear.to_bytes(2, "big")), *pixels])
    for picture in (read_picture(io.BytesIO(png)), as_picture(Image.open(io.BytesIO(png)))):
        file = io.BytesIO()
        write_png(unpack(round_trip(picture), MODEL, NAME), file)
        shown = np.asarray(Image.open(file).convert("RGBA"))[0]
        assert shown[:, 0].tolist() == [255 * value // (width - 1) for value in range(width)]
        assert [n for n in range(width) if not shown[n, 3]] == [clear]


def test_an_empty_transparency_is_no_field():
    picture = photo(8, 8, "P")
    packed = pack_metadata(as_picture(picture))
    assert b"t" not in zlib.decompress(packed)[:1]
    assert "transparency" not in unpack_metadata(packed, "P")
    empty = picture.copy()
    empty.info["transparency"] = b""
    assert pack(as_picture(empty)) == pack(as_picture(picture))
    for mode, fields in (("P", b"p\0\0\0\3abct\0\0\0\0"), ("L", b"t\0\0\0\0"), ("RGB", b"c\0\0\0\2a\0")):
        with pytest.raises(ValueError, match="corrupt"):
            unpack_metadata(zlib.compress(fields), mode)


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_picture_shows_by_is_kept(name):
    SHOWN[name].seek(0)
    picture = read_picture(SHOWN[name])
    assert picture.info
    SHOWN[name].seek(0)
    original = Image.open(SHOWN[name])
    original.load()
    file = io.BytesIO()
    write_png(unpack(round_trip(picture), MODEL, NAME), file)
    back = Image.open(file)
    back.load()
    assert np.array_equal(np.asarray(back.convert("RGBA")), np.asarray(original.convert("RGBA")))
    for key in ("icc_profile", "gamma"):
        assert back.info.get(key) == original.info.get(key)
    assert back.getexif() == original.getexif()


@pytest.mark.parametrize(
    "file, word",
    [
        (saved(Image.new("CMYK", (4, 4)), "TIFF"), "CMYK"),
        (saved(Image.new("I", (4, 4)), "TIFF"), "8 bits"),
        (saved(photo(), "GIF", save_all=True, append_images=[noise(64, 64)]), "2 frames"),
        (io.BytesIO(b"nothing"), "Pillow"),
    ],
)
def test_other_files_are_refused(file, word):
    with pytest.raises(ValueError, match=word):
        read_picture(file)


def golden(name):
    pictures = {
        "flow": photo(24, 20),
        "alpha": photo(40, 9, "RGBA"),
        "deflate": photo(23, 5, "P"),
        "raw": photo(2, 3),
        "webp": drawing("RGBA").crop((0, 0, 50, 40)),
    }
    return pictures[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_decodes_files_of_older_versions(name):
    """Never make these files anew: what was written once must decode."""
    picture = unpack((FIXTURES / f"{name}.nwf").read_bytes(), MODEL, NAME)
    same(picture, Image.open(FIXTURES / f"{name}.png"))


def test_golden_files_have_every_method():
    methods = [read_head((FIXTURES / f"{name}.nwf").read_bytes()).method for name in GOLDEN]
    assert methods == [FLOW, FLOW, DEFLATE, RAW, WEBP]


def edits(data, draw):
    """A file with one thing wrong with it."""
    at = draw.randrange(len(data))
    kind = draw.randrange(6)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + draw.randbytes(draw.randrange(1, 5)) + data[at:]
    if kind == 3:
        return data[:at] + data[at + draw.randrange(1, 5) :]
    if kind == 4:
        return data[:at]
    return data + draw.randbytes(draw.randrange(1, 9))


def refused(data, **how):
    with pytest.raises(ValueError) as caught:
        unpack(data, MODEL, NAME, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", GOLDEN)
def test_any_edit_is_refused(name):
    data, draw = (FIXTURES / f"{name}.nwf").read_bytes(), random.Random(name)
    for _ in range(EDITS[name]):
        wrong = edits(data, draw)
        if wrong != data:
            refused(wrong)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_cut_and_every_bit_is_refused(name):
    data = (FIXTURES / f"{name}.nwf").read_bytes()
    end = read_head(data).end
    for at in [*range(end), *range(end, len(data), 20)]:
        refused(data[:at])
    for at in range(min(8 * end + 40, 8 * len(data))):
        refused(data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :])


def test_another_spelling_of_the_first_state_is_refused():
    data = (FIXTURES / "flow.nwf").read_bytes()
    end = read_head(data).end
    size = data[end] >> 6
    spelled = bytes([size + 1 << 6, data[end] & 63]) + data[end + 1 :] if size < 3 else data[end:] + b"\0"
    refused(data[:end] + spelled)


def test_random_bytes_are_refused():
    draw = random.Random(0)
    for _ in range(1000):
        refused(draw.randbytes(draw.randrange(60)))
        refused(b"NWF\x01" + draw.randbytes(draw.randrange(60)))


@pytest.mark.parametrize("name", GOLDEN)
def test_forged_heads_are_refused(name):
    """With a checksum that is right, too."""
    data, draw = (FIXTURES / f"{name}.nwf").read_bytes(), random.Random(name)
    end = read_head(data).end
    for _ in range(1000):
        head = edits(data[: end - 4], draw)
        forged = head + zlib.crc32(head).to_bytes(4, "big") + data[end:]
        if head == data[: end - 4]:
            continue
        try:
            picture = unpack(forged, MODEL, NAME)
        except ValueError as error:
            assert "\n" not in str(error)
        else:  # another picture, well formed: no more can be said where the head is all there is
            assert name in ("deflate", "raw", "webp") and picture.width * picture.height < 1 << 20


def test_forged_sizes_are_refused_before_anything_is_allocated(monkeypatch):
    data = (FIXTURES / "flow.nwf").read_bytes()
    monkeypatch.setattr("flow.codec.container.Decoder", None)
    monkeypatch.setattr("flow.codec.container.unpack_deflate", None)
    for name in ("codec.planes.PngImageFile", "codec.planes.WebPImageFile", "zoom.Decoder"):
        monkeypatch.setattr(f"flow.{name}", None)
    for width, height in ((1 << 26, 1), (1 << 13, 1 << 13), (1 << 34, 1 << 34), (0, 5), (1 << 27, 2)):
        for kind in (data[4], 4 | RAW << 3, 4 | DEFLATE << 3, 4 | WEBP << 3):
            sizes = b"".join(map(number, (width, height)))
            fits = 0 < width * height < 1 << 27
            levels = len(_checked_levels(width, height)) if fits else 0
            rest = bytes.fromhex(NAME)[:8] + bytes(4 * levels) if kind == data[4] else number(50) + bytes(50)
            head = data[:4] + bytes([kind]) + sizes + rest
            forged = head + zlib.crc32(head).to_bytes(4, "big") + bytes(50)
            refused(forged)
            with pytest.raises(ValueError, match="50 bytes for" if fits and kind == data[4] else None):
                list(load_file(MODEL, NAME, forged))


def number(value):
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


@pytest.mark.usefixtures("without_webp")
def test_wrong_model_is_named():
    data = pack(photo(), MODEL, NAME)
    with pytest.raises(ValueError, match=f"{NAME[:16]}.*{'ab' * 8}"):
        unpack(data, MODEL, "ab" * 32)
    with pytest.raises(ValueError, match=NAME[:16]):
        unpack(data)
    same(unpack((FIXTURES / "deflate.nwf").read_bytes()), Image.open(FIXTURES / "deflate.png"))


@pytest.mark.usefixtures("without_webp")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_levels_need_the_first_part_only(mode):
    picture = photo(150, 101, mode)
    data = round_trip(picture)
    for levels in range(1, 7):
        small = unpack(data, MODEL, NAME, levels=levels)
        step = 1 << levels
        assert small.mode == mode and small.size == (-(-150 // step), -(-101 // step))
        if mode == "RGBA":
            assert np.array_equal(np.asarray(small)[..., 3], np.asarray(picture)[::step, ::step, 3])
        if read_head(data).method == FLOW and levels == 2:
            same(unpack(data[: len(data) // 3], MODEL, NAME, levels=levels), small)
    with pytest.raises(ValueError, match="8 levels"):
        unpack(data, MODEL, NAME, levels=8)
    with pytest.raises(ValueError, match="-1 levels"):
        unpack(data, MODEL, NAME, levels=-1)


class Merges:
    """The sides of what a model's level makes, while it is in place of its `merge`."""

    def __init__(self, monkeypatch):
        self.sides, level = [], MODEL.pyramid.level(0)
        self.merge = level.merge
        monkeypatch.setattr(level, "merge", self)

    def __call__(self, coarse, detail):
        x = self.merge(coarse, detail)
        self.sides.append(max(x.shape[-2:]))
        return x


@pytest.mark.usefixtures("without_webp")
def test_a_smaller_picture_is_a_coarse_band_and_costs_no_more(monkeypatch):
    data, made = pack(photo(150, 101), MODEL, NAME), Merges(monkeypatch)
    band = MODEL.from_images(torch.from_numpy(np.array(photo(150, 101))).permute(2, 0, 1)[None])
    for levels in range(1, 7):
        made.sides.clear()
        band, _ = MODEL.pyramid.level(levels - 1).split(band)
        small = unpack(data, MODEL, NAME, levels=levels)
        expected = MODEL.to_images(band).clamp(0, 255)[0].permute(1, 2, 0)
        assert np.array_equal(np.asarray(small), expected)
        assert max(made.sides, default=2) == max(small.size) == -(-150 // 2**levels)


def test_what_a_forged_size_costs_is_what_is_asked_for(monkeypatch):
    identity, made = bytes.fromhex(NAME)[:8], Merges(monkeypatch)
    head = b"NWF\x02" + bytes([MODES.index("RGB") | FLOW << 3]) + number(11585) * 2 + identity + bytes(4 * 8)
    data = head + zlib.crc32(head).to_bytes(4, "big") + bytes(range(1, 241)) + bytes(160)
    assert len(data) < 460
    for levels in (13, 12, 11):
        side = -(-11585 // 2**levels)
        assert unpack(data, MODEL, NAME, levels=levels).size == (side, side)
        assert max(made.sides, default=2) == side
    for levels in (8, 5, 0):  # where there are checksums, or more than the bytes may hold
        made.sides.clear()
        refused(data, levels=levels)
        assert max(made.sides, default=0) <= 46


@pytest.mark.usefixtures("without_webp")
def test_level_checksums_guard_the_first_part():
    data = pack(photo(170, 101), MODEL, NAME)
    head = read_head(data)
    assert sorted(head.level_checksums) == [1, 2]  # 85x51, 43x26, but not 22x13
    at = head.end + 40
    wrong = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
    for levels in (1, 2):
        refused(wrong[: len(wrong) // 2], levels=levels)
    refused(wrong, partial=True)


@pytest.mark.usefixtures("without_webp")
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_partial_gives_what_is_there(mode):
    picture = photo(96, 64, mode)
    data = pack(picture, MODEL, NAME)
    end, errors = read_head(data).end, []
    for length in (end, end + 3, end + 100, len(data) // 2, len(data) - 200, len(data)):
        refused(data[:length]) if length < len(data) else None
        back = unpack(data[:length], MODEL, NAME, partial=True)
        assert back.mode == mode and back.size == picture.size
        errors.append(np.abs(np.asarray(back, int) - np.asarray(picture, int)).mean())
    assert errors[0] >= errors[2] > errors[3] > errors[4] > errors[5] == 0
    refused(data[: end - 1], partial=True)


@pytest.mark.usefixtures("without_webp")
def test_another_process_and_thread_count_decode_the_same(tmp_path):
    Path(tmp_path, "x.nwf").write_bytes(pack(photo(120, 90), MODEL, NAME))
    code = (
        "import sys, torch; torch.set_num_threads(3); from pathlib import Path;"
        "from tests.test_container import unpack, MODEL, NAME;"
        "sys.stdout.buffer.write(unpack(Path(sys.argv[1]).read_bytes(), MODEL, NAME).tobytes())"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.nwf"],
        capture_output=True,
        check=True,
        cwd=FIXTURES.parents[1],
    )
    assert made.stdout == photo(120, 90).tobytes()


def test_nothing_to_pack():
    with pytest.raises(ValueError, match="0x3"):
        pack(Image.new("RGB", (0, 3)), MODEL, NAME)


@pytest.mark.parametrize("name", ["flow", "alpha", "deflate"])
def test_edits_read_in_part_give_a_picture_of_the_right_size_or_one_line(name):
    data, draw = (FIXTURES / f"{name}.nwf").read_bytes(), random.Random(name)
    size = Image.open(FIXTURES / f"{name}.png").size
    for _ in range(60):
        for how in (dict(partial=True), dict(levels=2), dict(levels=1, partial=True)):
            try:
                picture = unpack(edits(data, draw), MODEL, NAME, **how)
            except ValueError as error:
                assert "\n" not in str(error)
            else:
                step = 1 << how.get("levels", 0)
                assert picture.size == tuple(-(-side // step) for side in size)
