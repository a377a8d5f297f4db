"""The other codecs are lossless, and benchmark_rates.py sets ours beside them."""

import subprocess
import sys
from io import BytesIO

import benchmark_rates
import numpy as np
import pytest
import torch
from PIL import Image

from flow.codec.evaluate import code
from flow.folder import write_options
from flow.model import build
from utils.data.datasets import PHOTOS
from utils.data.images import read_rgb
from utils.files import save_tensors
from utils.show.rivals import quick, rivals, sizes

OPTIONAL = {"JPEG-LS": "jpegls", "JPEG 2000": "jpeg2k", "JPEG XL 7": "jpegxl", "JPEG XL 9": "jpegxl"}
PHOTO = read_rgb(PHOTOS / "oakland-zoo-otters.png")[:, 200:260, 300:380].permute(1, 2, 0).contiguous().numpy()
NOISE = np.random.default_rng(0).integers(0, 256, (1, 3, 3), np.uint8)


@pytest.mark.parametrize("pixels", [PHOTO, PHOTO[:32, :32].copy(), NOISE], ids=["photo", "patch", "noise"])
@pytest.mark.parametrize("name", ["PNG", "WebP", *OPTIONAL])
def test_lossless(name, pixels):
    if name not in rivals():
        pytest.skip("not installed")
    data = rivals()[name](pixels)
    if name in OPTIONAL:
        imagecodecs = pytest.importorskip("imagecodecs")
        back = getattr(imagecodecs, f"{OPTIONAL[name]}_decode")(data)
    else:
        back = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    assert np.array_equal(back, pixels)


def test_sizes_are_means_over_images():
    images = torch.from_numpy(np.stack([PHOTO[:32, :32], PHOTO[-32:, -32:]])).permute(0, 3, 1, 2)
    rates = sizes([images], ("PNG", "WebP"))
    assert list(rates) == ["PNG", "WebP"]
    lengths = [len(rivals()["PNG"](x.permute(1, 2, 0).contiguous().numpy())) for x in images]
    assert rates["PNG"] == pytest.approx(8 * np.mean(lengths) / (3 * 32 * 32))
    assert list(sizes([images])) == list(rivals())
    assert all(rate > 0 for rate in sizes([images[:, :, :1, :1]]).values())  # of one pixel
    assert quick() == [name for name in rivals() if name != "JPEG XL 9"]


def test_nothing_is_tried_before_it_is_asked_for():
    words = "import sys; from utils.show.rivals import rivals; assert 'imagecodecs' not in sys.modules; "
    words += "assert 'pillow_jxl' not in sys.modules; assert rivals() is rivals()"
    subprocess.run([sys.executable, "-c", words], check=True, cwd=PHOTOS.parents[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    options = dict(hchnl=4, simplePrior=True, HUE=True, target="photos", size=32)
    tensors = {f"model.{name}": t for name, t in build(options).state_dict().items()}
    save_tensors(path / "savings" / "latest.safetensors", tensors, {})
    write_options(path, options)
    return str(path)


@pytest.fixture
def pictures(tmp_path):
    for i in range(3):
        Image.fromarray(PHOTO[:40, 8 * i : 8 * i + 33]).save(tmp_path / f"{i}.png")
    Image.fromarray(PHOTO[..., 0]).save(tmp_path / "grey.png")
    return tmp_path


def run(capsys, *argv):
    """Status, the table without its head, and stderr."""
    try:
        status = benchmark_rates.main([str(a) for a in argv]) or 0
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out.splitlines()[1:], err


def test_table_of_pictures(folder, pictures, capsys):
    status, rows, _ = run(capsys, "-folder", folder, "-img", pictures / "grey.png", pictures, "-count", 3)
    assert status == 0 and [row.split()[0] for row in rows] == ["grey.png", "0.png", "1.png", "mean"]
    columns = 1 + len(rivals())
    *cells, mean = [np.array(row[benchmark_rates.WIDTH :].split()[:columns], float) for row in rows]
    assert np.allclose(np.mean(cells, axis=0), mean, atol=1e-4)
    png = 8 * len(rivals()["PNG"](PHOTO[:40, :33].copy())) / (3 * 40 * 33)
    assert cells[1][1] == pytest.approx(png, abs=1e-4)


def test_table_of_a_data_set(folder, capsys):
    status, rows, _ = run(capsys, "-folder", folder, "-target", "photos", "-size", 32, "-count", 7)
    assert status == 0 and len(rows) == 1 and rows[0].startswith("photos, 7 images ")
    again = run(capsys, "-folder", folder, "-size", 32, "-count", 7, "-batch", 3)[1]
    assert again[0].split()[:-2] == rows[0].split()[:-2]  # but for the seconds


def test_what_came_back_changed_ends_with_status_1(folder, pictures, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_rates.Codec, "decompress", lambda *_: Image.new("RGB", (33, 40)))
    status, rows, errors = run(capsys, "-folder", folder, "-img", pictures / "0.png")
    assert status == 1 and len(rows) == 1 and "0.png" in errors

    def wrong(batches, encode, decode, *rest):
        return code(batches, encode, lambda *a: decode(*a) ^ 1, *rest)

    monkeypatch.setattr(benchmark_rates, "code", wrong)
    status, rows, errors = run(capsys, "-folder", folder, "-size", 32, "-count", 2)
    assert status == 1 and len(rows) == 1 and "changed" in errors


@pytest.mark.parametrize(
    "argv, word",
    [
        (("-img", "a.png", "-target", "CIFAR"), "-target"),
        (("-img", "a.png"), "a.png"),
        (("-img", "."), "no image files"),
        (("-count", "0"), "count"),
    ],
)
def test_one_line_for_what_users_get_wrong(folder, argv, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run(capsys, "-folder", folder, *argv)
    assert status == 2 and word in errors and len(errors.splitlines()) == 1
