"""easyEncode.py: pictures to files and back, data sets, and what users can get wrong."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from easyEncode import main
from flow.codec import jobs
from flow.codec.evaluate import code
from flow.folder import write_options
from flow.model import build
from utils.box import ROOT
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


@pytest.mark.usefixtures("without_webp")
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


@pytest.fixture
def many(tmp_path):
    """A folder with eleven pictures, the first ones the largest, and two files that are none."""
    here = tmp_path / "many"
    here.mkdir()
    photo = Image.open(PHOTOS / "oakland-zoo-otters.png").convert("RGB")
    for n in range(11):
        photo.crop((300, 200, 460 - 14 * n, 320 - 10 * n)).save(here / f"{n:02}.png")
    for n in (0, 7):
        (here / f"{n:02}b.png").write_bytes(b"nothing")
    return here


def names(table):
    return re.findall(r"(\w+)\.nwf", table)


def test_many_at_once_are_as_one_after_the_other(folder, many, tmp_path, capsys):
    argv = "-folder", folder, "-img", many, "-out"
    tables = {}
    for count in (1, 4):
        status, tables[count], errors = run(capsys, *argv, tmp_path / str(count), "-jobs", count)
        assert status == 2 and ["00b.png" in errors[0], "07b.png" in errors[1]] == [True, True]
        assert len(errors) == 2
    assert names(tables[1]) == names(tables[4]) == [f"{n:02}" for n in range(11)]
    assert "11 files" in tables[4]
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "4" / path.name).read_bytes()


def test_jobs_run_at_once(tmp_path):
    meeting = threading.Barrier(3, timeout=60)  # that three of them must reach together

    def work(source, path):
        meeting.wait()
        path.write_text("")
        return jobs.Sizes(1)

    pairs = [jobs.Job(tmp_path / str(n), tmp_path / f"{n}.nwf") for n in range(6)]
    assert jobs.run(pairs, work, at_once=3) == 0


def test_a_fault_of_the_program_ends_all(tmp_path):
    began = []

    def work(source, path):
        began.append(source)
        if len(began) == 1:
            raise RuntimeError("a fault")
        path.write_text("half")
        while True:
            time.sleep(0.01)

    pairs = [jobs.Job(tmp_path / str(n), tmp_path / f"{n}.nwf") for n in range(9)]
    with pytest.raises(RuntimeError, match="a fault"):
        jobs.run(pairs, work, at_once=3)
    assert len(began) <= 4 and list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if "serve" in thread.name]


def start(*argv):
    """Start a Python of two threads in the project's root, which Ctrl-C reaches."""
    argv, environment = [sys.executable, *map(str, argv)], os.environ | {"OMP_NUM_THREADS": "2"}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(argv, cwd=ROOT, env=environment, text=True, **pipes)


def test_ctrl_c_ends_at_once_and_leaves_whole_files(folder, many, tmp_path):
    photo = Image.open(PHOTOS / "oakland-zoo-otters.png").convert("RGB")
    for n in range(20, 40):
        photo.save(many / f"{n}.png")
    out = tmp_path / "out"
    process = start("easyEncode.py", "-folder", folder, "-img", many, "-out", out)
    while not (out / "10.nwf").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    table, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == 130 and errors.splitlines()[-1] == "easyEncode.py: interrupted"
    assert "Traceback" not in errors and "%|" not in errors
    left = sorted(path.name for path in out.iterdir())
    assert not [name for name in left if name.startswith(".")] and len(left) < 31
    status = start("easyEncode.py", "-folder", folder, "-decode", out, "-out", out).wait(timeout=60)
    assert status == 0 and equal(many / "10.png", out / "10.png")


def test_two_processes_share_the_files(folder, many, tmp_path, capsys):
    """A file fails in the first process alone, early: the second is not ended for it."""
    (many / "07b.png").unlink()
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2
    process = start(*launcher, "easyEncode.py", "-folder", folder, "-img", many, "-out", tmp_path / "out")
    table, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and errors.count("00b.png") == 1
    assert sorted(names(table)) == [f"{n:02}" for n in range(11)]
    assert len(re.findall(r"[56] files", table)) == 2
    for n in range(11):
        run(capsys, "-folder", folder, "-decode", tmp_path / "out" / f"{n:02}.nwf", "-out", tmp_path)
        assert equal(many / f"{n:02}.png", tmp_path / f"{n:02}.png")


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
        (("-img", "a.png", "-jobs", "-1"), "-jobs"),
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
