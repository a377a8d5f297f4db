"""The library: Codec on all that it takes, from several threads, and installed."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import flow
from flow import Codec
from flow.codec.container import FLOW, read_head
from flow.codec.pictures import CHANNELS
from utils.arithmetic import crew
from utils.box import BOX, ROOT

PHOTO = Image.open(BOX / "photos" / "oakland-zoo-otters.png").convert("RGB").crop((400, 300, 464, 348))

PACKAGES = "flow/codec", "flow/figures", "source", "utils"
SUBPACKAGES = "arithmetic", "data", "show"


@pytest.fixture(scope="module")
def codec():
    return Codec()


def array_of(mode):
    if mode in ("LA", "RGBA"):
        alpha = Image.linear_gradient("L").resize(PHOTO.size)
        return np.asarray(Image.merge(mode, (*PHOTO.convert(mode[:-1]).split(), alpha)))
    return np.asarray(PHOTO.convert(mode))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_arrays_come_back(codec, mode):
    array = array_of(mode)
    for given in (array, array[::-2, 5:], np.asfortranarray(array), array[:1, :1]):
        picture = codec.decompress(codec.compress(given))
        assert picture.mode == mode and np.array_equal(picture, given)
    if mode == "L":
        assert codec.compress(array[..., None]) == codec.compress(array)


@pytest.mark.parametrize("mode", CHANNELS)
def test_pictures_come_back_and_stay_as_they_are(codec, mode):
    picture = PHOTO.quantize(11) if mode == "P" else PHOTO.convert(mode[:-1] if mode[-1] == "A" else mode)
    if mode[-1] == "A":
        picture.putalpha(77)
    picture.info = {"icc_profile": b"some profile", "gamma": 0.5, "dpi": (72, 72)}
    back = codec.decompress(codec.compress(picture))
    assert (back.mode, back.size, back.tobytes()) == (mode, picture.size, picture.tobytes())
    assert back.getpalette() == picture.getpalette()
    dpi = back.info.pop("dpi")
    assert dpi == pytest.approx((72, 72), abs=0.02) and picture.info["dpi"] == (72, 72)
    assert back.info == {"icc_profile": b"some profile", "gamma": 0.5}


def test_an_opened_file_is_read_and_left_open(codec, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        back = codec.decompress(codec.compress(image))
        assert image.getexif()[0x0112] == 6
    assert back.tobytes() == PHOTO.tobytes() and back.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    "picture, words",
    [
        (np.zeros((4, 5)), "4x5 of float64.*uint8.*times 255"),
        (np.zeros((4, 5, 3), np.int16), "4x5x3 of int16"),
        (np.zeros((4, 5), bool), "bool"),
        (np.zeros((2, 4, 5, 3), np.uint8), "2x4x5x3 of uint8.*need"),
        (np.zeros((4, 5, 5), np.uint8), "4x5x5"),
        (np.zeros((4, 5, 0), np.uint8), "4x5x0"),
        (np.zeros((0, 5), np.uint8), "5x0 pixels"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8), "3x4x5"),
        ("picture.png", "str .*need an image"),
        (None, "NoneType.*need"),
        (Image.new("CMYK", (4, 4)), "mode CMYK.*RGBA"),
        (Image.new("I", (4, 4)), "8 bits"),
        (Image.new("F", (4, 4)), "8 bits"),
    ],
)
def test_what_is_no_picture_is_named(codec, picture, words):
    with pytest.raises(ValueError, match=words) as caught:
        codec.compress(picture)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_or_no_model_is_named(codec, tmp_path):
    for data, word in (("NWF", "str"), (b"PNG", "not a .nwf"), (PHOTO, "Image to decompress")):
        with pytest.raises(ValueError, match=word):
            codec.decompress(data)
    with pytest.raises(ValueError, match=str(tmp_path)):
        Codec(tmp_path)
    with pytest.raises(ValueError, match="0 threads"):
        Codec(threads=0)
    with pytest.raises(ValueError, match=codec.identity[:16]):
        Codec(BOX / "paper").decompress(codec.compress(PHOTO))


def test_levels_and_partial(codec):
    data = codec.compress(PHOTO)
    assert read_head(data).method == FLOW
    small = codec.decompress(memoryview(data)[: len(data) // 2], levels=2)
    assert small.size == (16, 12) and small == codec.decompress(bytearray(data), levels=2)
    with pytest.raises(ValueError, match="cut"):
        codec.decompress(data[: len(data) // 2])
    part = codec.decompress(data[: len(data) // 2], partial=True)
    assert part.size == PHOTO.size and part != PHOTO


def test_progress_counts_every_value_once(codec):
    for picture in (PHOTO, PHOTO.convert("L"), PHOTO.crop((0, 0, 3, 2)), PHOTO.resize((300, 200))):
        counts, total = [], 3 * picture.width * picture.height
        data = codec.compress(picture, progress=counts.append)
        assert sum(counts) == total
        if read_head(data).method == FLOW:
            counts.clear()
            codec.decompress(data, progress=counts.append)
            assert sum(counts) == total and len(counts) > 3
            counts.clear()
            codec.decompress(data[: 2 * len(data) // 3], partial=True, progress=counts.append)
            assert 0 < sum(counts) < total


def test_bits_are_those_of_the_file(codec):
    """But for what adaptation takes off, of which likelihoods know nothing."""

    def is_about(data, bits):
        stream = 8 * (len(data) - read_head(data).end)
        return 0.98 * bits - 64 < stream < 1.01 * bits + 64

    pictures = [PHOTO, PHOTO.crop((0, 0, 40, 40)), PHOTO.rotate(180)]
    bits = codec.bits(pictures)
    assert bits.shape == (3,) and bits.dtype == np.float64
    for picture, each in zip(pictures, bits):
        assert is_about(codec.compress(picture), each)
    arrays = np.stack([np.asarray(pictures[0]), np.asarray(pictures[2])])
    np.testing.assert_allclose(codec.bits(arrays), bits[[0, 2]], rtol=1e-9)
    grey = PHOTO.convert("L")
    (bits,) = codec.bits([grey])
    assert is_about(codec.compress(grey), bits)
    assert 0 < bits < codec.bits([grey.convert("RGB")])[0]
    assert codec.bits([]).shape == (0,)
    for mode in ("RGBA", "P"):
        with pytest.raises(ValueError, match=mode):
            codec.bits([PHOTO.convert(mode)])
    for channels in 1, 3:
        with pytest.raises(ValueError, match="16 bits a sample"):
            codec.bits([np.zeros((9, 9, channels), np.uint16)])


@pytest.fixture
def eager_threads():
    """Threads that take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("box", ["model", "paper"])
