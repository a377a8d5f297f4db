"""Training from the command line: exact resumption, one-line errors, folders that stay whole."""

import copy
import csv
import json
import math
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_datasets import dump, pixels, write_cifar

import easymain
from flow import training
from flow.batches import add_noise, epoch_batches, mirror, mirrored
from flow.codec.evaluate import open_test_set
from flow.codec.options import TEST_SET
from flow.folder import PAPER, open_model, read_options, target_name
from flow.folder import trained as caption
from flow.model import build
from flow.options import PAPER_TRAINING, TRAINING
from flow.training import Trainer, learning_rate, time_left
from utils.arithmetic.integers import bits_per_dimension
from utils.data.datasets import PHOTOS, load
from utils.files import load_tensors, save_tensors
from utils.workers import Workers

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def matmul_precision():
    """Leave torch as it was: easymain allows matrix products of less precision."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven small pieces of photographs: at size 8, nine give 27 patches to train, two give 6 to test."""
    folder = tmp_path_factory.mktemp("images")
    with Image.open(PHOTOS / "casa-mila.png") as photo:
        for i in range(11):
            photo.crop((40 * i, 60, 40 * i + 24, 68)).convert("RGB").save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def command(images):
    """The arguments of a training of a second: 4 steps an epoch, the last on 3 images."""
    options = "-size 8 -hchnl 4 -batch 8 -epoch 3 -lr 0.01 -savePeriod 1 -paper"
    return ["-target", str(images), *options.split()]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder of such a training that nothing interrupted. To be read only."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    easymain.main([*command, "-folder", str(folder)])
    return folder


@pytest.fixture
def trained(whole, tmp_path):
    """A copy of that folder to work in."""
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def steps(monkeypatch):
    """What the steps of trainings have seen since: a list of batches."""
    seen = []

    def step(self, batch, total, plain=Trainer.step):
        seen.append(batch.clone())
        return plain(self, batch, total)

    monkeypatch.setattr(Trainer, "step", step)
    return seen


def for_options(command, options):
    """The arguments with more options, and without -hchnl where they leave it no effect."""
    at = command.index("-hchnl") if "-prior bands" in options else len(command)
    return [*command[:at], *command[at + 2 :], *options.split()]


def history(folder):
    """Return the rows of losses.csv without the time they took."""
    with (folder / "records" / "losses.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def contents(folder):
    """Return what a folder holds: path -> bytes."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_training(folder, wanted):
    """Compare losses, best figures and every tensor of every saving, bit for bit."""
    assert history(folder) == history(wanted)
    assert (folder / "records" / "bands.csv").read_bytes() == (wanted / "records" / "bands.csv").read_bytes()
    names = sorted(path.name for path in (wanted / "savings").glob("*.safetensors*"))
    assert sorted(path.name for path in (folder / "savings").glob("[!.]*")) == names
    for name in names:
        (given, state), (expected, expected_state) = (
            load_tensors(f / "savings" / name) for f in (folder, wanted)
        )
        assert given.keys() == expected.keys()
        assert all(torch.equal(given[key], expected[key]) for key in expected), name
        for key in ("epoch", "step", "steps", "best_train", "best_test"):
            assert state.get(key) == expected_state.get(key)
    assert (folder / "pic" / "lossCurve.png").read_bytes() == (wanted / "pic" / "lossCurve.png").read_bytes()


def refused(capsys, *argv, status=2):
    """Run easymain, which must end with the status and one line on stderr; return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        easymain.main([str(a) for a in argv])
    *bar, line = capsys.readouterr().err.split("\r")[-1].splitlines()
    assert caught.value.code == status and line.startswith("easymain.py: ") and not "".join(bar).strip()
    return line


# -- what a training leaves ----------------------------------------------------------------------------------


def test_folder_of_a_training(whole, images, tmp_path):
    options = json.loads((whole / "parameter.json").read_text())
    not_kept = {"config", "folder", "load", "paper", "start"}
    assert options.keys() == easymain.OPTIONS.keys() - not_kept | {"patch"}
    assert (options["target"], options["hchnl"], options["repeat"]) == (str(images), 4, 1)
    assert options.items() >= (PAPER_TRAINING | {"batch": 8, "lr": 0.01}).items()
    names = {path.name for path in (whole / "savings").iterdir()}
    assert names >= {f"{name}.safetensors" for name in ("latest", "best_test", "best_train", "epoch_00003")}
    with Image.open(whole / "pic" / "lossCurve.png") as curve:
        assert min(curve.size) > 300 and len(curve.convert("RGB").getcolors(1 << 20)) > 2
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in whole.rglob("*.*")} == {(tmp_path / "plain").stat().st_mode}


def test_losses_are_those_of_the_weights(whole, images):
    rows = history(whole)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(a["test_bpd"] > b["test_bpd"] for a, b in pairwise(rows))
    assert [row["rate"] for row in rows] == pytest.approx([0.001, 0.00198, 0.00294], rel=1e-2)
    (test,) = load(images, "test", size=8)
    for name in ("best_test", "latest", "epoch_00003"):
        model, _ = open_model(whole, name)
        nats = -model.log_prob(test).double().mean().item()
        assert bits_per_dimension(nats, 3 * 8 * 8) == pytest.approx(rows[-1]["test_bpd"], rel=1e-6)


def bands(folder):
    """Return the rows of bands.csv."""
    with (folder / "records" / "bands.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_bands_are_the_test_loss_in_parts(whole, images):
    rows = bands(whole)
    assert [row.pop("epoch") for row in rows] == [1, 2, 3]
    assert list(rows[0]) == ["ur 0", "dl 0", "dr 0", "ur 1", "dl 1", "dr 1", "top"]
    for row, losses in zip(rows, history(whole)):
        assert sum(row.values()) == pytest.approx(losses["test_bpd"], abs=1e-5)
    (test,), (model, _) = load(images, "test", size=8), open_model(whole, "latest")
    with torch.no_grad():
        top, (fine, coarse) = model.transform(test)
        below, *_ = model.pyramid.level(0).split(model.from_images(test))
        for level, band, detail in ((0, below, fine), (1, top, coarse)):
            given = model.detail(band, level)([])
            bits = bits_per_dimension(-given.log_prob(detail[0]).double().sum().item(), test.numel())
            assert rows[-1][f"ur {level}"] == pytest.approx(bits, abs=2e-6)
        bits = bits_per_dimension(-model.log_prob(top, 0).double().sum().item(), test.numel())
        assert rows[-1]["top"] == pytest.approx(bits, abs=2e-6)


@pytest.mark.parametrize("options", ["-prior bands -width 6 -repeat 0", "-simplePrior -diffDetail"])
def test_bands_of_other_priors(command, tmp_path, options):
    easymain.main([*for_options(command, options), "-folder", str(tmp_path), "-epoch", "1"])
    (row,) = bands(tmp_path)
    assert row.pop("epoch") == 1 and len(row) == 7 and min(row.values()) > 0
    assert sum(row.values()) == pytest.approx(history(tmp_path)[0]["test_bpd"], abs=1e-5)


def test_a_training_from_before_the_bands_goes_on(trained):
    for path in (trained / "savings").glob("latest*"):
        tensors, state = load_tensors(path)
        del state["bands"]
        save_tensors(path, tensors, state)
    easymain.main(["-folder", str(trained), "-load", "-epoch", "4"])
    assert [row["epoch"] for row in bands(trained)] == [4] and len(history(trained)) == 4


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3599, "1 h 0 min"),
        (4801, "1 h 20 min"),
        (9e5, "250 h 0 min"),
    ],
)
def test_time_left_in_words(seconds, words):
    assert time_left(seconds) == words


