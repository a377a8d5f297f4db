"""The analysis scripts: filters against the analytic ones, low and high parts, entropies, pictures."""

import csv
import math

import numpy as np
import pytest
import pywt
import torch
from conftest import make_wild, noise
from PIL import Image

import FIR
import legall_lena
import simpleBigWavelet
from flow.analysis import (
    classical_model,
    classical_response,
    coarse_psnr,
    down_tap,
    entropy,
    filter_figures,
    filters,
    frequency_response,
    impulse_responses,
    low_and_high,
    low_pass,
    mosaic,
    pyramid,
    radial,
    spectrum,
)
from flow.folder import open_frozen, trained, write_options
from flow.lifting import classical
from flow.model import build
from utils.data.images import IN_THE_BOX, picture
from utils.files import save_tensors

OMEGA = np.linspace(0, math.pi, 50)
MODELS = {
    "scheme 2": {"hchnl": 4},
    "scheme 2, YCoCg": {"hchnl": 4, "HUE": True},
    "scheme 1": {"hchnl": 4, "lifting": "legall"},
    "heavy": {"hchnl": 4, "heavy": True, "size": 8, "simplePrior": True},
}


def wild(options):
    """Return a model that is not trained, but far from the identity."""
    return make_wild(build(options), 0.05)


def model_folder(path, options, state=None):
    """Write a model folder as training leaves it, and return its path."""
    tensors = {f"model.{name}": tensor for name, tensor in wild(options).state_dict().items()}
    save_tensors(path / "savings" / "best_test.safetensors", tensors, state or {})
    write_options(path, {"target": "photos", "epoch": 12, **options})
    return path


@pytest.fixture
def folder(tmp_path):
    state = {"epoch": 7, "history": [{"epoch": 7, "train_bpd": 4.6, "test_bpd": 4.5}]}
    return model_folder(tmp_path, MODELS["scheme 2, YCoCg"], state)


@pytest.mark.parametrize("wavelet", ["haar", "legall"])
@pytest.mark.parametrize("learned", [False, True])
def test_responses_of_a_classical_transform_are_the_analytic_ones(wavelet, learned):
    flow = build({"lifting": wavelet, "hchnl": 4}).pyramid if learned else classical(wavelet)
    taps = filters(flow.level(0).double(), noise(2, 3, 24, 20).double(), torch.arange(4, 7))
    for (_, varied), pair in taps.items():
        gain = 1 if varied == "columns" else down_tap(wavelet)
        for h, expected in zip(pair, classical_response(wavelet, OMEGA)):
            response = frequency_response(h, OMEGA)
            np.testing.assert_allclose(response, np.broadcast_to(gain * expected, response.shape), atol=1e-12)


def test_pass_figures_of_legall():
    level = classical("legall").level(0).double()
    for (_, varied), found in filter_figures(level, noise(1, 3, 24, 24).double(), torch.tensor([5])).items():
        gain = 1 if varied == "columns" else 0.75
        expected = [gain * value for value in (1, 0, 0, 0, 2, 0)]
        expected[2], expected[5] = 0, 0
        assert list(found.values()) == pytest.approx(expected, abs=1e-12)


def test_pass_figures_tell_directions_apart():
    """A transform that is LeGall's along rows and nothing down columns."""

    class Rows(torch.nn.Module):
        def split(self, x):
            left, right = classical("legall").level(0).double()._analyse(x)
            return left[..., ::2, :], (right[..., ::2, :], left[..., 1::2, :], right[..., 1::2, :])

    figures = filter_figures(Rows(), noise(1, 3, 24, 24).double(), torch.tensor([5]))
    assert figures["across", "columns"]["low_ratio"] < 1e-9 and figures["down", "columns"]["low_ratio"] == 1
    assert figures["down", "columns"]["high_ratio"] == 1


@pytest.mark.parametrize(("wavelet", "name"), [("haar", "haar"), ("legall", "bior2.2"), ("cdf97", "bior4.4")])
def test_analytic_responses_are_those_of_pywavelets(wavelet, name):
    # PyWavelets' filters have gain sqrt(2) at frequency 0 and at pi
    filters = pywt.Wavelet(name).filter_bank[:2]
    for response, taps, gain in zip(classical_response(wavelet, OMEGA), filters, (2**-0.5, 2**0.5)):
        expected = gain * frequency_response(torch.tensor(taps, dtype=torch.float64), OMEGA)
        np.testing.assert_allclose(response, expected, atol=1e-9)


