"""Files are complete or absent, whatever their names, and errors name them."""

import errno
import json
import lzma
import math
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load, save

from utils import files
from utils.files import (
    has_checksum,
    load_state,
    load_tensors,
    remove_unfinished,
    replacing,
    save_tensors,
    write_text,
)
from utils.options import script


@pytest.mark.parametrize(
    "name",
    ["a", "a.txt", "a" * 250 + ".txt", "a" * 255, "." + "b" * 250, "a." + "b" * 253, "\u20ac" * 83 + ".png"],
    ids=len,
)
def test_names_of_any_length(name, tmp_path):
    path = tmp_path / name
    for text in ("one", "two"):
        write_text(path, text)
        assert path.read_text() == text and list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "one")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("two")
        raise KeyError
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_errors_of_writing_name_the_file(tmp_path):
    with pytest.raises(OSError) as long:
        write_text(tmp_path / ("a" * 256), "text")
    assert (long.value.errno, long.value.filename) == (errno.ENAMETOOLONG, str(tmp_path / ("a" * 256)))
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as taken:
        write_text(tmp_path / "folder", "text")
    assert taken.value.filename == str(tmp_path / "folder") and taken.value.filename2 is None
    with pytest.raises(OSError) as full, replacing(tmp_path / "a") as temporary:
        temporary.write_text("text")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    assert str(caught.value.filename) == str(tmp_path / "missing")
    with pytest.raises(OSError, match="^no picture$"), replacing(tmp_path / "a"):
        raise OSError("no picture")


def test_unfinished_files_alone_are_removed(tmp_path):
    for name in ("a.txt", ".hidden.1.txt", "b.unfinished.txt"):
        (tmp_path / name).touch()
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        left = temporary.read_bytes(), temporary.name
    (tmp_path / left[1]).write_bytes(left[0])
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", ".hidden.1.txt", "b.unfinished.txt"}


