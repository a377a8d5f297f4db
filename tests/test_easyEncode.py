"""easyEncode.py: pictures to files and back, data sets, and what users can get wrong."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from easyEncode import OPTIONS as TYPED
from easyEncode import TASKS, check, main
from flow import __version__
from flow.codec import jobs
from flow.codec.container import read_head
from flow.codec.evaluate import code
from flow.codec.options import CODER, PRECISION
from flow.codec.pictures import write_png
from flow.codec.stream import DEFAULT
from flow.folder import write_options
from flow.model import build
from utils.box import ROOT
from utils.data.datasets import PHOTOS
from utils.data.images import read_rgb
from utils.files import HOST, save_tensors

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
    """Status, stdout and the lines on stderr, which is no terminal: without bars."""
    try:
        status = main([str(a) for a in argv]) or 0
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


@pytest.fixture
def coded(folder, pictures, tmp_path, capsys, without_webp):
    """A file that the flow made of a photograph, and its bytes."""
    run(capsys, "-folder", folder, "-img", pictures / "photo.png", "-out", tmp_path)
    file = tmp_path / "photo.nwf"
    return file, file.read_bytes()


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


def test_what_cannot_be_written_is_named(folder, pictures, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    argv = "-folder", folder, "-img", pictures / "photo.png", "-out"
    for out, named in (("file", "file"), ("file/below", "file/below"), ("file/a.nwf", "file")):
        status, _, errors = run(capsys, *argv, tmp_path / out)
        assert status == 2 and len(errors) == 1 and f"{tmp_path / named}: " in errors[0]

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    status, _, errors = run(capsys, *argv, tmp_path / "out")
    assert status == 2 and errors[0].endswith(f"{tmp_path / 'out' / 'photo.nwf'}: No space left on device")


def test_a_failed_item_is_reported_and_the_rest_done(folder, pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes((pictures / "photo.png").read_bytes()[:300])
    Image.new("CMYK", (3, 3)).save(pictures / "cmyk.tif")
    argv = pictures, tmp_path / "absent.png"
    status, _, errors = run(capsys, "-folder", folder, "-img", *argv, "-out", tmp_path / "out")
    assert status == 2 and len(errors) == 4
    *errors, last = errors
    assert last.startswith("3 of 6 files failed: ") and all(n in last for n in ("broken", "cmyk", "absent"))
    for name, line in zip(("broken.png", "cmyk.tif", "absent.png"), errors):
        assert name in line
    written = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written == ["grey.nwf", "photo.nwf", "photo.nwf"]


def test_a_folder_goes_on_where_it_was(folder, pictures, tmp_path, capsys):
    argv = "-folder", folder, "-img", pictures, "-out", tmp_path / "out"
    assert run(capsys, *argv)[0] == 0
    (tmp_path / "out" / "grey.nwf").unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nwf")}
    status, table, errors = run(capsys, *argv)
    assert (status, errors) == (0, []) and names(table) == ["grey"]
    assert "2 files were there already" in table
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    os.utime(pictures / "photo.png", (2e9, 2e9))  # a source that is newer is not done
    status, _, errors = run(capsys, *argv)
    assert status == 2 and "older" in errors[0] and len(errors) == 2
    assert names(run(capsys, *argv, "-force")[1]) == ["photo", "grey", "photo"]


def test_verified_files_alone_are_kept(folder, pictures, tmp_path, capsys, monkeypatch):
    """By default in folders; a file that is named only if asked for."""
    decoded = []

    def wrong(data, *rest):
        decoded.append(data)
        picture = Image.new("L", (80, 60))
        picture.info = {}
        return picture

    monkeypatch.setattr("flow.codec.api.unpack", wrong)
    argv = "-folder", folder, "-out", tmp_path / "out", "-img"
    status, _, errors = run(capsys, *argv, pictures / "grey.jpg")
    assert (status, errors, decoded) == (0, [], [])
    for more in ((pictures,), (pictures / "grey.jpg", "-verify", "-force")):
        count = len(list((tmp_path / "out").rglob("*.nwf")))
        status, _, errors = run(capsys, *argv, *more)
        assert status == 2 and "came back changed" in errors[0] and decoded
        assert len(list((tmp_path / "out").rglob("*.nwf"))) == count
    assert run(capsys, *argv, pictures, "-noVerify")[0] == 0


def piped(monkeypatch, capsysbinary, data, *argv):
    """Status, the bytes on standard output, and the lines on stderr, of data on standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    try:
        status = main([str(a) for a in argv]) or 0
    except SystemExit as end:
        status = end.code
    out, err = capsysbinary.readouterr()
    return status, out, err.decode().splitlines()


