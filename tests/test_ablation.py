"""The ablation table: its models are blind to what they say, its counts are those worked out by hand."""

import json

import benchmark_ablation
import pytest
import torch
from benchmark_ablation import (
    ALL,
    PARTS,
    ROWS,
    TAPS,
    WAVELETS,
    PartialPrior,
    PlainMixer,
    coefficient_bits,
    low_ratio,
    make_model,
    multiply_adds,
)
from conftest import make_wild, noise
from PIL import Image
from torch import nn

from flow.model import build
from source.bands import BandPrior
from source.networks import Conv, ConvNet

SMALL = {"seed": 0, "size": 8, "width": 4, "blocks": 1, "components": 2, "hchnl": 3}
TINY = ("-steps", 2, "-batch", 3, "-count", 2, "-size", 8, "-width", 4, "-threads", 1)


def distributions(prior, coarse, known, level=0):
    """The distributions of all nine parts, as one tensor each, given the values in `known`."""
    given = prior(coarse, level)
    return [torch.cat([field.flatten() for field in given(known[:n])]) for n in range(9)]


@pytest.mark.parametrize("part", [None, *PARTS[:2], "levels"])
@pytest.mark.parametrize("without", [False, True])
@torch.no_grad()
def test_models_see_what_their_parts_say_and_nothing_else(part, without):
    parts = ALL - {part} if without else frozenset({part}) & ALL
    prior = make_wild(PartialPrior(parts, 4, 1, 2), 0.3)
    coarse = noise(2, 3, 5, 4)
    one, other = ([noise(2, 1, 5, 4, seed=seed + n) for n in range(9)] for seed in (10, 20))
    first = distributions(prior, coarse, one)
    for band in range(3):
        of_bands = distributions(prior, coarse, other[: 3 * band] + one[3 * band :])
        of_channels = distributions(prior, coarse, one[: 3 * band] + other[3 * band :])
        for n in range(3 * band, 3 * band + 3):
            assert torch.equal(first[n], of_bands[n]) == ("bands" not in parts or not band)
            assert torch.equal(first[n], of_channels[n]) == ("channels" not in parts or n == 3 * band)
    deeper = distributions(prior, coarse, one, level=1)
    for a, b in zip(first, deeper):
        assert torch.equal(a, b) == ("levels" not in parts)
    assert not any(map(torch.equal, first, distributions(prior, noise(2, 3, 5, 4, seed=9), one)))


@torch.no_grad()
def test_all_parts_are_the_prior_itself():
    ours, prior = PartialPrior(ALL, 4, 1, 2, (2, 0, 1)), make_wild(BandPrior(4, 1, 2, (2, 0, 1)), 0.3)
    ours.load_state_dict(prior.state_dict())
    known = [noise(2, 1, 5, 4, seed=n) for n in range(9)]
    both = (distributions(p, noise(2, 3, 5, 4), known) for p in (ours, prior))
    assert ours.parts(5) == prior.parts(5) and all(map(torch.equal, *both))