def test_lines_tell_the_time_left_but_the_last(command, tmp_path, capsys):
    easymain.main([*command, "-folder", str(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.endswith(" left") for line in lines] == [True, True, False]


class Board:
    """In place of TensorBoard's SummaryWriter: a line of JSON for each number."""

    def __init__(self, folder, purge_step=None):
        self.file = Path(folder) / "lines"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.write("begin", purge_step, 0)

    def write(self, *line):
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    add_scalar = write

    def flush(self):
        self.write("flush", 0, 0)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.write("end", 0, 0)


def test_board_has_the_losses_and_goes_on(command, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("flow.board.writer_class", lambda: Board)
    monkeypatch.setattr(training, "SHOW_SECONDS", 0)
    easymain.main([*command, "-folder", str(tmp_path), "-epoch", "2", "-board"])
    easymain.main(["-folder", str(tmp_path), "-load", "-epoch", "3"])
    assert_same_training(tmp_path, whole)
    lines = [json.loads(line) for line in (tmp_path / "records" / "board" / "lines").read_text().splitlines()]
    assert [value for name, value, _ in lines if name == "begin"] == [None, 9] and lines[-1][0] == "end"
    points = {}
    for name, value, step in lines:
        points.setdefault(name, []).append((step, value))
    rows = history(whole)
    for name, column in (("train", "train_bpd"), ("test", "test_bpd")):
        given = [(4 * row["epoch"], row[column]) for row in rows]
        assert points[f"bits per dimension/{name}"] == given
    assert points["learning rate"] == [(4 * row["epoch"], row["rate"]) for row in rows]
    steps = points["bits per dimension/steps"]
    assert [step for step, _ in steps] == list(range(1, 13))
    for i, row in enumerate(rows):  # of 27 images, the last batch has three
        mean = sum(n * bits for n, (_, bits) in zip((8, 8, 8, 3), steps[4 * i :])) / 27
        assert mean == pytest.approx(row["train_bpd"], rel=1e-6)


def test_a_board_of_tensorboard(command, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    easymain.main([*command, "-folder", str(tmp_path), "-epoch", "2", "-board"])
    easymain.main(["-folder", str(tmp_path), "-load", "-epoch", "3"])
    board = EventAccumulator(str(tmp_path / "records" / "board")).Reload()
    given = [event.value for event in board.Scalars("bits per dimension/test")]
    assert given == pytest.approx([row["test_bpd"] for row in history(tmp_path)], rel=1e-6)


def test_no_board_without_tensorboard(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = refused(capsys, *command, "-board", "-folder", tmp_path / "model")
    assert "-board needs TensorBoard: pip install tensorboard" in line
    assert not (tmp_path / "model").exists()


def test_a_folder_with_a_board_goes_on_without_tensorboard(command, whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as installed:
        installed.setattr("flow.board.writer_class", lambda: Board)
        easymain.main([*command, "-folder", str(tmp_path), "-epoch", "2", "-board"])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "-board needs TensorBoard" in refused(capsys, "-folder", tmp_path, "-load", "-board")
    easymain.main(["-folder", str(tmp_path), "-load", "-epoch", "3"])
    assert "-board False, was True" in capsys.readouterr().out
    assert_same_training(tmp_path, whole)


PEAK = """
import re, sys
from pathlib import Path

import torch

from flow.model import build
from flow.options import TRAINING
from flow.training import Trainer
from utils.workers import Workers

def peak():  # of this process alone: that of getrusage may be its parent's
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])


torch.set_num_threads(1)
options = {name: option.default for name, option in TRAINING.items()} | {"batch": int(sys.argv[2])}
images = torch.randint(0, 256, (options["batch"], 3, 32, 32), dtype=torch.uint8)
model = build({"hchnl": int(sys.argv[1])})
trainer = Trainer(model, [images], [images], options, "none", torch.device("cpu"), Workers())
wanted, before = sum(trainer.memory()), peak()
for _ in range(2):
    trainer.step(images, len(images))
print(wanted / (peak() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("hchnl", "batch"), [(12, 300), (96, 40)])
def test_memory_is_about_what_was_said(hchnl, batch):
    out, err = start(["-c", PEAK, hchnl, batch]).communicate(timeout=120)
    assert 0.6 < float(out) < 1.5, err


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"optimizer": "muon", "amp": True}])
def test_memory_of_weights_and_of_the_batch(images, tmp_path, options):
    def trainer(batch):
        given = {name: option.default for name, option in TRAINING.items()}
        data = [load(images, part, size=8) for part in ("train", "test")]
        given |= options | {"batch": batch}
        return Trainer(build({"hchnl": 4}), *data, given, tmp_path, torch.device("cpu"), Workers())

    made, larger, before = trainer(8), trainer(80), torch.get_rng_state()
    step, weights = made.memory()
    assert larger.memory() == (pytest.approx(10 * step, rel=0.1), weights)
    assert torch.equal(torch.get_rng_state(), before) and made.model.top.mean.grad is None
    made.step(load(images, "train", size=8)[0][:8], 8)
    kept = [p for p in made.model.parameters()]
    kept += [p.grad for p in kept] + list((made.state.average or {}).values())
    moments = [t for s in made.state.optimizer.state.values() for n, t in s.items() if n != "step"]
    assert sum(t.nbytes for t in kept + moments) == weights


def test_the_first_loss_is_that_of_the_first_weights(command, tmp_path, images):
    easymain.main([*command, "-folder", str(tmp_path / "model"), "-epoch", "1", "-batch", "99"])
    torch.manual_seed(0)
    (train,) = load(images, "train", size=8)
    nats = -build({"hchnl": 4}).log_prob(train).mean().item()
    assert history(tmp_path / "model")[0]["train_bpd"] == pytest.approx(
        bits_per_dimension(nats, 192), rel=1e-5
    )


def test_pictures_of_the_last_saving(command, whole, images, tmp_path, monkeypatch):
    with Image.open(whole / "pic" / "samples.png") as sheet:
        assert sheet.width == sheet.height == (4 * 8 + 3) * (512 // (4 * 8 + 3))
        assert len(sheet.getcolors(1 << 20)) > 16
    with Image.open(whole / "pic" / "pyramid.png") as sheet:
        assert sheet.size == (512, 512)
        pixels = torch.from_numpy(np.array(sheet)[32::64, 32::64]).permute(2, 0, 1)
    with torch.no_grad():
        top, _ = open_model(whole, "latest")[0].transform(load(images, "test", size=8)[0][:1])
    assert torch.equal(pixels[:, :2, :2], top[0].clamp(0, 255).byte()) and len(pixels[:, 2:].unique()) > 4
    drawn = []

    def draw(self, plain=Trainer.draw):
        drawn.append(self.state.progress.epoch)
        plain(self)

    monkeypatch.setattr(Trainer, "draw", draw)
    easymain.main([*command, *"-epoch 5 -savePeriod 2 -ema 0.9 -folder".split(), str(tmp_path)])
    assert drawn == [2, 4, 5]
    model, _ = open_model(tmp_path, "latest")
    samples = model.sample(16, 8, 8, generator=torch.Generator().manual_seed(0))
    with Image.open(tmp_path / "pic" / "samples.png") as sheet:
        pixels = torch.from_numpy(np.array(sheet)[7::14, 7::14]).permute(2, 0, 1)
    assert torch.equal(pixels[:, 9 : 9 + 8, 18 : 18 + 8], samples[6].byte())


def test_samples_that_fail_do_not_end_a_training(command, whole, tmp_path, monkeypatch, capsys):
    def sample(*args, **options):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(build({}).__class__, "sample", sample)
    easymain.main([*command, "-folder", str(tmp_path)])
    assert capsys.readouterr().err.count("no samples of epoch 3: no such luck") == 1
    assert_same_training(tmp_path, whole)


def test_savings_are_periodic_and_few_are_kept(command, tmp_path):
    easymain.main([*command, "-folder", str(tmp_path), "-epoch", "9", "-savePeriod", "2"])
    names = sorted(path.name for path in (tmp_path / "savings").glob("epoch_*"))
    assert names == [f"epoch_0000{n}.safetensors" for n in (6, 8, 9)]
    assert load_tensors(tmp_path / "savings" / names[0])[1]["epoch"] == 6


def test_default_folder_has_the_options_of_the_architecture(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    easymain.main([*command, "-epoch", "1", "-HUE"])
    (folder,) = Path("opt").iterdir()
    assert folder.name.startswith("default_easyMera_images")
    for name in easymain.ARCHITECTURE:
        assert (f"_{name}_" in folder.name) == (name in PAPER)
    assert "_hchnl_4_" in folder.name and "_HUE_True_" in folder.name
    easymain.main([*command, "-epoch", "2", "-HUE", "-load"])
    assert len(history(folder)) == 2


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        easymain.main(["-h"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "python easymain.py" in text
    for name, option in easymain.OPTIONS.items():
        assert f"  -{name}" in text and " ".join(option.help.split()[:3]) in " ".join(text.split())


@pytest.mark.parametrize("seed", [0, 5])
def test_batches_are_every_image_once_and_of_one_size(seed):
    sizes = [10, 7, 3]
    batches = epoch_batches(sizes, 4, seed, 2)
    assert sorted((which, i) for which, index in batches for i in index.tolist()) == [
        (which, i) for which, n in enumerate(sizes) for i in range(n)
    ]
    assert all(len(index) <= 4 for _, index in batches) and len(batches) == 6

    def order(*args):
        return [(which, index.tolist()) for which, index in epoch_batches(sizes, 4, *args)]

    assert order(seed, 2) == order(seed, 2) != order(seed, 3) != order(seed + 1, 3)


def test_half_of_the_images_are_mirrored():
    large, small = mirrored([10_000, 7], 3, 2)
    assert (len(large), len(small)) == (10_000, 7) and large.dtype == torch.bool
    assert 4_800 < large.sum() < 5_200
    assert all(map(torch.equal, (large, small), mirrored([10_000, 7], 3, 2)))
    orders = [index for _, index in epoch_batches([10_000], 5_000, 3, 2)]
    assert all(2_350 < large[index].sum() < 2_650 for index in orders)
    for other in (mirrored([10_000], 3, 3), mirrored([10_000], 4, 2)):
        assert 4_800 < (other[0] != large).sum() < 5_200


def test_mirror():
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    y = mirror(x, torch.tensor([False, True]))
    assert torch.equal(y[0], x[0])
    assert all(torch.equal(y[1, :, :, i], x[1, :, :, 4 - i]) for i in range(5))


def test_a_third_of_the_images_get_noise():
    x = torch.full((3000, 3, 8, 8), 100, dtype=torch.uint8)
    y = add_noise(x, 6.0, torch.Generator().manual_seed(3))
    assert y.dtype == torch.uint8 and y.shape == x.shape
    assert torch.equal(y, add_noise(x, 6.0, torch.Generator().manual_seed(3)))
    assert not torch.equal(y, add_noise(x, 6.0, torch.Generator().manual_seed(4)))
    spread = y.float().std((1, 2, 3))
    assert 850 < (spread > 0).sum() < 1150 and spread.max() < 7
    assert spread[spread > 0].mean().item() == pytest.approx(3, abs=0.3)
    assert abs(y.float().mean().item() - 100) < 0.05
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(300, 3, 8, 2)
    edges = add_noise(ends, 20.0, torch.Generator().manual_seed(3))
    assert edges[..., 0].max() < 100 and edges[..., 1].min() > 155


def test_flip_mirrors_images_where_they_train_and_only_there(command, images, tmp_path, steps):
    easymain.main([*command, "-folder", str(tmp_path), "-flip"])
    (train,), (test,) = (load(images, part, size=8) for part in ("train", "test"))
    epochs = []
    for epoch in range(3):
        (which,), flipped = mirrored([27], 0, epoch), torch.zeros(27, dtype=torch.bool)
        for (_, index), batch in zip(epoch_batches([27], 8, 0, epoch), steps[4 * epoch :]):
            flipped[index] = (batch == train[index].flip(-1)).flatten(1).all(1)
            assert torch.equal(batch[~flipped[index]], train[index][~flipped[index]])
        assert torch.equal(flipped, which) and 0 < which.sum() < 27
        epochs.append(which)
    assert not torch.equal(epochs[0], epochs[1])
    model, _ = open_model(tmp_path, "latest")
    bits = bits_per_dimension(-model.log_prob(test).double().mean().item(), 3 * 8 * 8)
    assert history(tmp_path)[-1]["test_bpd"] == pytest.approx(bits, rel=1e-6)


def test_every_other_step_sees_windows_of_its_images(command, images, tmp_path, steps):
    easymain.main([*command, "-folder", str(tmp_path), "-shift", "2"])
    (train,) = load(images, "train", size=8)
    seen = []
    for epoch in range(3):
        batches = epoch_batches([27], 8, 0, epoch)
        for i, ((_, index), batch) in enumerate(zip(batches, steps[4 * epoch :])):
            if (epoch + i) % 2 == 0:
                assert torch.equal(batch, train[index])
                continue
            places = train[index].unfold(2, 6, 1).unfold(3, 6, 1)
            found = (places == batch[:, :, None, None]).flatten(4).all(4).all(1)
            assert found.flatten(1).any(1).all()
            seen.append(found)
    assert len(steps) == 12 and torch.cat(seen).any(0).all()  # at every place
    assert len({tuple(found.flatten().tolist()) for found in seen}) == len(seen)


@pytest.mark.parametrize(
    ("schedule", "done", "factor"),
    [
        ("paper", 0, 0.1),
        ("paper", 4.7, 0.5 * 0.99**4),
        ("paper", 9, 0.99**9),
        ("paper", 30, 0.99**30),
        ("cosine", 0, 0.05),
        ("cosine", 50, 0.5),
        ("cosine", 75, (1 - 0.5**0.5) / 2),
        ("cosine", 100, 0),
        ("constant", 77.7, 1),
    ],
)
def test_learning_rates(schedule, done, factor):
    options = {"lrSchedule": schedule, "decay": 0.99, "epoch": 100}
    assert learning_rate(options, done) == pytest.approx(factor, abs=1e-9)


@pytest.mark.parametrize("published", [False, True])
def test_a_training_goes_on_from_the_best_weights_where_nothing_else_is_left(published, trained):
    path = trained / "savings" / "best_test.safetensors"
    before, state = load_tensors(path)
    if published:  # in part in 8 bits
        save_tensors(path, before, state, [name for name, tensor in before.items() if tensor.dim() == 4])
        assert not all(torch.equal(load_tensors(path)[0][name], tensor) for name, tensor in before.items())
        before, _ = load_tensors(path)
    for other in (trained / "savings").iterdir():
        if other != path:
            other.unlink()
    easymain.main(["-folder", str(trained), "-load", "-epoch", str(state["epoch"] + 1), "-lr", "1e-9"])
    after, again = load_tensors(trained / "savings" / "latest.safetensors")
    assert again["epoch"] == state["epoch"] + 1 and again["steps"] > state["steps"]
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.items())


def test_averaged_weights_are_tested_and_kept(command, tmp_path, monkeypatch):
    passed = []

    def step(self, *args, plain=Trainer.step):
        if not passed:
            passed.append([p.detach().clone() for p in self.model.parameters()])
        nats = plain(self, *args)
        passed.append([p.detach().clone() for p in self.model.parameters()])
        return nats

    monkeypatch.setattr(Trainer, "step", step)
    easymain.main([*command, "-folder", str(tmp_path), "-epoch", "4", "-ema", "0.5"])
    average = passed[0]
    for i, weights in enumerate(passed[1:]):
        decay = min(0.5, (1 + i) / (10 + i))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights)]
    model, _ = open_model(tmp_path, "latest")
    for given, wanted in zip(model.parameters(), average):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), passed[-1]))
    best, _ = open_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), best.parameters()))


@pytest.mark.parametrize("optimizer", ["adamax", "adam"])
@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e3])
def test_steps_are_those_of_torch_with_a_limited_gradient(images, tmp_path, optimizer, limit):
    torch.manual_seed(0)
    model, (train,), (test,) = (
        build({"hchnl": 4}),
        *(load(images, p, size=8) for p in ("train", "test")),
    )
    options = {name: option.default for name, option in TRAINING.items()}
    options |= {"optimizer": optimizer, "clipNorm": limit}
    plain = copy.deepcopy(model)
    made = {"adamax": (torch.optim.Adamax, {"eps": 1e-7}), "adam": (torch.optim.Adam, {"betas": (0.9, 0.99)})}
    kind, how = made[optimizer]
    wanted = kind(plain.parameters(), lr=options["lr"], **how)
    trainer = Trainer(model, [train], [test], options, tmp_path, torch.device("cpu"), Workers())
    for batch in train[:16].split(8):
        trainer.step(batch, len(batch))
        wanted.zero_grad()
        (-plain.log_prob(batch).mean()).backward()
        gradients = [p.grad for p in plain.parameters()]
        norm = torch.cat([g.flatten() for g in gradients]).norm().item()
        most = limit * 3 * 8 * 8 * math.log(2)
        assert norm > 2 * 1e-3 * 192 * math.log(2)
        for p, g in zip(model.parameters(), gradients):
            g *= min(1, most / norm) if limit else 1
            torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6 * norm)
        given = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
        assert given == pytest.approx(most if limit == 1e-3 else norm, rel=1e-3)
        wanted.step()
        for p, q in zip(model.parameters(), plain.parameters()):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_bfloat16_on_the_cpu(command, whole, tmp_path):
    easymain.main([*command, "-folder", str(tmp_path), "-amp"])
    for row, wanted in zip(history(tmp_path), history(whole)):
        assert row["train_bpd"] == pytest.approx(wanted["train_bpd"], rel=0.02)
        assert row != wanted
    assert all(
        t.dtype == torch.float32
        for t in load_tensors(tmp_path / "savings" / "latest.safetensors")[0].values()
    )


@pytest.mark.parametrize(
    "options",
    ["-heavy -HUE", "-simplePrior -diffDetail -clamp 0.1", "-lifting legall -repeat 2", "-repeat 0"]
    + ["-prior bands -width 6 -repeat 0 -HUE -optimizer adam -amp"]
    + ["-prior bands -width 8 -repeat 0 -ownLevels 1 -optimizer muon"],
)
def test_other_architectures_learn(command, tmp_path, options):
    easymain.main([*for_options(command, options), "-folder", str(tmp_path)])
    first, *_, last = history(tmp_path)
    assert last["test_bpd"] < first["test_bpd"]
    open_model(tmp_path)


def test_joint_trains_on_several_sizes_batch_by_batch(tmp_path, capsys):
    write_cifar(tmp_path / "CIFAR")
    for name, size in (("ImageNet32", 32), ("ImageNet64", 64)):
        dump(tmp_path / name / "train_data_batch_1", {"data": pixels(3, size)})
        dump(tmp_path / name / "val_data", {"data": pixels(2, size)})
    folder = tmp_path / "model"
    argv = ["-target", "joint", "-data", str(tmp_path), "-folder", str(folder), *"-hchnl 4 -batch 4".split()]
    easymain.main([*argv, "-epoch", "1"])
    assert "16 images of joint" in capsys.readouterr().out
    easymain.main([*argv, "-epoch", "2", "-load"])
    model, options = open_model(folder, "latest")
    nats = sum(-model.log_prob(x).double().sum().item() for x in load("joint", "test", tmp_path))
    dimensions = 3 * (5 * 32 * 32 + 2 * 64 * 64)
    assert options["size"] is None
    assert history(folder)[1]["test_bpd"] == pytest.approx(bits_per_dimension(nats, dimensions), rel=1e-6)


@pytest.fixture
def joined(tmp_path, images):
    """The arguments of a training on CIFAR, noise here, and the pieces of photographs, of side 8."""
    write_cifar(tmp_path / "CIFAR")
    return ["-target", f"CIFAR+{images}", "-data", str(tmp_path), *"-hchnl 4 -batch 4 -epoch 1".split()]


def test_joined_targets_of_one_size_are_mixed(joined, images, tmp_path, steps, capsys):
    for i in range(2):  # large enough for patches like CIFAR's
        Image.new("RGB", (96, 32), (i, 0, 0)).save(tmp_path / f"{i}.png")
    joined[1], folder = f"CIFAR+{tmp_path}", tmp_path / "model"
    easymain.main([*joined, "-folder", str(folder), "-heavy"])
    assert "13 images of CIFAR+" in capsys.readouterr().out
    seen = [[not image[1:].any() for image in batch] for batch in steps]
    assert sum(map(sum, seen)) == 3 and any(0 < sum(batch) < len(batch) for batch in seen)
    options = read_options(folder)
    assert (options["size"], options["patch"]) == (32, 32)


def test_joined_targets_of_several_sizes(joined, images, tmp_path, capsys):
    folder = tmp_path / "model"
    assert "-heavy and -diffDetail need" in refused(
        capsys, *joined, *"-size 8 -heavy -folder".split(), folder
    )
    easymain.main([*joined, "-size", "8", "-folder", str(folder)])
    assert "37 images of CIFAR+" in capsys.readouterr().out
    options = json.loads((folder / "parameter.json").read_text())
    assert (options["size"], options["patch"]) == (None, 8)
    easymain.main(["-folder", str(folder), "-load", "-epoch", "2", "-size", "8"])
    assert "-size 9: the model in" in refused(capsys, "-folder", folder, "-load", "-size", 9)
    model, _ = open_model(folder, "latest")
    test = load(joined[1], "test", tmp_path, size=8)
    assert [x.shape for x in test] == [(3, 3, 32, 32), (6, 3, 8, 8)]
    nats = sum(-model.log_prob(x).double().sum().item() for x in test)
    bits = bits_per_dimension(nats, sum(x.numel() for x in test))
    assert history(folder)[1]["test_bpd"] == pytest.approx(bits, rel=1e-6)

    def batches(**typed):
        options = {name: option.default for name, option in TEST_SET.items()}
        _, batches = open_test_set(options | {"folder": folder, "data": tmp_path, "batch": 9} | typed)
        return batches

    for given in (batches(), batches(target=joined[1])):
        assert len(given) == 2 and all(map(torch.equal, given, test))
    assert [x.shape[-1] for x in batches(size=4, earlyStop=1)] == [32, 4]
    assert [x.shape[-1] for x in batches(target=f"{PHOTOS}+CIFAR", earlyStop=1)] == [32]


def test_default_folder_of_joined_targets(joined, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    easymain.main([*joined, "-size", "8"])
    (folder,) = Path("opt").iterdir()
    assert folder.name.startswith(f"default_easyMera_CIFAR+{images.name}_")
    assert target_name(f"{images}/+photos+{images}") == f"{images.name}+photos+{images.name}"


def test_scales_train_and_test_on_smaller_images_too(command, images, tmp_path, capsys):
    argv = [*command, "-size", "4", "-scales", "2", "-folder", str(tmp_path)]
    easymain.main([*argv, "-epoch", "1"])
    train, test = (load(images, part, size=4, scales=2)[0] for part in ("train", "test"))
    assert (len(train), len(test)) == (9 * (12 + 3), 2 * (12 + 3))
    assert f"{len(train)} images of" in capsys.readouterr().out
    model, options = open_model(tmp_path, "latest")
    bits = bits_per_dimension(-model.log_prob(test).double().mean().item(), 3 * 4 * 4)
    assert options["scales"] == 2 and history(tmp_path)[0]["test_bpd"] == pytest.approx(bits, rel=1e-6)
    assert "-scales 1: the model in" in refused(capsys, "-folder", tmp_path, "-load", "-scales", 1)


def test_a_plan_is_a_file_of_options_under_those_typed(command, tmp_path, capsys):
    plan, folder = tmp_path / "plan.json", tmp_path / "model"
    plan.write_text(json.dumps({"crops": 16, "epoch": 1, "lr": 0.002, "origins": 0.5}))
    easymain.main([*command, "-config", str(plan), "-lr", "0.001", "-epoch", "1", "-folder", str(folder)])
    options = read_options(folder)
    assert (options["crops"], options["lr"], options["origins"]) == (16, 0.001, 0.5)
    assert "config" not in options and len(history(folder)) == 1
    for text, error in (
        ("{", "not readable as JSON"),
        ("[]", "not a table of options"),
        ('{"crop": 1}', "crop is no option of this script"),
        ('{"lr": -1}', "lr"),
        ('{"config": "x"}', "config is no option"),
    ):
        plan.write_text(text)
        assert error in refused(capsys, *command, "-config", plan, "-folder", tmp_path / "other")
    assert "no such file" in refused(capsys, "-config", tmp_path / "none", "-folder", tmp_path / "other")


@pytest.mark.parametrize("options", ["-lifting linear", "-repeat 0", "-prior bands", "-simplePrior"])
def test_options_of_networks_are_taken_where_there_are_some(options, tmp_path):
    argv = ["-folder", str(tmp_path / "model"), *"-hchnl 64 -nhidden 3".split(), *options.split()]
    assert easymain.resolve(argv)[0]["hchnl"] == 64


def test_a_plan_may_have_options_of_networks_that_are_not_there(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"prior": "bands", "lifting": "linear", "hchnl": 64}))
    options, *_ = easymain.resolve(["-config", str(plan), "-folder", str(tmp_path / "model")])
    assert options["hchnl"] == 64


# -- going on ------------------------------------------------------------------------------------------------


def test_load_goes_on_to_more_epochs(command, whole, tmp_path):
    argv = [*command, "-folder", str(tmp_path / "model")]
    easymain.main([*argv, "-epoch", "1"])
    easymain.main([*argv, "-epoch", "3", "-load"])
    assert_same_training(tmp_path / "model", whole)
    assert json.loads((tmp_path / "model" / "parameter.json").read_text())["epoch"] == 3


def test_load_of_a_folder_from_before_some_options(trained, command, whole, tmp_path, capsys):
    path = trained / "parameter.json"
    options = json.loads(path.read_text())
    for name in (
        "flip",
        "scales",
        "patch",
        "optimizer",
        "clipNorm",
        "noise",
        "prior",
        "width",
        "blocks",
        "components",
        "ownLevels",
        "ownWidth",
    ):
        del options[name]
    path.write_text(json.dumps(options))
    assert read_options(trained)["patch"] == 8
    easymain.main(["-folder", str(trained), *"-load -epoch 4 -size 8 -scales 1".split()])
    assert "-epoch 4, was 3" in capsys.readouterr().out
    easymain.main([*command, "-epoch", "4", "-folder", str(tmp_path / "other")])
    assert_same_training(trained, tmp_path / "other")


def test_load_refuses_what_its_training_has_no_use_for(trained, capsys):
    before = (trained / "parameter.json").read_text()
    line = refused(capsys, "-folder", trained, *"-load -grey 0.1".split())
    assert "-grey has no effect without -crops" in line
    line = refused(capsys, "-folder", trained, *"-load -crops 32 -shift 2".split())
    assert "-shift has no effect with -crops" in line
    path = trained / "parameter.json"
    path.write_text(json.dumps(json.loads(before) | {"simplePrior": True, "diffDetail": True}))
    assert "-diffDetail knows one size" in refused(capsys, "-folder", trained, *"-load -shift 2".split())


def test_a_plan_that_shifts_may_be_trained_on_crops(command, tmp_path):
    plan, folder = tmp_path / "plan.json", tmp_path / "model"
    plan.write_text('{"shift": 2}')
    easymain.main([*command, *f"-config {plan} -folder {folder} -crops 8 -shift 0 -epoch 1".split()])
    assert read_options(folder)["shift"] == 0


def test_load_of_options_that_make_no_model_names_their_file(trained, capsys):
    path = trained / "parameter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prior": "paper", "width": 32}))
    assert f"{path}: -width is of -prior bands" in refused(capsys, "-folder", trained, "-load")


def test_load_in_mid_epoch_has_the_steps_that_it_began_with(command, tmp_path, monkeypatch, capsys):
    folder, plain = tmp_path / "model", Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *args: signal.raise_signal(signal.SIGTERM) or plain(*args))
    with pytest.raises(SystemExit):
        easymain.main([*command, "-crops", "32", "-folder", str(folder)])
    monkeypatch.undo()
    for name, value, begun in (("batch", 4, 8), ("crops", 40, 32)):
        line = refused(capsys, "-folder", folder, "-load", f"-{name}", value)
        assert f"-{name} {value}: epoch 1 has begun with {begun}; give it when that is done" in line
        assert line.endswith("-load -epoch 1 stops")
    easymain.main(["-folder", str(folder), "-load", "-epoch", "1"])
    easymain.main(["-folder", str(folder), *"-load -epoch 2 -batch 4 -crops 40".split()])
    assert load_tensors(folder / "savings" / "latest.safetensors")[1]["steps"] == 4 + 10


def test_load_of_a_finished_training_changes_nothing(trained, whole):
    easymain.main(["-folder", str(trained), "-load"])
    assert_same_training(trained, whole)


@pytest.mark.parametrize(
    "extra",
    [
        "-ema 0",
        "-ema 0.9 -flip -optimizer adam -clipNorm 1 -noise 2 -shift 3",
        "-crops 32 -transpose -origins 0.5 -grey 0.1 -noise 1 -optimizer muon",
    ],
)
@pytest.mark.parametrize(("when", "number"), [(1, signal.SIGTERM), (6, signal.SIGINT), (12, signal.SIGINT)])
def test_stopped_and_resumed(command, tmp_path, monkeypatch, capsys, when, number, extra):
    argv = [*command, *extra.split(), "-folder"]
    easymain.main([*argv, str(tmp_path / "whole")])
    steps = []

    def step(self, *args, plain=Trainer.step):
        steps.append(0)
        if len(steps) == when:
            signal.raise_signal(number)
        return plain(self, *args)

    folder = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        if when < 12:
            with pytest.raises(SystemExit) as caught:
                easymain.main([*argv, str(folder)])
            assert caught.value.code == 130
            assert f"-folder {folder} -load" in capsys.readouterr().out
        else:  # in the very last step: there is nothing to go on with
            easymain.main([*argv, str(folder)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(steps) == when
    open_model(folder)
    assert len(history(folder)) == (when - 1) // 4 + (when == 12)
    assert (folder / "pic" / "lossCurve.png").exists()
    easymain.main(["-folder", str(folder), "-load"])
    assert_same_training(folder, tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(command, trained, whole, tmp_path, monkeypatch, capsys):
    def step(self, *args):
        signal.raise_signal(signal.SIGINT), signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", step)
    before = history(trained)
    assert refused(capsys, "-folder", trained, "-load", "-epoch", 9, status=130).endswith("interrupted")
    monkeypatch.undo()
    assert history(trained) == before
    easymain.main(["-folder", str(trained), "-load", "-epoch", "3"])
    assert_same_training(trained, whole)


def start(argv):
    """Start a Python of one thread in the project's root."""
    argv, environment = [sys.executable, *map(str, argv)], os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(argv, cwd=ROOT, env=environment, text=True, **pipes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signals_from_outside(command, tmp_path, number):
    folder, argv = tmp_path / "model", [*command, "-lrSchedule", "constant", "-folder"]
    process = start(["easymain.py", *argv, folder, "-epoch", 10**6])
    while not (folder / "records" / "losses.csv").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130 and out.splitlines()[-1].startswith("stopped in epoch")
    open_model(folder)
    epochs = str(len(history(folder)) + 1)
    easymain.main(["-load", "-epoch", epochs, "-folder", str(folder)])
    easymain.main([*argv, str(tmp_path / "other"), "-epoch", epochs])
    assert history(folder) == history(tmp_path / "other")


def test_ctrl_c_before_the_training(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "utils.data.datasets.load", lambda *args, **options: signal.raise_signal(signal.SIGINT)
    )
    line = refused(capsys, *command, "-folder", tmp_path / "model", status=130)
    assert line == "easymain.py: interrupted"


def test_killed_before_any_of_its_writes(command, tmp_path, monkeypatch):
    argv = [*command, "-epoch", "2", "-batch", "14", "-ema", "0.9", "-folder"]
    easymain.main([*argv, str(tmp_path / "whole")])
    left = []

    def replace(self, target, plain=Path.replace):
        left.append(shutil.copytree(tmp_path / "model", tmp_path / str(len(left))))
        return plain(self, target)

    with monkeypatch.context() as patch:
        # a saving after every step; what a kill would leave on the disk is put aside
        patch.setattr(training, "SAVE_SECONDS", 0), patch.setattr(training, "SHOW_SECONDS", 0)
        patch.setattr(Path, "replace", replace)
        easymain.main([*argv, str(tmp_path / "model")])
    assert len(left) >= 2 + 2 * (2 + 2 + 3) + 1  # at the start, two epochs of two steps, the curve
    assert all(any(folder.rglob(".*")) for folder in left)
    for folder in left:
        load = ["-load"] if (folder / "parameter.json").exists() else []
        easymain.main([*argv, str(folder), *load])
        assert_same_training(folder, tmp_path / "whole")
        assert not list(folder.rglob(".*"))


# -- several processes ---------------------------------------------------------------------------------------


# a thread of the group's that is left may abort a process at its end, seldom
TRAIN_AND_LIST_THREADS = """
import sys
from pathlib import Path

import easymain

easymain.main(sys.argv[1:])
left = [name for task in Path("/proc/self/task").glob("*") if "gloo" in (name := (task / "comm").read_text())]
sys.exit(f"threads left: {left}" if left else 0)
"""


def test_two_processes_are_one_with_the_same_batch(command, tmp_path, monkeypatch):
    folder, whole, command = tmp_path / "model", tmp_path / "whole", [*command, *"-flip -shift 3".split()]
    easymain.main([*command, "-folder", str(whole)])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    (tmp_path / "train.py").write_text(TRAIN_AND_LIST_THREADS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    process = start([*launcher, tmp_path / "train.py", *command, "-folder", folder])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    for table in (history, bands):
        for row, wanted in zip(table(folder), table(whole), strict=True):
            assert row == pytest.approx(wanted, rel=1e-4)
    given, wanted = (load_file(f / "savings" / "latest.safetensors") for f in (folder, whole))
    for key in wanted:
        torch.testing.assert_close(given[key], wanted[key], rtol=1e-3, atol=1e-5)
    assert out.count("epoch 1: ") == out.count(f"{folder}: trained") == 1
    easymain.main(["-folder", str(folder), "-load", "-epoch", "4"])
    assert len(history(folder)) == 4


def test_only_the_first_process_writes(images, tmp_path):
    options = {name: option.default for name, option in TRAINING.items()} | {"epoch": 1, "batch": 8}
    data = [load(images, part, size=8) for part in ("train", "test")]
    workers = Workers()
    workers.rank = 1
    trainer = Trainer(build({}), *data, options, tmp_path / "model", torch.device("cpu"), workers)
    assert trainer.run() and trainer.state.progress.history[0]["train_bpd"] > 0
    assert not (tmp_path / "model").exists()


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("-target nothing", "'nothing': neither one of photos, CIFAR"),
        ("-target CIFAR -size 16", "have their own size"),
        ("-target CIFAR+ImageNet32 -size 16", "-size 16: the images of CIFAR+ImageNet32 have their own size"),
        ("-target photos+nothing", "'nothing': neither one of photos, CIFAR"),
        ("-target photos+", "'': neither one of photos, CIFAR"),
        ("-target photos+joint -heavy", "need training images of one size"),
        ("-target photos+CIFAR -size 0", "-size 0: need"),
        ("-scales 0", "-scales 0: need"),
        ("-size 99", "no image holds 99x99 pixels"),
        ("-size 0", "-size 0: need"),
        ("-size -4 -simplePrior -diffDetail", "-size -4: need"),
        ("-cuda 99", "this machine has"),
        ("-batch 0", "-batch 0: need"),
        ("-epoch -3", "-epoch -3: need"),
        ("-savePeriod 0", "-savePeriod 0: need"),
        ("-lr -0.1", "-lr -0.1: need"),
        ("-lr nan", "-lr nan: need"),
        ("-decay -1", "-decay -1.0: need"),
        ("-ema 1", "-ema 1.0: need"),
        ("-noise -1", "-noise -1.0: need 0 .. 255"),
        ("-clipNorm -1", "-clipNorm -1.0: need at least 0"),
        ("-clipNorm nan", "-clipNorm nan: need a finite number, at least 0"),
        ("-clipNorm inf", "-clipNorm inf: need a finite number, at least 0"),
        ("-optimizer sgd", "-optimizer: invalid choice: 'sgd'"),
        ("-prior bands -simplePrior", "-simplePrior and -prior bands: need one"),
        ("-origins 0.5", "-origins has no effect without -crops"),
        ("-shift 2 -crops 8", "-shift has no effect with -crops"),
        ("-shift 8", "-shift 8: images of 8 pixels hold no such windows"),
        ("-shift 2 -simplePrior -diffDetail", "-shift: a model with -diffDetail knows one size only"),
        ("-crops 8 -grey 2", "-grey 2.0: need 0 .. 1"),
        ("-target photos*0", "target photos*0: need a positive number"),
        ("-prior pixels", "-prior: invalid choice: 'pixels'"),
        ("-width 0", "-width 0: need"),
        ("-seed -1", "-seed -1: need"),
        ("-seed 99999999999999999999999", "-seed 9999"),
        ("-hchnl 0", "-hchnl 0: need"),
        ("-hchnl 1000000000000", "-hchnl 1000000000000: need 1 .. 2048"),
        ("-repeat -1", "-repeat -1: need"),
        ("-diffDetail", "-simplePrior"),
        ("-prior bands -repeat 0", "-hchnl has no effect without couplings, lifting with networks or"),
        ("-prior bands -lifting linear", "-hchnl has no effect"),
        ("-simplePrior -repeat 0", "-hchnl has no effect"),
        ("-prior simple -repeat 0", "-hchnl has no effect"),
        ("-lifting db4", "-lifting: invalid choice: 'db4'"),
        ("-lrSchedule often", "-lrSchedule: invalid choice: 'often'"),
        ("-batch many", "-batch: invalid int value: 'many'"),
        ("-unheard of", "unrecognized arguments: -unheard of"),
        ("-load", "not a model folder"),
    ],
)
def test_bad_options_end_in_one_line(command, tmp_path, capsys, argv, text):
    folder = tmp_path / "model"
    assert text in refused(capsys, *command, *argv.split(), "-folder", folder)
    assert not folder.exists()


def test_memory_that_does_not_hold_a_model(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flow.model.build", lambda options: torch.empty(10**15))
    assert "memory does not hold" in refused(capsys, *command, "-folder", tmp_path / "model")


def test_missing_and_corrupt_shards(tmp_path, capsys):
    folder = tmp_path / "model"
    argv = ["-target", "ImageNet32", "-data", tmp_path, "-folder", folder]
    assert "ImageNet32: no train_data_batch_1; put" in refused(capsys, *argv)
    for name in ("train_data_batch_1", "val_data"):
        dump(tmp_path / "ImageNet32" / name, {"data": pixels(2, 32)})
    shard = tmp_path / "ImageNet32" / "train_data_batch_1"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert f"{shard}: not a whole shard" in refused(capsys, *argv)
    dump(shard, {"data": pixels(0, 32)}, 4)
    assert "need an image" in refused(capsys, *argv)
    assert not folder.exists()


def test_a_folder_that_holds_a_model_is_left_alone(command, trained, capsys):
    before = contents(trained)
    assert "-load goes on with it" in refused(capsys, *command, "-folder", trained)
    assert contents(trained) == before


@pytest.mark.parametrize(
    "argv",
    ["-hchnl 5", "-HUE", "-target photos", "-size 16", "-scales 2", "-seed 1", "-ema 0.5", "-clamp 1"]
    + ["-prior bands", "-width 5", "-optimizer adam"],
)
def test_load_with_what_may_not_change(trained, capsys, argv):
    before = contents(trained)
    name, *_ = argv.split()
    line = refused(capsys, "-folder", trained, "-load", *argv.split())
    assert f"{name} " in line and "the model in" in line
    assert contents(trained) == before


@pytest.mark.parametrize(
    "change",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        {"hchnl": "4"},
        {"hchnl": 5},
        {"hchnl": -1},
        {"width": 10**30},
        {"repeat": 100_000},
        {"clamp": math.nan},
        {"heavy": 1},
        {"lifting": "db4"},
        {"size": "8"},
        {"size": -8},
        {"patch": "8"},
        {"patch": -8},
        {"scales": 0},
        {"scales": None},
        {"flip": 1},
        {"epoch": None},
        {"batch": 0},
        {"lr": "much"},
        {"lr": 10**400},
        {"ema": 1},
        {"data": 5},
        {"lrSchedule": "often"},
        {"target": 5},
        {"seed": 0.5},
    ],
    ids=str,
)
def test_damaged_options(trained, capsys, change):
    path = trained / "parameter.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change).encode()
    path.write_bytes(change)
    before = contents(trained)
    refused(capsys, "-folder", trained, "-load")
    assert contents(trained) == before


def test_damaged_savings(trained, capsys):
    latest = trained / "savings" / "latest.safetensors"
    whole, best = latest.read_bytes(), (trained / "savings" / "best_test.safetensors").read_bytes()
    for damaged in (
        b"",
        whole[:7],
        whole[: len(whole) // 2],
        whole[:-1],
        b"x" * 1000,
        best.replace(b"model.", b"madel."),
    ):
        latest.write_bytes(damaged)
        before = contents(trained)
        assert str(latest) in refused(capsys, "-folder", trained, "-load")
        assert contents(trained) == before
        with pytest.raises(ValueError, match=r"latest\.safetensors"):
            open_model(trained, "latest")
    for path in latest.parent.iterdir():
        path.unlink()
    line = refused(capsys, "-folder", trained, "-load")
    assert f"{latest.parent}: none of latest.safetensors, best_test.safetensors" in line
    with pytest.raises(ValueError, match=r"none of latest\.safetensors is there"):
        open_model(trained, "latest")


@pytest.mark.parametrize(
    "progress",
    [
        {"history": [1]},
        {"history": [{}]},
        {"history": {}},
        {"history": [{"epoch": 1, "train_bpd": 4, "test_bpd": "4"}]},
        {"history": [{"epoch": 1, "train_bpd": 4, "test_bpd": 4, "other": 4}]},
        {"bands": [["ur 0", 1]]},
        {"epoch": 1.5},
        {"step": True},
        {"steps": -1},
        {"nats": math.nan},
        {"seconds": math.inf},
        {"dimensions": 10**400},
        {"best_test": None},
        {"other": 1},
    ],
    ids=str,
)
def test_savings_with_a_progress_that_is_none(progress, trained, capsys):
    for name in ("latest", "best_test"):
        path = trained / "savings" / f"{name}.safetensors"
        tensors, state = load_tensors(path)
        save_tensors(path, tensors, state | progress)
    assert "latest.safetensors: not the progress" in refused(capsys, "-folder", trained, "-load")
    with pytest.raises(ValueError, match=r"best_test\.safetensors: not the progress"):
        caption(trained)


@pytest.mark.parametrize("part", ["model", "average", "optimizer.exp_avg", "optimizer.step"])
def test_savings_with_tensors_of_other_shapes(part, command, tmp_path, capsys):
    easymain.main([*command, "-epoch", "1", "-ema", "0.9", "-folder", str(tmp_path)])
    path = tmp_path / "savings" / "latest.safetensors"
    tensors, state = load_tensors(path)
    name = next(name for name in tensors if name.startswith(f"{part}.") and name.endswith("first.bias"))
    save_tensors(path, tensors | {name: torch.ones(1)}, state)
    assert f"{name} of another shape" in refused(capsys, "-folder", tmp_path, "-load")


def test_savings_of_another_model(command, trained, tmp_path, capsys):
    for i, options in enumerate((["-heavy"], ["-hchnl", "5"], ["-nhidden", "0"])):
        other = tmp_path / f"other{i}"
        easymain.main([*command, "-epoch", "1", "-folder", str(other), *options])
        latest = trained / "savings" / "latest.safetensors"
        shutil.copy(other / "savings" / "latest.safetensors", latest)
        assert "another model" in refused(capsys, "-folder", trained, "-load")
        with pytest.raises(ValueError, match="do not fit"):
            open_model(trained, "latest")


def test_divergence_keeps_the_last_good_weights(command, trained, whole, tmp_path, capsys):
    assert "diverged" in refused(capsys, *command, "-lr", "1e30", "-folder", tmp_path / "new")
    model, _ = open_model(tmp_path / "new")
    assert all(p.isfinite().all() for p in model.parameters())
    # in the one step of an epoch, whose loss is still that of the good weights
    line = refused(capsys, "-folder", trained, "-load", "-epoch", 5, "-lr", 1e9, "-batch", 99)
    assert "diverged in epoch 4" in line and "give a smaller -lr" in line and str(trained / "savings") in line
    easymain.main(["-folder", str(trained), "-load", "-epoch", "3"])
    assert_same_training(trained, whole)


def test_weights_that_are_not_finite_are_never_saved(command, tmp_path, monkeypatch, capsys):
    def step(self, *args, plain=Trainer.step):
        nats = plain(self, *args)
        self.model.top.mean.data[0] = torch.nan
        signal.raise_signal(signal.SIGINT)
        return nats

    monkeypatch.setattr(Trainer, "step", step)
    assert "diverged in epoch 1 (nan" in refused(capsys, *command, "-folder", tmp_path / "model")
    model, _ = open_model(tmp_path / "model")
    assert all(p.isfinite().all() for p in model.parameters())


def test_more_processes_than_images_in_a_batch(images, tmp_path):
    workers = Workers()
    workers.count = 9
    options = {name: option.default for name, option in TRAINING.items()} | {"batch": 8}
    data = [load(images, part, size=8) for part in ("train", "test")]
    with pytest.raises(ValueError, match="9 processes"):
        Trainer(build({}), *data, options, tmp_path, torch.device("cpu"), workers)


def test_places_that_cannot_be_written(command, tmp_path, capsys):
    (tmp_path / "file").write_text("text")
    assert str(tmp_path / "file") in refused(capsys, *command, "-folder", tmp_path / "file" / "model")
    assert str(tmp_path / "file") in refused(capsys, *command, "-folder", tmp_path / "file")


def test_a_full_disk(command, trained, whole, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        line = refused(capsys, "-folder", trained, "-load", "-epoch", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in line
    easymain.main(["-folder", str(trained), "-load", "-epoch", "3"])
    assert_same_training(trained, whole)


FAULTS = """
import ctypes, resource, sys
sys.path.insert(0, ".")
from utils.workers import keep_memory
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
if sys.argv[1] == "kept":
    keep_memory()
for step in range(8):
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [c.malloc(4 << 20) for _ in range(20)]
    for block in blocks:
        ctypes.memset(block, 1, 4 << 20)
    for block in blocks:
        c.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_a_step_frees_is_kept_for_the_next():
    """Pages that the system gives anew: of six times 80 MiB, less than of half of one; else of nearly all."""
    pages, faults = 80 * 2**20 // resource.getpagesize(), []
    for kept in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", FAULTS, kept], cwd=ROOT, capture_output=True, text=True)
        faults.append(int(done.stdout))
    assert faults[0] < pages / 2 and faults[1] > 3 * pages, (faults, pages)
