"""docs/format.md: a decoder written from it alone reads what we write, and its example is true."""

import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flow.codec.container import _head, _pack_flow, unpack
from flow.codec.pictures import as_picture, pack_metadata, srgb_curve
from flow.codec.planes import pack_planes
from flow.codec.stream import Settings
from flow.folder import identity
from flow.model import build
from tests.conftest import make_wild
from tests.decoder import FIXTURES, MODES, SAMPLES, Model, T, U, V, decode, example, open_model
from tests.test_codec import OPTIONS

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text()


def pixels_of(picture):
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


@pytest.mark.parametrize(
    "name",
    ["raw", "deflate", "webp", "flow", "alpha", "bands/flow", "bands/strips", "bands/corrected"]
    + ["ycc/full", "ycc/halved", "ycc/corner", "ycc/corrected"],
)
def test_the_page_is_enough_to_read_stored_files(name):
    path = FIXTURES / f"{name}.nwf"
    pixels, head, metadata, _ = decode(path.read_bytes(), open_model(path.parent))
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.mode == MODES[head["kind"][2] & 7]
        if picture.mode == "P":
            assert metadata[b"p"] == bytes(picture.getpalette())
        assert np.array_equal(pixels, pixels_of(picture))


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_page_is_enough_for_planes_of_every_mode(mode, noisy):
    pixels = np.random.default_rng(0).integers(0, 256, (13, 21, 4), np.uint8)
    if not noisy:
        pixels[:] = 8 * np.indices((13, 21)).sum(0)[:, :, None]
    picture = as_picture(Image.fromarray(pixels).convert("RGB").convert(mode))
    if "A" in mode:
        picture = Image.fromarray(pixels[:, :, -SAMPLES[mode] :])
    picture.info["icc_profile"] = profile = b"a profile" + srgb_curve()
    planes = pack_planes(picture)
    assert len(planes) == 3
    for method, plane in planes.items():
        decoded, head, metadata, _ = decode(_head(picture, method, pack_metadata(picture), plane=plane))
        assert metadata[b"i"] == profile
        assert np.array_equal(decoded, pixels_of(picture))
        if mode == "P":
            assert metadata[b"p"] == bytes(picture.getpalette())


def test_the_page_is_enough_for_level_checksums():
    frozen = make_wild(build(OPTIONS["paper"]), 0.02).freeze()
    model = Model({n: t.numpy() for n, t in frozen.state_dict().items()}, OPTIONS["paper"])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (63, 66, 3), np.uint8))
    head, stream = _pack_flow(picture, b"", frozen, identity(frozen, OPTIONS["paper"]), Settings())
    pixels, fields, *_ = decode(head + stream, model)
    assert "level 1" in fields and "level 2" not in fields
    assert np.array_equal(pixels, pixels_of(picture))


@pytest.mark.parametrize("name", ["bands", "no couplings", "couplings", "linear", "luma, seen around 0"])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_the_page_is_enough_for_luma_alone(name, mode):
    options = OPTIONS[name if name.startswith(("bands", "linear", "luma")) else "paper"]
    options = options | dict(repeat=0) if name in ("bands", "no couplings") else options
    float_model = make_wild(build(options), 0.2)
    for lift in float_model.pyramid.level(0).filters if name == "linear" else ():
        lift.slow_bias.data.zero_()  # a wild one moves an even grey
    frozen = float_model.freeze()
    model = Model({n: t.numpy() for n, t in frozen.state_dict().items()}, options)
    for size in ((1, 1), (1, 9), (70, 9)):
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 2), np.uint8)
        picture = Image.fromarray(pixels if mode == "LA" else pixels[..., 0])
        head, stream = _pack_flow(picture, b"", frozen, identity(frozen, options), Settings())
        assert head[4] & 7 == (MODES.index(mode) if name == "couplings" and size != (1, 1) else 5 + len(mode))
        assert np.array_equal(decode(head + stream, model)[0], pixels_of(picture))
        back = unpack(head + stream, frozen, identity(frozen, options))
        assert back.mode == mode and np.array_equal(back, picture)


@pytest.mark.parametrize(
    "name, size", [*product(OPTIONS, [(1, 1), (1, 9), (7, 22)]), ("by position", (16, 16))]
)
def test_the_page_is_enough_for_every_kind_of_model(name, size):
    options = (OPTIONS | {"by position": dict(simplePrior=True, diffDetail=True, size=16, hchnl=4)})[name]
    frozen = make_wild(build(options), 0.2).freeze()
    model = Model({n: t.numpy() for n, t in frozen.state_dict().items()}, options)
    assert model.identity().hex() == identity(frozen, options)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    picture = Image.fromarray(pixels if name != "simple" else pixels[:, :, 0])
    for settings in (Settings(), Settings(16, 16)):
        head, stream = _pack_flow(picture, b"", frozen, identity(frozen, options), settings)
        assert np.array_equal(decode(head + stream, model)[0], pixels_of(picture))


def test_the_tables_are_those_of_the_page():
    for table in (T, V, U):
        checksum = zlib.crc32(np.array(table, "<u4").tobytes())
        assert f"{checksum:08X}" in PAGE


def test_the_example_of_the_page_is_true():
    rows = example()
    assert len(rows) == 6 + 6 + 3 + 3
    assert [row for row in rows if row not in PAGE.splitlines()] == []
    model = open_model(FIXTURES)
    *_, stream = decode((FIXTURES / "flow.nwf").read_bytes(), model)
    assert model.identity().hex() in PAGE and f"{stream.state - 2**32:08x}" in PAGE
