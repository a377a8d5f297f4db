"""flow.publish: a model as those in the box are, from a training."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flow import Codec
from flow.checkpoint import RECORD
from flow.folder import STORED, losses_file, open_model, options_file, saving, write_options
from flow.model import build
from flow.publish import main
from utils.box import BOX
from utils.data.images import PHOTOS
from utils.files import load_state, load_tensors, save_tensors, write_table


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training's folder with what is not to be published; its weights nearly etc/cifar's, in 32 bits."""
    folder = tmp_path_factory.mktemp("training")
    shutil.copytree(BOX / "cifar", folder, dirs_exist_ok=True)
    saving(folder, "best_test_frozen").unlink()
    tensors = {f"model.{name}": w.detach() for name, w in open_model(BOX / "cifar")[0].named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for name in [
        name for name in tensors if name.endswith("wide.weight")
    ]:  # anywhere between those of 8 bits
        noise = torch.rand(tensors[name].shape, generator=generator) - 0.5
        tensors[name] = tensors[name] + noise * tensors[name].abs().amax((1, 2, 3), keepdim=True) / 127
    state = load_state(saving(folder, "best_test"))
    save_tensors(saving(folder, "best_test"), tensors, state)
    (folder / "pic").mkdir()
    saving(folder, "latest").write_bytes(b"much")
    return folder


@pytest.fixture(scope="module")
def published(training, tmp_path_factory):
    """What is published of it."""
    to = tmp_path_factory.mktemp("published") / "box"
    main([str(training), str(to)])
    return to


def test_wide_layers_are_kept_in_8_bits_and_code_as_before(training, published):
    kept = load_file(saving(published, "best_test"))
    whole = {name for name, tensor in kept.items() if tensor.dtype == torch.int8}
    assert not any("enter." in name or "bias" in name for name in whole)
    given, wanted = (load_tensors(saving(folder, "best_test"))[0] for folder in (published, training))
    assert {n for n, t in wanted.items() if n.endswith("wide.weight")} <= whole
    for name, tensor in wanted.items():
        most = tensor.abs().amax((1, 2, 3), keepdim=True) / 253 if name in whole else 0
        assert torch.all((given[name] - tensor).abs() <= most), name
    small, large = (saving(folder, "best_test").stat().st_size for folder in (published, training))
    assert small < 0.3 * large
    assert all(p.dtype == torch.float32 for p in open_model(published)[0].parameters())
    image = np.asarray(Image.open(PHOTOS / "roman-colosseum.png"))[:64, :64]
    before, after = (Codec(folder).bits([image])[0] for folder in (training, published))
    assert after == pytest.approx(before, rel=1e-3) and after != before


def test_what_was_published_is_published_again_as_it_is(published, tmp_path, capsys):
    main([str(published), str(tmp_path / "again")])
    assert capsys.readouterr().out.endswith(", new\n")
    one, two = (saving(folder, "best_test").read_bytes() for folder in (published, tmp_path / "again"))
    assert one == two


@pytest.mark.parametrize(
    ("options", "in_bytes", "halved"),
    [
        (
            {"hchnl": 64, "nhidden": 1},
            (),
            ("detail.mean.hidden.0", "pyramid.levels.0.networks.2.hidden.0"),
        ),
        (
            {"prior": "bands", "lifting": "luma", "HUE": True},
            ("detail.trunk.0.last", "detail.bands.0.trunk", "detail.bands.2.blocks.0.wide"),
            (),
        ),
        (
            {"prior": "bands", "width": 96, "ownLevels": 1, "hchnl": 64, "lifting": "wavelet"},
            ("detail.levels.0.trunk.1.wide", "detail.levels.1.bands.1.hidden.2"),
            ("pyramid.levels.0.networks.0.hidden.0",),
        ),
    ],
)
def test_which_weights_are_rounded(options, in_bytes, halved, tmp_path):
    model = build(options)
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    save_tensors(saving(tmp_path, "best_test"), tensors, {"epoch": 1})
    write_options(tmp_path, {name: option.default for name, option in STORED.items()} | options)
    write_table(losses_file(tmp_path), RECORD, [])
    main([str(tmp_path), str(tmp_path / "to")])
    kept = load_file(saving(tmp_path / "to", "best_test"))
    types = {name: kept[f"model.{name}.weight"].dtype for name in (*in_bytes, *halved)}
    assert types == dict.fromkeys(in_bytes, torch.int8) | dict.fromkeys(halved, torch.float16)
    others = [name for name, tensor in kept.items() if tensor.dtype == torch.float32]
    assert all(tensors[name].numel() < 4096 or "enter." in name for name in others if name in tensors)


def test_losses_come_after_those_that_are_there_each_once(training, published, tmp_path, capsys):
    to, longer = shutil.copytree(published, tmp_path / "box"), tmp_path / "longer"
    rows = list(csv.DictReader(losses_file(training).open()))
    assert list(csv.DictReader(losses_file(to).open())) == rows
    # the last two epochs, which are there already, and one more
    shutil.copytree(training, longer)
    more = [*rows[-2:], rows[0]]
    write_table(losses_file(longer), RECORD, [row | {"epoch": n} for n, row in enumerate(more, 1)])
    for _ in range(2):
        main([str(longer), str(to)])
    wanted = [*rows, rows[0] | {"epoch": str(len(rows) + 1)}]
    assert list(csv.DictReader(losses_file(to).open())) == wanted
    assert options_file(to).read_text() == options_file(training).read_text()
    assert sorted(p.name for p in to.iterdir()) == ["parameter.json", "records", "savings"]
    assert sorted(p.name for p in (to / "savings").iterdir()) == [
        "best_test.safetensors",
        "best_test_frozen.safetensors.xz",
    ]
    assert capsys.readouterr().out.endswith(", anew\n")


def test_a_folder_without_a_model_is_refused_and_nothing_written(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "none"), str(tmp_path / "box")])
    assert ended.value.code == 2 and "not a model folder" in capsys.readouterr().err
    assert not (tmp_path / "box").exists()


@pytest.mark.parametrize("damage", ["nan", "lacks", "losses"])
def test_what_is_there_stays_if_the_new_is_no_model(damage, training, published, tmp_path, capsys):
    to, bad = shutil.copytree(published, tmp_path / "box"), tmp_path / "bad"
    files = {path: path.read_bytes() for path in to.rglob("*") if path.is_file()}
    shutil.copytree(training, bad)
    tensors, state = load_tensors(saving(bad, "best_test"))
    name = next(name for name in tensors if name.endswith("wide.weight"))
    if damage == "nan":
        tensors[name] = tensors[name] * torch.nan
    elif damage == "lacks":
        del tensors[name]
    else:
        losses_file(bad).write_bytes(bytes(range(256)))
    save_tensors(saving(bad, "best_test"), tensors, state)
    for folder in (to, tmp_path / "new"):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(bad), str(folder)])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1 and str(bad) in error
    assert {path: path.read_bytes() for path in to.rglob("*") if path.is_file()} == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "box"]


@pytest.mark.parametrize("words", [[], ["one"], ["one", "two", "-three"]])
def test_what_is_typed_wrong_is_told_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1
