"""Image files come in as the pixels that they hold, and bad ones say so."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from flow.codec.pictures import read_picture
from flow.codec.planes import png_of
from utils.data.images import halve, image_files, read_rgb

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
RGB = Image.fromarray(PIXELS)


def planar(image):
    """Turn (H, W, 3) into (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def deep_png(path, colour, channels):
    """Write a 2x1 PNG of 16-bit samples, which Pillow itself cannot write in colour."""

    def chunk(kind, content):
        length, checksum = len(content), zlib.crc32(kind + content)
        return struct.pack(">I", length) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 2, 1, 16, colour, 0, 0, 0)
    row = b"\0" + bytes(range(4 * channels))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tif"])
def test_colour_comes_back_exactly(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    RGB.save(path)
    x = read_rgb(path)
    assert x.dtype == torch.uint8 and x.is_contiguous()
    assert torch.equal(x, planar(RGB))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = RGB.convert(mode)
    image.save(tmp_path / "image.tif")
    assert torch.equal(read_rgb(tmp_path / "image.tif"), planar(image.convert("RGB")))


def test_grey_is_widened_and_alpha_dropped(tmp_path):
    grey = np.array([[0, 128, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").tolist() == [[[0, 128, 255]]] * 3
    clear = np.dstack([PIXELS, np.zeros((5, 7), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert torch.equal(read_rgb(tmp_path / "clear.png"), planar(PIXELS))


def test_palette_with_a_transparent_colour(tmp_path):
    image = RGB.quantize(8)
    image.save(tmp_path / "image.png", transparency=0)
    assert torch.equal(read_rgb(tmp_path / "image.png"), planar(image.convert("RGB")))


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    RGB.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_rgb(tmp_path / "turned.png"), planar(np.rot90(PIXELS, -1).copy()))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_is_refused(tmp_path, colour, channels):
    deep_png(tmp_path / "deep.png", colour, channels)
    with pytest.raises(ValueError, match="deep.png: more than 8 bits"):
        read_rgb(tmp_path / "deep.png")


@pytest.mark.parametrize("header", [b"P5 2 1 65535\n", b"P6 2 1 65535\n", b"P6 2 1 1023\n", b"P5 2 1 1023\n"])
def test_16_bit_pnm_is_refused(tmp_path, header):
    (tmp_path / "deep.ppm").write_bytes(header + bytes(12))
    with pytest.raises(ValueError, match="deep.ppm: more than 8 bits"):
        read_rgb(tmp_path / "deep.ppm")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey_is_refused(tmp_path, mode):
    Image.new(mode, (2, 1)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="deep.tif: more than 8 bits"):
        read_rgb(tmp_path / "deep.tif")


@pytest.mark.parametrize("header", [b"P1 2 1\n0 1\n", b"P2 2 1 255\n0 255\n", b"P3 1 1 255\n1 2 3\n"])
def test_plain_pnm_is_read(tmp_path, header):
    (tmp_path / "plain.pnm").write_bytes(header)
    assert read_rgb(tmp_path / "plain.pnm").shape[1] == 1


def test_bad_files_say_so_in_one_line(tmp_path):
    RGB.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for content, cause in ((b"", ""), (b"text", ""), (whole[: len(whole) // 2], ": [^\n]*truncated[^\n]*")):
        (tmp_path / "bad.png").write_bytes(content)
        for read in (read_rgb, read_picture):
            with pytest.raises(ValueError, match=rf"bad\.png: not an image that Pillow can read{cause}$"):
                read(tmp_path / "bad.png")
    with pytest.raises(ValueError, match=r"absent\.png: no such file$"):
        read_rgb(tmp_path / "absent.png")


@pytest.mark.parametrize("read", [read_rgb, read_picture])
def test_what_is_no_fault_of_the_file_is_told(read, tmp_path, monkeypatch):
    RGB.save(tmp_path / "whole.png")

    def fail(error):
        def load(self):
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)

    fail(MemoryError())
    with pytest.raises(MemoryError):
        read(tmp_path / "whole.png")
    for error, cause in ((AttributeError("no such\nthing"), "no such"), (EOFError(), "EOFError")):
        fail(error)
        with pytest.raises(ValueError, match=rf"whole\.png: not an image that Pillow can read: {cause}$"):
            read(tmp_path / "whole.png")


@pytest.mark.parametrize("read", [read_rgb, read_picture])
def test_more_pixels_than_a_picture_may_have_are_refused(read, tmp_path):
    """Before they are decoded: here there are none."""
    header = struct.pack(">IIBBBBB", 1 << 14, (1 << 13) + 1, 8, 0, 0, 0, 0)
    (tmp_path / "large.png").write_bytes(png_of([(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]))
    with pytest.raises(ValueError, match=r"large\.png: 16384x8193 pixels; at most 134,217,728 can be"):
        read(tmp_path / "large.png")


def test_image_files_are_sorted_and_of_all_depths(tmp_path):
    names = ["b.png", "a/z.JPG", "a/b/c.webp", "a/b/notes.txt", ".hidden.png", "folder.png/d.tiff"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a/b/c.webp", "a/z.JPG", "b.png", "folder.png/d.tiff"]


def test_halve_by_hand():
    rows = [[0, 1, 255, 255, 9], [0, 1, 255, 255, 9], [0, 0, 1, 2, 9], [0, 1, 3, 4, 9], [9, 9, 9, 9, 9]]
    assert halve(torch.tensor(rows, dtype=torch.uint8)).tolist() == [[1, 255], [0, 3]]


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))))
def test_halve_is_the_rounded_mean(x):
    height, width = x.shape[1] // 2, x.shape[2] // 2
    blocks = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2)
    expected = np.floor(blocks.mean((2, 4)) + 0.5).astype(np.uint8)
    assert torch.equal(halve(torch.from_numpy(x)), torch.from_numpy(expected))