def test_standard_input_to_standard_output(folder, pictures, tmp_path, monkeypatch, capsysbinary):
    source = (pictures / "photo.png").read_bytes()
    argv = "-folder", folder, "-out"
    status, coded, lines = piped(monkeypatch, capsysbinary, source, *argv, "-", "-img", "-")
    assert status == 0 and coded.startswith(b"NWF") and "bits/dim" in lines[0] and len(lines) == 2
    status, back, _ = piped(monkeypatch, capsysbinary, coded, *argv, "-", "-decode", "-")
    assert status == 0 and equal(io.BytesIO(back), pictures / "photo.png")
    status, none, lines = piped(monkeypatch, capsysbinary, coded[4:], *argv, "-", "-img", "-")
    assert (status, none, lines) == (2, b"", ["standard input: not an image that Pillow can read"])
    assert piped(monkeypatch, capsysbinary, source, *argv, tmp_path / "a.nwf", "-img", "-")[0] == 0
    assert (tmp_path / "a.nwf").read_bytes() == coded
    for wrong in (("-img", "-", "-out", tmp_path), ("-img", pictures, "-out", "-")):
        status, none, lines = piped(monkeypatch, capsysbinary, source, "-folder", folder, *wrong)
        assert (status, none, len(lines)) == (2, b"", 1)


@pytest.mark.parametrize("form", ["png", "ppm", "tif", "webp"])
def test_formats_are_without_loss(form, folder, pictures, tmp_path, capsys):
    run(capsys, "-folder", folder, "-img", pictures, "-out", tmp_path)
    argv = "-folder", folder, "-decode"
    assert run(capsys, *argv, tmp_path, "-out", tmp_path / "back", "-format", form)[0] == 0
    for source in ("photo.png", "grey.jpg", "below/photo.gif"):
        made = (tmp_path / "back" / source).with_suffix(f".{form}")
        assert equal(made, pictures / source)
    assert run(capsys, *argv, tmp_path / "photo.nwf", "-out", tmp_path / f"a.{form}")[0] == 0
    assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / "back" / f"photo.{form}").read_bytes()


def test_what_a_format_cannot_hold_is_refused_or_named(folder, tmp_path, capsys):
    clear = Image.merge("LA", [Image.linear_gradient("L").resize((9, 7))] * 2)
    profile = Image.new("RGB", (9, 7), (1, 2, 3))
    profile.info = {"icc_profile": b"profile", "gamma": 0.5}
    for name, picture in (("clear", clear), ("profile", profile)):
        with (tmp_path / f"{name}.png").open("wb") as file:
            write_png(picture, file)
    run(capsys, "-folder", folder, "-img", tmp_path, "-out", tmp_path)
    decode = "-folder", folder, "-out", tmp_path / "out", "-decode"
    status, _, errors = run(capsys, *decode, tmp_path / "clear.nwf", "-format", "ppm")
    assert status == 2 and "transparency" in errors[0] and not (tmp_path / "out").exists()
    run(capsys, *decode, tmp_path / "clear.nwf", "-format", "webp")
    back = Image.open(tmp_path / "out" / "clear.webp").convert("RGBA")
    assert back.tobytes() == clear.convert("RGBA").tobytes()
    for form, lost in (("png", None), ("tif", "gamma"), ("ppm", "icc_profile, gamma")):
        status, _, errors = run(capsys, *decode, tmp_path / "profile.nwf", "-format", form)
        assert status == 0 and len(errors) == bool(lost) and (not lost or errors[0].endswith(f"its {lost}"))