def test_parts_that_are_no_inputs():
    assert len(PartialPrior(ALL - {"mixtures"}, 4, 1, 3)(noise(1, 3, 2, 2), 0)([]).mean) == 1
    # means keep from scales
    outputs, base = torch.randn(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    wider = outputs + torch.tensor([0.0, 0, 0.1])[:, None, None]
    narrow, wide = (PlainMixer(1)(o, base) for o in (outputs, wider))
    assert torch.equal(narrow.mean, wide.mean) and (narrow.logscale < wide.logscale).any()
    # without companding, features are linear up to the first ReLU
    plain = PartialPrior(ALL - {"compand"}, 4, 1, 3)
    for module in (plain, *plain.bands):
        assert torch.equal(module.compand(torch.tensor([-255.0, 2])), torch.tensor([-255 / 32, 1 / 16]))


@pytest.mark.parametrize("prior", ["paper+ycocg", "full"])
@pytest.mark.parametrize("wavelet", WAVELETS)
def test_rows_of_a_wavelet(prior, wavelet):
    """Each starts as its wavelet, and is trained or not as it says; a fixed one has no networks."""
    model, (lifting, fixed) = make_model(f"{prior}+{wavelet}", SMALL), WAVELETS[wavelet]
    x = noise(2, 3, 32, 32)
    wanted = build({"lifting": lifting, "HUE": True}).transform(x, 2)
    assert torch.equal(model.transform(x, 2)[0], wanted[0])
    assert fixed != any(p.requires_grad for p in model.pyramid.parameters())
    networks = [m for m in model.pyramid.modules() if isinstance(m, ConvNet)]
    assert len(networks) == (0 if fixed else {"linear": 0, "luma": 0, "wavelet": 3}.get(lifting, 2))
    assert low_ratio(model) == pytest.approx(0, abs=0.01)
    assert 0 < coefficient_bits(model, x) < 12


def test_without_a_transform_the_low_pass_passes_all():
    model = make_model("full", SMALL)
    flat = torch.full((2, 3, 16, 16), 7)
    assert low_ratio(model) == pytest.approx(1) and coefficient_bits(model, flat) == 0


@pytest.mark.parametrize("taps", TAPS)
def test_rows_of_other_taps(taps):
    model, x = make_model(f"full+{taps}", SMALL), noise(2, 3, 32, 32)
    assert not any(p.requires_grad for p in model.pyramid.parameters())
    assert low_ratio(model) == pytest.approx(0, abs=1e-3)
    top, details = model.transform(x)
    assert torch.equal(model.inverse(top, details), x.float())
    flat = model.pyramid.level(0).split(torch.full((1, 3, 8, 8), 100.0))[1]
    assert max(band.abs().max() for band in flat) <= 1


def test_rows_of_levers():
    models = {row: make_model(row, SMALL) for row in ("full", "full+own", "full+five", "full+muon")}
    sizes = {row: sum(p.numel() for p in model.parameters()) for row, model in models.items()}
    assert sizes["full+muon"] == sizes["full"] < sizes["full+five"] < sizes["full+own"]
    assert models["full+five"].detail.bands[0].mixer.components == SMALL["components"] + 2
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert torch.equal(models["full"](images), models["full+muon"](images))
    assert multiply_adds(models["full+own"], 8) == multiply_adds(models["full"], 8)


def test_multiply_adds_of_networks_by_hand():
    class One(nn.Module):
        device = torch.device("cpu")

        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, images):
            return self.net(images.float())

    # at each of 16 positions 9 taps of 3 to 5, 5 to 5, 9 taps of 5 to 2; for 48 values
    assert multiply_adds(One(ConvNet(3, 2, 5, 1)), 4) == pytest.approx((135 + 25 + 90) * 16 / 48)
    assert multiply_adds(One(ConvNet(3, 2, 5, 0, (1, 3))), 4) == pytest.approx((45 + 30) * 16 / 48)
    assert multiply_adds(One(Conv(3, 5, 3)), 4) == pytest.approx(135 * 16 / 48)


def test_multiply_adds_of_pyramids_by_hand():
    # 8x8: networks see 4x4, then 2x2, positions; four couplings 9 to 3 channels, two networks 3 to 9
    couplings, prior = 4 * (9 * 9 * 5 + 25 + 9 * 5 * 3), 2 * (9 * 3 * 5 + 25 + 9 * 5 * 9)
    model = build({"repeat": 1, "hchnl": 5, "nhidden": 1})
    assert multiply_adds(model, 8) == pytest.approx((couplings + prior) * (16 + 4) / 192)
    # each convolution of a band-wise prior once for each position of a level
    for row, before in (("full", (1, 2, 3)), ("blind", (1, 1, 1))):
        outputs = 6 if row == "full" else 3
        trunk = 27 * 4 + 2 * (9 * 16 + 16)
        band = 16 + (9 * 16 + 16) + 3 * 4 * 2 + 3 * 2 * outputs
        beside = (2 + 4) * 2 + (1 + 2) if row == "full" else 0
        entrances = sum(9 * 3 * k * 3 + 9 * (3 * k + 3) * 4 for k in before)
        wanted = (trunk + entrances + 3 * (band + beside)) * (16 + 4) / 192
        assert multiply_adds(make_model(row, SMALL), 8) == pytest.approx(wanted)


