"""The frequency method: to bytes and back, at most 1 % over entropy and histogram, and bad input."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from easyEncodeTrans import main
from flow.codec import histogram
from flow.folder import open_frozen, write_options
from flow.model import build
from source.rans import Decoder
from tests.conftest import make_wild, noise
from utils.files import save_tensors

OPTIONS = {
    "paper": dict(hchnl=8, HUE=True),
    "rgb": dict(hchnl=8, repeat=2, clamp=0.2),
    "simple": dict(hchnl=4, simplePrior=True),
    "legall": dict(hchnl=4, lifting="legall"),
    "heavy": dict(hchnl=4, heavy=True, size=16),
    "every position": dict(hchnl=4, simplePrior=True, diffDetail=True, size=32),
    "no couplings": dict(hchnl=8, repeat=0),
    "bands": dict(prior="bands", width=6, components=2, repeat=0, HUE=True),
}
LAST_LINE = r"Actual Mean BPD: ([\d.]+) Theory Mean BPD: ([\d.]+) Mean Error: ([\d.]+)\n$"


def frozen(name, std=0.1):
    return make_wild(build(OPTIONS[name]), std).freeze()


def make_folder(path, name, **further):
    write_options(path, OPTIONS[name] | further)
    model = make_wild(build(OPTIONS[name]), 0.05)
    tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
    for weights in ("best_test", "best_train"):
        save_tensors(path / "savings" / f"{weights}.safetensors", tensors, {})
    return str(path)


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path, "paper", target="photos")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("arguments", [["-size", "32"], ["-size", "32", "-precision", "16", "-best"]])
def test_report(tmp_path, capsys, name, arguments):
    folder = make_folder(tmp_path, name, target="photos")
    main(["-folder", folder, "-batch", "3", "-earlyStop", "2", *arguments])
    output = capsys.readouterr().out
    actual, theory, error = map(float, re.search(LAST_LINE, output).groups())
    histogram = float(re.search(r"histogram ([\d.]+)", output)[1])
    assert error == 0 and histogram > 0.01
    assert theory + histogram < actual < 1.01 * (theory + histogram)


@pytest.mark.parametrize("size", [5, 64])
def test_other_resolutions(folder, capsys, size):
    main(["-folder", folder, "-target", "photos", "-size", str(size), "-batch", "2", "-earlyStop", "1"])
    assert re.search(LAST_LINE, capsys.readouterr().out)[3] == "0.0"


@given(
    st.sampled_from(["paper", "rgb", "legall", "bands"]),
    st.integers(1, 33),
    st.integers(1, 33),
    st.integers(0, 255),
)
@settings(max_examples=30)
def test_any_size(name, height, width, seed):
    model, images = frozen(name, 0.3), noise(2, 3, height, width, seed=seed)
    images[1] = seed
    streams = [encoder.finish() for encoder in histogram.encode(model, images)]
    for image, stream in zip(images, streams):  # one by one, though they were encoded together
        decoder = Decoder(stream)
        assert torch.equal(histogram.decode(model, [decoder], (height, width))[0].float(), image)
        assert decoder.finish() == 0


def test_differences_are_from_the_means_of_the_prior(photo):
    """Without couplings the bands are pixels: everything written out for images of 4x4."""
    model, x = frozen("no couplings"), photo[..., 100:104, 200:204].double()
    top, *details = (x[..., i::2, j::2] for i in range(2) for j in range(2))
    given = model.detail(top, 0)
    details = [band - torch.floor(given(details[:k]).mean / 64 + 0.5) for k, band in enumerate(details)]
    top = top - torch.floor(model.top.mean.double().mean(0) / 64 + 0.5)
    expected = torch.cat([band.flatten() for band in (top, *details)])
    assert histogram.differences(model, x)[0].tolist() == expected.tolist()


def test_theory_is_entropy_and_histogram(photo):
    model, x = frozen("paper"), photo[..., :64, :48].repeat(2, 1, 1, 1)
    x[1] = x[1].flip(-1)
    entropy, table = histogram.theory(model, x)
    for i, r in enumerate(histogram.differences(model, x)):
        p = np.unique(r, return_counts=True)[1] / r.size
        assert entropy[i] == pytest.approx(-r.size * (p * np.log2(p)).sum())
    sizes = np.array([8 * len(encoder.finish()) for encoder in histogram.encode(model, x)])
    assert (entropy + table < sizes).all() and (sizes < 1.01 * (entropy + table)).all()


PROCESS = """
import sys
from pathlib import Path
import torch
from flow.codec import histogram
from flow.folder import open_frozen
from source.rans import Decoder
torch.set_num_threads(2)
folder = Path(sys.argv[1])
image = histogram.decode(open_frozen(folder)[0], [Decoder((folder / "stream").read_bytes())], (45, 64))
torch.save(image, folder / "image")
"""


def test_fresh_process_decodes_from_bytes_alone(folder, tmp_path, photo):
    (model, _, _), x = open_frozen(folder), photo[..., :45, :64]
    (encoder,) = histogram.encode(model, torch.cat([x, x.flip(-2)]))[:1]
    (tmp_path / "stream").write_bytes(encoder.finish())
    subprocess.run([sys.executable, "-c", PROCESS, folder], check=True)
    assert torch.equal(torch.load(tmp_path / "image", weights_only=True).float(), x)


def test_changed_image_ends_with_status_1(folder, capsys, monkeypatch):
    decode = histogram.decode
    monkeypatch.setattr(histogram, "decode", lambda *arguments: decode(*arguments) ^ 1)
    with pytest.raises(SystemExit) as end:
        main(["-folder", folder, "-batch", "2", "-earlyStop", "1"])
    assert end.value.code == 1
    assert re.search(LAST_LINE, capsys.readouterr().out)[3] == "1.0"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["-folder", "nowhere"], "nowhere: not a model folder"),
        (["-target", "nothing"], "target 'nothing'"),
        (["-target", "CIFAR", "-data", "/dev/null"], "CIFAR"),
        (["-batch", "0"], "-batch 0: need 1 .. 1000000"),
        (["-earlyStop", "0"], "-earlyStop 0: need at least 1"),
        (["-earlyStop", "-2"], "-earlyStop -2: need at least 1"),
        (["-size", "0"], "-size 0: need 1 .. 8192"),
        (["-precision", "25"], "-precision 25: need 16 .. 24"),
        (["-best", "-valbest"], "-best and -valbest"),
        (["-cuda", "99"], "-cuda 99"),
        (["-nbins", "7"], "-nbins"),
    ],
)
def test_wrong_input_is_one_line(folder, capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        main(["-folder", folder, *arguments])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error


def test_model_of_one_size_refuses_others(tmp_path, capsys):
    folder = make_folder(tmp_path, "every position")
    for arguments, words in (
        ([], "give -target"),
        (["-target", "photos", "-size", "16"], "one size only, of which a coarse band has 16x16"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["-folder", folder, *arguments])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and words in error