@pytest.mark.usefixtures("without_webp")
def test_info(folder, pictures, tmp_path, capsys):
    run(capsys, "-folder", folder, "-img", pictures, "-out", tmp_path)
    status, told, errors = run(capsys, "-folder", folder, "-info", tmp_path)
    assert (
        (status, errors) == (0, [])
        and told.count("80x60") == 3 + told.count("by flow")
        and "palette 48" in told
    )
    status, lines, _ = run(capsys, "-folder", folder, "-json", "-info", tmp_path)
    about = {os.path.relpath(one["file"], tmp_path): one for one in map(json.loads, lines.splitlines())}
    assert sorted(about) == ["below/photo.nwf", "grey.nwf", "photo.nwf"]
    photo, data = about["photo.nwf"], (tmp_path / "photo.nwf").read_bytes()
    assert (photo["width"], photo["height"], photo["mode"], photo["method"]) == (80, 60, "RGB", "flow")
    assert photo["model"] == read_head(data).model and photo["metadata"] == {}
    assert [level["level"] for level in photo["levels"]] == [*range(6, -1, -1)]
    assert photo["head"] + sum(level["bytes"] for level in photo["levels"]) == len(data) == photo["bytes"]
    assert about["below/photo.nwf"]["metadata"]["palette"] == 48
    (tmp_path / "photo.nwf").write_bytes(data[: len(data) // 2])
    (tmp_path / "grey.nwf").write_bytes(b"none")
    status, lines, errors = run(capsys, "-folder", folder, "-json", "-info", tmp_path)
    assert status == 2 and len(errors) == 1 and "grey.nwf: not a .nwf file" in errors[0]
    assert json.loads(lines.splitlines()[1])["levels"] == photo["levels"][:-1]
    status, lines, _ = run(capsys, "-json", "-info", tmp_path / "photo.nwf")  # with the model in the box
    assert status == 0 and json.loads(lines)["levels"] is None
    (tmp_path / "empty").mkdir()
    status, lines, errors = run(capsys, "-info", tmp_path / "empty")
    assert (status, lines) == (2, "") and len(errors) == 1 and "no .nwf files" in errors[0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce] can't allocate memory: 9 bytes")])
def test_want_of_memory_is_told_of_each_file(error, folder, pictures, tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise error

    for work in ("describe", "read_picture"):
        monkeypatch.setattr(f"flow.codec.files.{work}", fail)
    names = [ROOT / "tests" / "fixtures" / f"{name}.nwf" for name in ("raw", "flow")]
    line = "{}: this machine's memory does not hold a model, picture or batch of that size".format
    assert run(capsys, "-folder", folder, "-info", *names) == (2, "", list(map(line, names)))
    name = pictures / "photo.png"
    assert run(capsys, "-folder", folder, "-img", name, "-out", tmp_path) == (2, "", [line(name)])


def test_larger_than_its_source(folder, pictures, tmp_path, capsys):
    Image.open(pictures / "grey.jpg").save(pictures / "grey.jpg", quality=5)
    _, table, _ = run(capsys, "-folder", folder, "-img", pictures, "-out", tmp_path)
    rows = {line.split()[0].rpartition("/")[2]: line for line in table.splitlines() if line[0] != " "}
    for name, larger in (("grey", True), ("photo", False)):
        assert ("larger than its source" in rows[f"{name}.nwf"]) == larger
    assert f" {(pictures / 'grey.jpg').stat().st_size:,} " in rows["grey.nwf"]


def test_names_that_cannot_be_printed_stop_nothing(folder, pictures, tmp_path):
    (pictures / "photo.png").rename(pictures / "\u20ac.png")
    (pictures / "grey.jpg").rename(pictures / os.fsdecode(b"\xff.jpg"))
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = [sys.executable, "easyEncode.py", "-folder", folder, "-img", pictures, "-out", tmp_path]
    made = subprocess.run(argv, cwd=ROOT, env=os.environ | environment, capture_output=True)
    assert made.returncode == 0 and b"failed" not in made.stderr and b"3 files" in made.stdout
    assert len(list(tmp_path.glob("*.nwf"))) == 2


def test_bare_shows_help_at_once():
    """And nothing that takes seconds to import is imported for it, or for what is refused."""
    code = """import sys, easyEncode
try: easyEncode.main(sys.argv[1:])
finally: assert 'torch' not in sys.modules"""
    for argv in ((), ("-h",), ("-version",), ("-im", "x"), ("-img", "x", "-target", "y")):
        made = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
        assert "Error" not in made.stderr
        assert made.returncode == (2 if "x" in argv else 0)
        if len(argv) < 2 and "-version" not in argv:
            for word in ("encode and decode:", "data set:", "model:", "-img - -out -"):
                assert word in made.stdout
    assert __version__ in subprocess.run(
        [sys.executable, "easyEncode.py", "-version"], cwd=ROOT, capture_output=True, text=True
    ).stdout  # fmt: skip


def test_every_option_has_its_task():
    of_files = {name for options in TASKS.values() for name in options}
    assert of_files < TYPED.keys()
    assert check({}) is None and check({"img": ["a"], "nbins": 5, "cuda": 0}) == "img"
    for typed in ({"img": [], "levels": 1}, {"decode": [], "verify": True}, {"info": [], "jobs": 1}):
        with pytest.raises(ValueError, match="no effect beside"):
            check(typed)
    assert (CODER["nbins"].default, PRECISION["precision"].default) == DEFAULT[:2]


@pytest.mark.usefixtures("without_webp")
def test_a_file_that_was_cut_or_is_corrupt_is_told_so(folder, tmp_path, capsys):
    """Corrupt: the picture stops at the last level whose checksum is right, and the status tells."""
    photo = Image.open(PHOTOS / "oakland-zoo-otters.png").convert("RGB").crop((300, 200, 460, 320))
    photo.save(tmp_path / "photo.png")
    run(capsys, "-folder", folder, "-img", tmp_path / "photo.png", "-out", tmp_path)
    file = tmp_path / "photo.nwf"
    data, picture = file.read_bytes(), np.asarray(photo).astype(int)
    decode = "-folder", folder, "-decode", file, "-out", tmp_path / "back.png", "-force"

    def distance():
        return np.abs(np.asarray(Image.open(tmp_path / "back.png")).astype(int) - picture).mean()

    errors_of = {}
    for share in (0.3, 0.6, 0.9):
        file.write_bytes(data[: int(share * len(data))])
        status, _, errors = run(capsys, *decode)
        assert status == 2 and len(errors) == 1 and "is cut" in errors[0] and "-partial" in errors[0]
        status, _, errors = run(capsys, *decode, "-partial")
        (missing,) = re.findall(r"([\d.]+)% of its values are missing", errors[0])
        assert status == 0 and len(errors) == 1 and abs(float(missing) / 100 + share - 1) < 0.2
        errors_of[share] = distance()
    assert errors_of[0.3] > errors_of[0.6] > errors_of[0.9] > 0
    file.write_bytes(data)
    _, lines, _ = run(capsys, "-folder", folder, "-json", "-info", file)
    *_, level_1, level_0 = json.loads(lines)["levels"]
    sound = []
    for at in (0.1, 0.3, 0.5, 0.7):
        place = len(data) - int(level_0["bytes"] * (1 - at))
        file.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        status, _, errors = run(capsys, *decode)
        assert status == 2 and len(errors) == 1 and "corrupt" in errors[0] and "is cut" not in errors[0]
        status, _, errors = run(capsys, *decode, "-partial")
        assert status == 2 and "sound down to level 1" in errors[0]
        sound.append(distance())
    assert len(set(sound)) == 1 and errors_of[0.3] > sound[0] > 0
    place = len(data) - level_0["bytes"] - level_1["bytes"] // 2
    file.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    status, _, errors = run(capsys, *decode, "-partial")
    assert status == 2 and "level 1 is another; sound down to level 2" in errors[0]
    assert distance() > sound[0]


def test_corrupt_and_cut_files(folder, coded, tmp_path, capsys):
    file, data = coded
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
        assert len(errors) == 3 and "2 of 13 files failed" in errors[2]
    assert names(tables[1]) == names(tables[4]) == [f"{n:02}" for n in range(11)]
    assert "11 files" in tables[4]
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "4" / path.name).read_bytes()


def test_jobs_run_at_once(tmp_path):
    meeting = threading.Barrier(3, timeout=60)  # that three of them must reach together

    def work(source):
        meeting.wait()
        return jobs.Made(b"", jobs.Sizes(1))

    pairs = [jobs.Job(tmp_path / str(n), tmp_path / f"{n}.nwf") for n in range(6)]
    assert jobs.run(pairs, work, at_once=3) == 0


def test_a_fault_of_the_program_ends_all(tmp_path):
    began = []

    def work(source):
        began.append(source)
        if source.name == "0":  # whose result is waited for first
            raise RuntimeError("a fault")
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


def test_sigterm_leaves_whole_files(folder, many, tmp_path):
    out = tmp_path / "out"
    process = start("easyEncode.py", "-folder", folder, "-img", many, "-out", out)
    while not (out / "00.nwf").exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and errors.splitlines()[-1] == "easyEncode.py: terminated"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_what_killed_runs_left_is_removed(folder, pictures, tmp_path, capsys):
    out, photo = tmp_path / "out", f".photo.{HOST}.{10**9}.0.unfinished.nwf"
    left = [out / photo, out / "below" / photo]
    for path in left:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"NWF")
    assert run(capsys, "-folder", folder, "-img", pictures, "-out", out)[0] == 0
    assert not any(path.exists() for path in left) and len(list(out.rglob("*.nwf"))) == 3


def test_two_processes_share_the_files(folder, many, tmp_path, capsys):
    """A file fails in the first process alone, early: the second is not ended for it."""
    (many / "07b.png").unlink()
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2
    process = start(*launcher, "easyEncode.py", "-folder", folder, "-img", many, "-out", tmp_path / "out")
    table, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and errors.count("00b.png: ") == 1
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


def test_no_file_becomes_itself(folder, pictures, tmp_path, capsys):
    """A picture may have the suffix of what is made of it."""
    picture = (pictures / "photo.png").rename(tmp_path / "photo.nwf")
    data = picture.read_bytes()
    out = tmp_path / ".." / tmp_path.name
    status, _, errors = run(capsys, "-folder", folder, "-img", picture, "-out", out, "-force")
    assert status == 2 and len(errors) == 1 and f"{picture} would become itself" in errors[0]
    assert picture.read_bytes() == data


def test_what_comes_after_the_end_is_no_cut(folder, coded, tmp_path, capsys):
    file, data = coded
    decode = "-folder", folder, "-decode", file, "-out", tmp_path / "back.png", "-force"
    for more in b"x", b"xyz", b"wxyz", bytes(9):
        file.write_bytes(data + more)
        status, _, errors = run(capsys, *decode, "-partial")
        assert status == 2 and len(errors) == 1 and "its end is not where its pixels end" in errors[0]
    file.write_bytes(data[:-1])
    status, _, errors = run(capsys, *decode)
    assert status == 2 and len(errors) == 1 and "is cut" in errors[0]
    status, _, errors = run(capsys, *decode, "-partial")
    assert status == 0 and len(errors) <= 1


def test_an_output_that_is_a_file_or_has_another_format_is_refused(folder, pictures, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    status, _, errors = run(capsys, "-folder", folder, "-img", pictures / "photo.png", "-out", file)
    assert status == 2 and errors == [f"easyEncode.py: -out {file}: a file, not a folder"]
    assert file.read_text() == "mine"
    argv = "-folder", folder, "-decode", "a.nwf", "-out", tmp_path / "a.webp", "-format", "png"
    status, _, errors = run(capsys, *argv)
    assert status == 2 and len(errors) == 1 and "-format png: -out" in errors[0]


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
        (("-img", "a.png", "-products", "some"), "-products some: need one of"),
        (("-decode", "a.nwf"), "a.nwf: No such file or directory"),
        (("-info", "a.nwf"), "a.nwf: No such file or directory"),
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


@pytest.mark.parametrize("script", ["easyEncode", "easyEncodeTrans"])
def test_two_processes_share_a_test_set(script, folder, capsys):
    """Of five batches the first process has one more: the figures are those of one."""
    argv = ["-folder", folder, "-target", "photos", "-batch", "3", "-earlyStop", "5"]
    import_module(script).main(argv)
    alone = capsys.readouterr().out.splitlines()
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2
    table, errors = (process := start(*launcher, f"{script}.py", *argv)).communicate(timeout=120)
    assert process.returncode == 0, errors
    together = table.splitlines()
    assert len(together) == len(alone) and LAST.search(table)
    assert [line for line in together if "/s" not in line] == [line for line in alone if "/s" not in line]
    assert sum("images/s" in line for line in together) == 1


def test_more_processes_than_batches(folder):
    argv = "-folder", folder, "-target", "photos", "-earlyStop", 1
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2
    _, errors = (process := start(*launcher, "easyEncode.py", *argv)).communicate(timeout=120)
    assert process.returncode and "easyEncode.py: 2 processes: need a batch for each, of 1\n" in errors


def test_an_interrupted_test_set_prints_what_it_has(folder, capsys, monkeypatch):
    done = []

    def interrupted(batches, encode, *rest):
        def once(images):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(images)
            return encode(images)

        return code(batches, once, *rest)

    monkeypatch.setattr("flow.codec.evaluate.code", interrupted)
    argv = "-folder", folder, "-target", "photos", "-batch", 3
    status, out, errors = run(capsys, *argv, "-earlyStop", 4)
    assert status == 130 and errors == ["interrupted: these are of the first 2 batches"]
    assert LAST.search(out)
    monkeypatch.setattr("flow.codec.evaluate.code", code)
    assert LAST.search(run(capsys, *argv, "-earlyStop", 2)[1]).groups() == LAST.search(out).groups()
    monkeypatch.setattr("flow.codec.evaluate.code", interrupted)  # before the first figure
    assert run(capsys, *argv) == (130, "", ["easyEncode.py: interrupted"])


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.usefixtures("without_webp")
@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_progress_within_a_file_on_a_terminal_alone(kind, folder, pictures, tmp_path, monkeypatch):
    shown, totals = kind(), []
    monkeypatch.setattr("sys.stderr", shown)

    class Bar(jobs.tqdm):
        def __init__(self, *given, **options):
            super().__init__(*given, **options | {"delay": 0, "mininterval": 0})

        def close(self):
            totals.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(jobs, "tqdm", Bar)
    main(["-folder", folder, "-img", str(pictures / "photo.png"), "-out", str(tmp_path), "-verify"])
    assert ("%|" in shown.getvalue()) == (kind is Terminal)
    assert kind is not Terminal or (2 * 3 * 80 * 60,) * 2 in totals


def test_a_mismatch_ends_with_status_1(folder, capsys, monkeypatch):
    def wrong(batches, encode, decode, *rest):
        return code(batches, encode, lambda *a: decode(*a) ^ 1, *rest)

    monkeypatch.setattr("flow.codec.evaluate.code", wrong)
    status, out, _ = run(capsys, "-folder", folder, "-target", "photos", "-earlyStop", 1)
    assert status == 1 and "Mean Error: 1.0" in out