def test_four_threads_at_once(box, eager_threads):
    pictures = [PHOTO.crop((n, n, n + 40, n + 24 + n)) for n in range(12)]
    files = list(map(Codec(BOX / box).compress, pictures))
    codec, start = Codec(BOX / box, threads=1), threading.Barrier(4)  # one that no thread has used yet

    def there_and_back(share):
        start.wait()
        return [(n, codec.compress(pictures[n]), codec.decompress(files[n])) for n in share]

    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(there_and_back, (range(k, 12, 4) for k in range(4))):
            for n, data, picture in made:
                assert data == files[n] and picture == pictures[n]


def test_threads_are_those_of_one_call(codec, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "flow.codec.api.pack", lambda *a, **b: seen.append((crew.size(), torch.get_num_threads())) or b""
    )
    before = torch.get_num_threads()
    several = Codec(threads=before + 2)
    several.compress(PHOTO)
    codec.compress(PHOTO)
    # so many threads of the crew, of which each takes one core
    assert seen == [(before + 2, 1), (before, 1)] and torch.get_num_threads() == before
    monkeypatch.setattr("flow.codec.api.unpack", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        several.decompress(b"")
    assert torch.get_num_threads() == before


def test_the_package_is_a_map_and_cheap():
    code = "import sys, flow; assert not {'torch', 'numpy'} & {*sys.modules}; help('flow')"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    for name in ("flow.codec", "flow.folder", "source", "utils", "class Codec", "compress(self, picture"):
        assert name in text.stdout
    assert all(callable(getattr(flow, name)) for name in flow.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = flow.nothing


@pytest.mark.parametrize(
    "package", ["flow/codec", "flow/figures", "source", "utils", *(f"utils/{p}" for p in SUBPACKAGES)]
)
def test_maps_of_packages_name_every_module(package):
    _, *lines = import_module(package.replace("/", ".")).__doc__.strip().splitlines()
    inside = (ROOT / package).glob("[!_]*")
    assert {line.split()[0] for line in lines if line} == {path.stem for path in inside}


def test_an_installed_package_has_the_box_and_commands(tmp_path):
    """Built of a copy, as building leaves things in its tree."""
    pytest.importorskip("setuptools", "77")
    copy, site, elsewhere = tmp_path / "copy", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("flow", "source", "utils", "etc"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    scripts = list(ROOT.glob("*.py"))
    for path in (*scripts, *(ROOT / name for name in ("pyproject.toml", "requirements.txt", "README.md"))):
        shutil.copy(path, copy)
    pip = "-m pip install -q --no-deps --no-build-isolation --no-index --disable-pip-version-check --target"
    subprocess.run([sys.executable, *pip.split(), site, copy], check=True)
    code = (
        "import sys, flow; from utils.data.images import PHOTOS, picture;"
        "assert flow.__file__.startswith(sys.argv[1]) and len(list(PHOTOS.glob('*.png'))) == 14;"
        "array = picture().permute(1, 2, 0).numpy()[:24, :40]; codec = flow.Codec();"
        "print(codec.decompress(codec.compress(array)).tobytes() == array.tobytes(), codec.identity,"
        "*(flow.find_folder(box=name).is_dir() for name in ('cifar', 'paper')), flow.__version__)"
    )

    def run(*argv):
        how = dict(cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)})
        return subprocess.run(argv, capture_output=True, text=True, check=True, **how).stdout

    made = run(sys.executable, "-c", code, site)
    assert made.split() == ["True", Codec().identity, "True", "True", flow.__version__]
    assert (site / f"neural_wavelet_flow-{flow.__version__}.dist-info").is_dir()
    commands = {path.name for path in (site / "bin").iterdir()}
    assert commands == {path.stem for path in scripts}
    for name in commands:
        assert run(site / "bin" / name, "-h").startswith(f"usage: {name} [-h]")
    PHOTO.save(elsewhere / "photo.png")
    for argv in (("-img", "photo.png", "-out", "."), ("-decode", "photo.nwf", "-out", "back.png")):
        run(site / "bin" / "easyEncode", *argv)
    assert Image.open(elsewhere / "back.png").tobytes() == PHOTO.tobytes()
    run(site / "bin" / "simpleBigWavelet", "-img", "photo.png")
    assert (elsewhere / "output" / "wavelet" / "simpleBigWavelet_photo_depth_2.png").exists()
