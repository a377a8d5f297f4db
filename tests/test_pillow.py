"""The plug-in of Pillow's: what it opens and saves is what Codec does."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import flow.pillow
from flow import Codec
from flow.codec.container import read_head
from utils.box import BOX, ROOT

PHOTO = Image.open(BOX / "photos" / "oakland-zoo-otters.png").convert("RGB").crop((400, 300, 528, 396))


def saved(picture, **options):
    file = io.BytesIO()
    picture.save(file, "NWF", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pictures_come_back(mode, tmp_path):
    if mode == "P":
        picture = PHOTO.quantize(11)
    elif mode == "I;16":
        picture = Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 100)
    else:
        picture = PHOTO.convert(mode.removesuffix("A"))
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    picture.info = {"gamma": 0.5}
    picture.save(tmp_path / "picture.nwf")
    with Image.open(tmp_path / "picture.nwf") as back:
        assert (back.format, back.mode, back.size, back.info) == ("NWF", mode, picture.size, {"gamma": 0.5})
        assert back.tobytes() == picture.tobytes() and back.mode == mode
        assert back.getpalette() == picture.getpalette()


def test_the_bytes_are_those_of_codec_and_options_count(monkeypatch):
    assert saved(PHOTO) == Codec().compress(PHOTO)
    profile = {"icc_profile": b"a profile"}
    assert Image.open(io.BytesIO(saved(PHOTO, **profile))).info == profile
    seen = []
    monkeypatch.setattr(Codec, "compress", lambda self, picture, effort: seen.append(effort) or b"")
    saved(PHOTO, effort=7)
    assert seen == [7]


def test_drafts_and_thumbnails_are_levels():
    data = saved(PHOTO)
    image = Image.open(io.BytesIO(data))
    assert image.draft(None, (30, 20)) == ("RGB", (0, 0, 32, 24)) and image.size == (32, 24)
    assert image.tobytes() == Codec().decompress(data, levels=2).tobytes()
    assert image.draft(None, (1, 1)) is None
    image = Image.open(io.BytesIO(data))
    image.thumbnail((16, 16))
    assert image.size == (16, 12)
    expected = PHOTO.resize((16, 12), Image.Resampling.BOX)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean() < 16
    assert Image.open(io.BytesIO(data)).draft("L", (1000, 1)) == ("RGB", (0, 0, 128, 96))
    drawing = Image.open(io.BytesIO(saved(Image.new("RGB", (64, 64)))))
    assert drawing.draft(None, (8, 8)) is None and drawing.size == (64, 64)


def test_models_of_other_folders(monkeypatch):
    monkeypatch.setattr(flow.pillow, "_folders", [])
    data = Codec(BOX / "cifar").compress(PHOTO)
    assert Image.open(io.BytesIO(data)).tobytes() == PHOTO.tobytes()
    flow.pillow.use(BOX / "cifar")
    assert saved(PHOTO) == data
    with pytest.raises(ValueError, match="absent"):
        flow.pillow.use(BOX / "absent")


@pytest.fixture
def bad_folder(tmp_path):
    """A model folder whose files are damaged."""
    shutil.copytree(BOX / "cifar", tmp_path / "bad")
    for path in (tmp_path / "bad" / "savings").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    return tmp_path / "bad"


def test_only_the_model_of_a_file_is_opened(bad_folder, monkeypatch):
    monkeypatch.setattr(flow.pillow, "_folders", [bad_folder])
    data, opened = Codec(BOX / "wavelet").compress(PHOTO), []
    monkeypatch.setattr(flow.pillow, "_codec", lambda folder: opened.append(folder) or Codec(folder))
    assert Image.open(io.BytesIO(data)).tobytes() == PHOTO.tobytes()
    assert opened == [BOX / "wavelet"]


def test_a_file_of_an_unknown_model_names_it(bad_folder, monkeypatch):
    data = (ROOT / "tests" / "fixtures" / "flow.nwf").read_bytes()
    monkeypatch.setattr(flow.pillow, "_folders", [bad_folder])
    with pytest.raises(OSError, match=f"^made with the model {read_head(data).model}, which is needed"):
        Image.open(io.BytesIO(data)).load()


def test_wrong_files_fail_as_others_do():
    data = saved(PHOTO)
    for wrong in (data[:9], b"NWF\x01" + data[4:], data[:5] + b"\7" + data[6:]):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(wrong))
    with pytest.raises(OSError, match="cut"):
        Image.open(io.BytesIO(data[:-100])).load()
    with pytest.raises(OSError, match="CMYK"):
        saved(Image.new("CMYK", (4, 4)))
    deep = Codec().compress(np.arange(300, dtype=np.uint16).reshape(10, 10, 3) * 99)
    with pytest.raises(OSError, match="16 bits"):
        Image.open(io.BytesIO(deep)).load()


def test_files_are_known_by_the_import_alone(tmp_path):
    (tmp_path / "picture.nwf").write_bytes(Codec().compress(PHOTO))
    code = "import sys, flow.pillow; from PIL import Image; print(Image.open(sys.argv[1]).getpixel((5, 6)))"
    run = [sys.executable, "-c", code, tmp_path / "picture.nwf"]
    made = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert made.stdout.strip() == str(PHOTO.getpixel((5, 6)))