def test_impulse_responses_are_the_slope_of_the_transform():
    level = wild({"hchnl": 4, "repeat": 2}).pyramid.level(0).double()
    images, places = noise(2, 3, 8, 12).double(), torch.tensor([1, 4])

    def rows(x):
        ul, (ur, _, _) = level.split(x)
        return torch.cat([band[1, 0, 2, places] for band in (ul, ur)])

    low, high = impulse_responses(level, images, places)
    jacobian = torch.autograd.functional.jacobian(rows, images)
    assert torch.allclose(torch.cat([low[1], high[1]]), jacobian[:, 1, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wavelet", ["haar", "legall"])
def test_linear_low_passes_are_those_of_the_transforms(wavelet, photo):
    model, x = classical_model(wavelet), photo[..., 100:175, 100:190].double()
    bands = low_pass(x, wavelet, 3)
    for level, band in enumerate(bands, 1):
        coarse, _ = model.transform(x, level)
        assert band.shape == coarse.shape and (band - coarse).abs().max() < 2 * level  # roundings
    means = torch.nn.functional.avg_pool2d(x[..., :74, :], 2)
    assert torch.allclose(low_pass(x, "haar", 1)[0][..., :37, :], means)
    flat = low_pass(torch.full((1, 9, 14), 7.0), "cdf97", 2)[1]
    assert torch.allclose(flat, torch.full_like(flat, 7))


def test_coarse_bands_are_nearest_to_their_own_low_pass(photo):
    x = photo[..., 100:228, 100:228]
    for wavelet in ("haar", "legall"):
        near = coarse_psnr(classical_model(wavelet, ycocg=True), x)
        assert list(near)[0] == wavelet and min(near[wavelet]) > 44
        assert all(sum(other) < sum(near[wavelet]) - 15 for name, other in near.items() if name != wavelet)


@pytest.mark.parametrize("size", [(16, 16), (9, 14), (1, 6), (5, 1)])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_pyramid_subtracts_what_the_prior_expects(options, size):
    model, images = wild(options).freeze(), noise(2, 3, *size)
    coarse, details, residuals = pyramid(model, images, 2)
    top, expected = model.transform(images, 2)
    assert torch.equal(coarse, top)
    assert all(torch.equal(a, b) for pair in zip(details, expected) for a, b in zip(*pair))
    assert mosaic(coarse, details).shape == images.shape
    # the low-pass image is the one whose residuals are 0
    again = pyramid(model, low_and_high(model, images, 2)[0], 2)
    assert torch.equal(again[0], coarse) and not any(band.any() for detail in again[2] for band in detail)
    assert any(band.any() for detail in residuals for band in detail)


def test_mosaic_lays_out_the_bands():
    bands = [torch.full((1, 1, 1, 1), float(n)) for n in range(4)]
    details = [tuple(torch.full((1, 1, 2, 2), float(n)) for n in (4, 5, 6)), tuple(bands[1:])]
    expected = [[0, 1, 4, 4], [2, 3, 4, 4], [5, 5, 6, 6], [5, 5, 6, 6]]
    assert mosaic(bands[0], details)[0, 0].tolist() == expected


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("ycocg", [False, True])
def test_low_and_high_of_legall_are_the_picture(levels, ycocg, photo):
    model, images = classical_model("legall", ycocg), photo[..., :75, :90].double()
    low, high = low_and_high(model, images, levels)
    assert (low + high - images).abs().max() <= 4 * levels  # tones, all roundings together
    ramp = torch.arange(32.0, dtype=torch.float64).expand(1, 3, 32, 32) * 4
    low, high = low_and_high(model, ramp, 1)
    assert high[..., :-4].abs().max() <= 1 and (low - ramp)[..., :-4].abs().max() <= 1
    stripes = (torch.arange(32.0) % 2).expand(1, 3, 32, 32) * 100
    low, high = low_and_high(model, stripes, 1)
    assert low[..., 4:-4].std() <= 1 < 40 < high.std()


def test_high_pass_of_the_prior_s_own_picture_is_nothing():
    model = wild(MODELS["scheme 2, YCoCg"]).freeze()
    expected, _ = low_and_high(model, noise(1, 3, 16, 16), 2)
    assert not low_and_high(model, expected, 2)[1].any()


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ([5, 5, 5, 5], 0),
        ([0, 1, 0, 1], 1),
        ([-3, 0, 7, 256], 2),
        ([1, 1, 1, 2], 2 - 0.75 * math.log2(3)),
        ([], 0),
    ],
)
def test_entropy(values, bits):
    band = torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)
    assert entropy(band) == pytest.approx(bits)
    # channel by channel: a shift of one channel is no information
    assert entropy(torch.cat([band, band + 1000], 1)) == pytest.approx(bits)


def test_spectrum_of_a_wave():
    x = 8 * torch.cos(2 * math.pi * torch.arange(64.0) / 8).expand(3, 32, 64) + 100
    values, fy, fx = spectrum(x)
    assert torch.all(fx.diff() > 0) and torch.all(fy.flatten().diff() > 0)
    peak = values == values.max()
    assert peak.sum() == 2 and set(fx.expand(32, 64)[peak].tolist()) == {-1 / 8, 1 / 8}
    assert values.max() == pytest.approx(math.log1p(8 * 32 * 64 / 2), rel=1e-5)
    radius, mean = radial(values, fy, fx)
    # the window spreads the wave to the neighbours of its frequency
    assert abs(radius[mean.argmax()] - 1 / 8) <= 1 / 32
    assert len(mean) == 32 and not mean.isnan().any()