@pytest.mark.parametrize("row", [name for name in ROWS if ROWS[name].like])
def test_widened_rows_have_as_many_multiply_adds(row):
    options = SMALL | {"width": 8}
    wanted, ours = (multiply_adds(make_model(r, options), 8) for r in (ROWS[row].like, row))
    assert wanted <= ours < 1.3 * wanted


@pytest.fixture
def folder(tmp_path):
    """A folder of small pictures."""
    for n in range(4):
        pixels = noise(16, 24, 3, seed=n).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    return tmp_path


def run(capsys, *argv):
    """Status, the table without its head, and stderr."""
    try:
        status = benchmark_ablation.main([str(a) for a in argv]) or 0
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out.splitlines()[1:], err


def test_table_is_kept_and_gone_on_with(folder, capsys, monkeypatch):
    argv = ("-target", folder, "-out", folder / "table.csv", *TINY, "-rows")
    names = ["full", "full-bands", "full+drfirst", "paper+couplings"]
    status, rows, _ = run(capsys, *argv, *names[:2])
    assert status == 0 and [row.split()[0] for row in rows] == names[:2]
    assert float(rows[1].split()[1]) - float(rows[0].split()[1]) == pytest.approx(
        float(rows[1].split()[2]), abs=2e-4
    )
    again = run(capsys, *argv, *names)[1]
    assert again[:2] == rows and [row.split()[0] for row in again] == names

    monkeypatch.setattr(benchmark_ablation, "train", lambda *_: pytest.fail("trained again"))
    assert run(capsys, *argv, *names)[1] == again
    monkeypatch.setattr(benchmark_ablation, "train", lambda *_: (1.0, [], 2.0))
    other = run(capsys, *argv, "full", "-seed", 1)[1]
    assert other[0].split()[1] == "1.0000"
    assert len((folder / "table.csv").read_text().splitlines()) == 1 + 5


def test_fresh_crops_of_a_plan_and_other_pictures(folder, capsys):
    target = f"{folder}*2+photos"
    (folder / "plan.json").write_text(json.dumps({"target": target, "crops": 9, "grey": 0.5, "flip": True}))
    argv = ("-config", folder / "plan.json", "-out", folder / "table.csv", *TINY, "-also", folder, folder)
    status, rows, errors = run(capsys, *argv, "-rows", "full", "full+muon")
    assert status == 0, errors
    first, second = ([float(cell) for cell in row.replace(",", "").split()[-2:]] for row in rows)
    assert first[0] == first[1] > 0 and first != second
    assert run(capsys, *argv, "-target", "photos")[0] == 2
    (folder / "plan.json").write_text('{"nonsense": 1}')
    assert "nonsense" in run(capsys, *argv)[2]


def test_same_seed_gives_the_same_figures(folder, capsys):
    rows = [
        run(capsys, "-target", folder, "-out", folder / name, *TINY, "-rows", "blind")[1] for name in "ab"
    ]
    assert rows[0][0].split()[:4] == rows[1][0].split()[:4]


@pytest.mark.parametrize(
    "argv, word", [(("-rows", "fool"), "fool"), (("-lr", 0), "lr"), (("-steps", 0), "steps")]
)
def test_one_line_for_what_users_get_wrong(argv, word, folder, capsys):
    status, _, errors = run(capsys, *argv, "-out", folder / "table.csv")
    assert status == 2 and word in errors and len(errors.splitlines()) == 1


def test_other_files_are_left_alone(folder, capsys):
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    status, _, errors = run(capsys, "-target", folder, "-out", folder / "notes.csv", *TINY)
    assert status == 2 and "notes.csv" in errors and (folder / "notes.csv").read_text() == "a,b\n1,2\n"
