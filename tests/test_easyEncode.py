"""easyEncode.py: pictures to files and back, data sets, and what users can get wrong."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from easyEncode import main
from flow.codec.evaluate import code
from flow.folder import write_options
from flow.model import build
from utils.data.datasets import PHOTOS
from utils.data.images import read_rgb
from utils.files import save_tensors

OPTIONS = dict(hchnl=4, lifting="legall", simplePrior=True, HUE=True, target="photos", size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that needs no training: LeGall's wavelet, with the scales of a photograph's details."""
    path = tmp_path_factory.mktemp("model")
    model = build(OPTIONS)
    with torch.no_grad():
        for p in (p for lift in model.pyramid.levels[0].lifts for p in lift.network.parameters()):
            p.zero_()
        x = read_rgb(PHOTOS / "casa-mila.png")[None, :, :512, :512].float()
        _, details = model.transform(x)
        for k, band in enumerate(details[0]):
            spread = band.flatten(2).abs().mean(2)[0] / 256
            model.detail.logscale[3 * k : 3 * k + 3, 0, 0] = torch.log(spread.clamp(min=1e-3) / 1.4)
            model.detail.mean[3 * k : 3 * k + 3] = -0.5
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name in ("best_test", "best_train"):
        save_tensors(path / "savings" / f"{name}.safetensors", tensors, {})
    write_options(path, OPTIONS)
    return str(path)


@pytest.fixture
def pictures(tmp_path):
    """A folder with three pictures, one of them in a folder below."""
    here = tmp_path / "pictures"
    (here / "below").mkdir(parents=True)
    photo = Image.open(PHOTOS / "oakland-zoo-otters.png").convert("RGB").crop((300, 200, 380, 260))
    photo.save(here / "photo.png")
    photo.convert("L").save(here / "grey.jpg")
    photo.quantize(9).save(here / "below" / "photo.gif")
    return here


def run(capsys, *argv):
    """Status, stdout and the lines on stderr that are no bar."""
    try:
        status = main([str(a) for a in argv]) or 0
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, [line for line in re.split(r"[\r\n]", err) if line.strip() and "%|" not in line]


def equal(a, b):
    a, b = Image.open(a), Image.open(b)
    return a.size == b.size and np.array_equal(np.asarray(a.convert("RGB")), np.asarray(b.convert("RGB")))


def test_files_and_folders_come_back(folder, pictures, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back"
    status, table, errors = run(capsys, "-folder", folder, "-img", pictures, "-out", out)
    assert (status, errors) == (0, [])
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.nwf")) == [
        "below/photo.nwf", "grey.nwf", "photo.nwf",
    ]  # fmt: skip
    assert "bits/dim" in table and "photo.nwf" in table and "3 files" in table
    assert run(capsys, "-folder", folder, "-decode", out, "-out", back)[0] == 0
    for source in ("photo.png", "grey.jpg", "below/photo.gif"):
        assert equal(pictures / source, (back / source).with_suffix(".png"))


def test_nothing_is_overwritten_without_force(folder, pictures, tmp_path, capsys):
    argv = "-folder", folder, "-img", pictures / "photo.png", "-out", tmp_path
    target = tmp_path / "photo.nwf"
    target.write_text("mine")
    status, _, errors = run(capsys, *argv)
    assert status == 2 and len(errors) == 1 and "-force" in errors[0]
    assert target.read_text() == "mine"
    assert run(capsys, *argv, "-force")[0] == 0
    assert target.read_bytes().startswith(b"NWF")