def test_files_of_living_processes_stay(tmp_path):
    """In a folder that is shared: what has no writer any more goes, and so does what is an hour old."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    names = {
        f".a.{files.HOST}.{ended.pid}.0.unfinished.nwf": False,
        f".a.b.{files.HOST}.{os.getpid()}.7.unfinished": False,  # of another process of that number
        f".a.{files.HOST}.{10**30}.0.unfinished.png": False,
        f".a.elsewhere.{living.pid}.0.unfinished.nwf": False,  # old
        f".a.elsewhere.{ended.pid}.1.unfinished.nwf": True,
        f".a.{files.HOST}.{living.pid}.0.unfinished.nwf": True,
        ".a.unfinished.nwf": True,
        "a.host.1.1.unfinished.nwf": True,
        "a.nwf": True,
    }
    for name in names:
        (tmp_path / name).touch()
    os.utime(tmp_path / f".a.elsewhere.{living.pid}.0.unfinished.nwf", (0, 0))
    remove_unfinished(tmp_path, shared=True)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
    living.communicate(b"\n")
    remove_unfinished(tmp_path / "none", shared=True)


def test_temporary_names_tell_their_writer(tmp_path):
    with replacing(tmp_path / "photo.a.nwf") as temporary:
        temporary.touch()
        assert f".{files.HOST}.{os.getpid()}." in temporary.name
        remove_unfinished(tmp_path, shared=True)  # as another process of this number would
        assert not temporary.exists()
        temporary.touch()


def test_threads_that_write_names_which_begin_alike_do_not_meet(tmp_path):
    """Forty letters in common: more than a temporary name keeps."""
    barrier = threading.Barrier(8)

    def write(i):
        with replacing(tmp_path / f"{'a' * 40}{i}.txt") as temporary:
            barrier.wait()
            temporary.write_text(str(i))
            barrier.wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [(tmp_path / f"{'a' * 40}{i}.txt").read_text() for i in range(8)] == [*map(str, range(8))]
    assert len([*tmp_path.iterdir()]) == 8


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_script_that_is_stopped_leaves_nothing_half_done(number, status, word, tmp_path, capsys):
    before = signal.getsignal(number)

    @script
    def main(argv=None):
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == status and capsys.readouterr().err == f"test_files.py: {word}\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is before


@pytest.mark.parametrize("state", ["[" * 100_000 + "]" * 100_000, '{"a": ' + "1" * 5000 + "}", "[]", "{"])
def test_a_state_that_makes_no_sense_is_one_line(state, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.files.json.dumps", lambda value: state)
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="a.safetensors: not weights of this project") as caught:
        load_tensors(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


STATE = {"epoch": 3, "best": 4.25, "nats": math.inf, "history": [{"epoch": 1}]}


@pytest.fixture(params=["a.safetensors", "a.safetensors.xz"])
def saved(request, tmp_path):
    """A file of several types and shapes, packed or not, and what it holds."""
    tensors = {"half": torch.ones(3).half(), "step": torch.tensor(2.0), "none": torch.zeros(0, 2)}
    tensors |= {"byte": torch.arange(6, dtype=torch.int8).view(2, 3).T}
    save_tensors(tmp_path / request.param, tensors, STATE)
    return tmp_path / request.param, tensors


def test_every_bit_of_a_saving_is_checked(saved):
    path, tensors = saved
    whole, state = path.read_bytes(), load_state(path)
    assert state == STATE and has_checksum(path)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            given, state = load_tensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: not weights of this project, or damaged (")
        else:  # blanks and the names of fields: without the checksum's, what is in the file is as it was
            assert given.keys() == tensors.keys() and state | STATE == state
            assert all(torch.equal(given[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("saved", ["a.safetensors"], indirect=True)
def test_a_saving_from_before_the_checksum_is_read(saved):
    path, tensors = saved
    path.write_bytes(save({"x": torch.ones(2)}, metadata={"state": json.dumps(STATE)}))
    given, state = load_tensors(path)
    assert (list(given), state, has_checksum(path)) == (["x"], STATE, False)


def test_a_packed_file_is_a_packed_file_of_tensors(saved):
    path, tensors = saved
    data = lzma.decompress(path.read_bytes()) if path.suffix == files.PACKED else path.read_bytes()
    given = load(data)
    assert given.keys() == tensors.keys() and all(torch.equal(given[n], tensors[n]) for n in tensors)


def test_what_a_file_may_come_to_is_not_asked_of_the_memory(saved, monkeypatch):
    monkeypatch.setattr(files, "_TIMES", 1 << 40)
    path, tensors = saved
    assert load_tensors(path)[0].keys() == tensors.keys()


def test_weights_in_8_bits(tmp_path):
    path, generator = tmp_path / "a.safetensors", torch.Generator().manual_seed(1)
    tensors = {
        "wide": torch.randn(50, 7, 3, 3, generator=generator),
        "flat": torch.randn(6, 4),
        "none": torch.ones(5),
    }
    tensors["wide"] *= torch.logspace(-20, 20, 50).view(-1, 1, 1, 1)
    tensors["wide"][3] = 0
    save_tensors(path, tensors, STATE, ["wide", "flat"])
    kept, (given, state) = load(path.read_bytes()), load_tensors(path)
    assert {name: t.dtype for name, t in kept.items()} == dict.fromkeys(
        ("wide", "flat"), torch.int8
    ) | dict.fromkeys(("wide.unit", "flat.unit", "none"), torch.float32)
    assert given.keys() == tensors.keys() and state == STATE
    for name, tensor in tensors.items():
        most = (
            tensor.abs().flatten(1).amax(1).view(-1, *[1] * (tensor.dim() - 1)) / 253 if name != "none" else 0
        )
        assert given[name].dtype == torch.float32 and torch.all((given[name] - tensor).abs() <= most)
    save_tensors(tmp_path / "again.safetensors", given, STATE, ["wide", "flat"])
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("other.unit", torch.ones(4, 1)),
        ("x.unit", torch.ones(1, 4)),
        ("x.unit", torch.ones(4)),
        ("x.unit", torch.ones(4, 1, dtype=torch.uint16)),
        ("x.unit", torch.ones(4, 1, dtype=torch.complex64)),
        ("x.unit", torch.tensor(1.0)),
        ("y.unit", torch.ones(4, 1)),
    ],
)
def test_units_of_no_weights_are_refused(name, unit, tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(4, 1, dtype=torch.int8), "y": torch.ones(4, 1), name: unit}, {})
    with pytest.raises(ValueError, match="a.safetensors: not weights of this project, or damaged") as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_stay_none(tmp_path):
    path, bad = tmp_path / "a.safetensors", torch.tensor([[1.0, math.nan], [math.inf, 2], [3, 4]])
    save_tensors(path, {"x": bad}, {}, ["x"])
    assert load_tensors(path)[0]["x"].isfinite().all(1).tolist() == [False, False, True]


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_packed_file_that_ends_too_soon(cut, tmp_path):
    path = tmp_path / "a.safetensors.xz"
    save_tensors(path, {"x": torch.randn(500)}, {})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"a\.safetensors\.xz: not weights of this project, or damaged"):
        load_tensors(path)


def test_a_few_bytes_do_not_unpack_to_all_of_the_memory(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors.xz"
    save_tensors(path, {"x": torch.zeros(1 << 18)}, {})
    assert path.stat().st_size * files._TIMES < 1 << 20 and len(load_tensors(path)[0]["x"]) == 1 << 18
    monkeypatch.setattr(files, "_LEAST", 1 << 19)
    with pytest.raises(ValueError, match="it unpacks to more than 524288 bytes"):
        load_tensors(path)