def test_pyramid_script_writes_its_table(folder, tmp_path, capsys):
    Image.fromarray(noise(33, 20, 3).byte().numpy()).convert("L").save(tmp_path / "grey.png")
    argv = ["-folder", str(folder), "-img", str(tmp_path / "grey.png"), "-out", str(tmp_path), "-jpg"]
    simpleBigWavelet.main(argv)
    name = tmp_path / "simpleBigWavelet_grey_depth_2"
    written = {path.name.removeprefix(name.name) for path in tmp_path.glob(f"{name.name}*")}
    assert written == {".png", ".pdf", ".jpg", ".csv", "_bits.png", "_bits.pdf"}
    with Image.open(name.with_suffix(".jpg")) as page:
        assert abs(page.width - 1600) < 3
    printed = capsys.readouterr().out
    assert str(name.with_suffix(".png")) in printed and "PSNR in dB" in printed
    with name.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    image = picture(tmp_path / "grey.png")[None]
    top, [_, detail] = classical_model("legall", True).transform(image, 2)
    found = {(r["wavelet"], r["band"], r["level"]): float(r["bits"]) for r in rows}
    assert found["legall", "coarse", "2"] == pytest.approx(entropy(top))
    assert found["legall", "dl", "2"] == pytest.approx(entropy(detail[1]))
    model, _, _ = open_frozen(folder)
    coarse, details, residuals = pyramid(model, image, 2)
    assert found["learned", "coarse", "2"] == pytest.approx(entropy(coarse))
    assert found["learned", "ur", "1"] == pytest.approx(entropy(details[0][0]))
    assert found["learned, less prior", "ur", "1"] == pytest.approx(entropy(residuals[0][0]))
    assert sum(int(r["height"]) * int(r["width"]) for r in rows if r["wavelet"] == "haar") == 2 * 33 * 20


def test_spectra_script(folder, tmp_path):
    legall_lena.main(["-folder", str(folder), "-img", "target", "-deltaDepth", "2", "-seed", "3"])
    [path] = (folder / "pic").glob("legall_photos_test_*_deltaDepth_2.npz")
    with np.load(path) as numbers:
        assert numbers["original"].shape == numbers["learned_low"].shape == (32, 32)
        assert numbers["legall_high_radial"].shape == numbers["radius"].shape
    assert len(list((folder / "pic").glob("*.p[nd][gf]"))) == 4


def test_filters_script(tmp_path, monkeypatch):
    folder = model_folder(tmp_path, {"hchnl": 4})
    FIR.main(["-folder", str(folder), "-step", "0.1", "-num", "3", "-out", str(tmp_path / "a")])
    assert len(list((tmp_path / "a").iterdir())) == 7
    with (tmp_path / "a" / "FIR.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 7
    monkeypatch.setattr("flow.figures.responses.save_figure", lambda *_: None)
    FIR.main(["-folder", str(folder), "-step", "0.1", "-num", "3", "-out", str(tmp_path / "b")])
    for name in ("FIR_row", "FIR_columns"):
        with np.load(tmp_path / "a" / f"{name}.npz") as one, np.load(tmp_path / "b" / f"{name}.npz") as other:
            assert all(np.array_equal(one[key], other[key]) for key in one)
            assert one["omega"].shape == one["down_low_mean"].shape == (32,)
            gains = np.abs(one["across_high_impulse_responses"].sum(-1))
            assert one["across_high_mean"][0] == pytest.approx(gains.mean(), rel=1e-5)
            assert np.all(one["across_high_spread"][0] <= one["across_high_spread"][1])


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        (
            simpleBigWavelet,
            ["-img", "lena.tiff"],
            "lena.tiff: no such file; etc/photos/roman-colosseum.png is there",
        ),
        (simpleBigWavelet, ["-depth", "9"], "-depth 9: a 512x512 picture has 8 levels"),
        (legall_lena, ["-deltaDepth", "0"], "-deltaDepth 0: need at least 1"),
        (legall_lena, ["-deltaDepth", "9"], "-deltaDepth 9: a 512x512 picture has 8 levels"),
        (FIR, ["-step", "0"], "-step 0.0: need 1e-05 .. 3.14159"),
        (FIR, ["-num", "0"], "-num 0: need 1 .. 10000"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(folder, capsys, script, argv, message):
    with pytest.raises(SystemExit) as end:
        script.main(["-folder", str(folder), *argv])
    assert end.value.code == 2 and capsys.readouterr().err == f"{script.__name__}.py: {message}\n"


def test_a_transform_that_only_splits_pixels_has_no_filters(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        FIR.main(["-folder", str(model_folder(tmp_path, {"repeat": 0})), "-out", str(tmp_path / "a")])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_captions_say_how_long_a_model_was_trained(folder):
    assert trained(folder) == "photos, 7 of 12 epochs, 4.500 bits per dimension"


def test_the_picture_in_the_box():
    image = picture()
    assert image.shape == (3, 512, 512) and image.dtype == torch.uint8
    whole = picture(IN_THE_BOX)
    assert torch.equal(image, whole[:, 14:526, 224:736])