def test_a_failed_item_is_reported_and_the_rest_done(folder, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes((pictures / "photo.png").read_bytes()[:300])
    Image.new("CMYK", (3, 3)).save(pictures / "cmyk.tif")
    argv = pictures, tmp_path / "absent.png"
    status, _, errors = run(capsys, "-folder", folder, "-img", *argv, "-out", tmp_path / "out")
    assert status == 2 and len(errors) == 3
    for name, line in zip(("broken.png", "cmyk.tif", "absent.png"), errors):
        assert name in line
    written = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written == ["grey.nwf", "photo.nwf", "photo.nwf"]


def test_corrupt_and_cut_files(folder, pictures, tmp_path, capsys):
    run(capsys, "-folder", folder, "-img", pictures / "photo.png", "-out", tmp_path)
    file = tmp_path / "photo.nwf"
    data = file.read_bytes()
    decode = "-folder", folder, "-decode", file, "-out", tmp_path / "back", "-force"
    file.write_bytes(data[:-30] + b"x" + data[-29:])
    assert run(capsys, *decode)[0] == 2
    file.write_bytes(data[: len(data) // 2])
    status, _, errors = run(capsys, *decode)
    assert status == 2 and "-partial" in errors[0] and len(errors) == 1
    assert not (tmp_path / "back" / "photo.png").exists()
    assert run(capsys, *decode, "-partial")[0] == 0
    assert Image.open(tmp_path / "back" / "photo.png").size == (80, 60)
    assert run(capsys, *decode, "-levels", 2)[0] == 0
    assert Image.open(tmp_path / "back" / "photo.png").size == (20, 15)
    assert run(capsys, *decode, "-levels", 99)[0] == 2


def test_same_names_are_refused(folder, pictures, tmp_path, capsys):
    (pictures / "photo.bmp").write_bytes(b"")
    status, _, errors = run(capsys, "-folder", folder, "-img", pictures, "-out", tmp_path / "out")
    assert status == 2 and "photo.bmp" in errors[0] and "photo.png" in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv, word",
    [
        (("-img", "a.png", "-decode", "a.nwf"), "-decode"),
        (("-img", "a.png", "-levels", "1"), "-levels"),
        (("-partial",), "-partial"),
        (("-img",), "argument"),
        (("-folder", "nowhere", "-img", "a.png"), "nowhere"),
        (("-img", "."), "no such files"),
        (("-target", "nothing"), "nothing"),
        (("-target", "photos", "-nbins", "1", "-earlyStop", "1"), "-nbins 1: need 2 .. 8388608"),
        (("-target", "photos", "-precision", "30", "-earlyStop", "1"), "-precision 30: need 16 .. 24"),
        (("-target", "photos", "-earlyStop", "0"), "-earlyStop 0: need at least 1"),
        (
            ("-target", "photos", "-precision", "16", "-nbins", "40000", "-earlyStop", "1"),
            "nbins 40000: need 2 .. 2^(precision - 1)",
        ),
        (("-best", "-valbest"), "-best"),
    ],
)
def test_one_line_for_what_users_get_wrong(folder, argv, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = argv if "-folder" in argv else (*argv, "-folder", folder)
    status, _, errors = run(capsys, *argv)
    assert status == 2 and len(errors) == 1 and word in errors[0]


LAST = re.compile(r"Actual Mean BPD: ([\d.]+) Theory Mean BPD: ([\d.]+) Mean Error: 0\.0\n$")


@pytest.mark.parametrize("extra", [(), ("-best",), ("-size", "17"), ("-nbins", "64", "-precision", "16")])
def test_data_set(folder, extra, capsys):
    argv = "-folder", folder, "-target", "photos", "-batch", 3, "-earlyStop", 2, *extra
    status, out, errors = run(capsys, *argv)
    assert (status, errors) == (0, [])
    actual, theory = map(float, LAST.search(out).groups())
    values = 3 * (17 if "17" in extra else 32) ** 2
    assert abs(actual - theory) < 0.02 + 8 * 6 / values + 0.1 * ("64" in extra)
    for word in ("images/s", "PNG", "WebP", "rounded"):
        assert word in out


def test_a_mismatch_ends_with_status_1(folder, capsys, monkeypatch):
    def wrong(batches, encode, decode, *rest):
        return code(batches, encode, lambda *a: decode(*a) ^ 1, *rest)

    monkeypatch.setattr("easyEncode.code", wrong)
    status, out, _ = run(capsys, "-folder", folder, "-target", "photos", "-earlyStop", 1)
    assert status == 1 and "Mean Error: 1.0" in out
