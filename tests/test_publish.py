"""flow.publish: a model as those in the box are, from a training."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from flow import Codec
from flow.checkpoint import RECORD
from flow.folder import losses_file, open_model, options_file, saving
from flow.publish import main
from utils.box import BOX
from utils.data.images import PHOTOS
from utils.files import load_tensors, save_tensors, write_table


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training's folder with what is not to be published; its weights nearly etc/cifar's, in 32 bits."""
    folder = tmp_path_factory.mktemp("training")
    shutil.copytree(BOX / "cifar", folder, dirs_exist_ok=True)
    saving(folder, "best_test_frozen").unlink()
    tensors, state = load_tensors(saving(folder, "best_test"))
    tensors = {name: t.float() * (1 + 2**-13) for name, t in tensors.items()}
    save_tensors(saving(folder, "best_test"), tensors, state)
    (folder / "pic").mkdir()
    saving(folder, "latest").write_bytes(b"much")
    return folder


def test_wide_layers_are_kept_in_16_bits_and_code_as_before(training, tmp_path, capsys):
    to = tmp_path / "box"
    main([str(training), str(to)])
    assert capsys.readouterr().out.endswith(", new\n")
    given, wanted = (load_tensors(saving(folder, "best_test"))[0] for folder in (to, training))
    half = {name for name, tensor in given.items() if tensor.dtype == torch.float16}
    assert half and not any("enter." in name or "bias" in name for name in half)
    assert {n for n, t in wanted.items() if n.endswith("wide.weight")} <= half
    for name, tensor in given.items():
        torch.testing.assert_close(tensor.float(), wanted[name], rtol=2**-11, atol=1e-6)
    small, large = (saving(folder, "best_test").stat().st_size for folder in (to, training))
    assert small < 0.6 * large
    assert all(p.dtype == torch.float32 for p in open_model(to)[0].parameters())
    image = np.asarray(Image.open(PHOTOS / "roman-colosseum.png"))[:64, :64]
    before, after = (Codec(folder).bits([image])[0] for folder in (training, to))
    assert after == pytest.approx(before, rel=1e-3) and after != before


def test_losses_come_after_those_that_are_there_each_once(training, tmp_path, capsys):
    to, longer = tmp_path / "box", tmp_path / "longer"
    main([str(training), str(to)])
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
def test_what_is_there_stays_if_the_new_is_no_model(damage, training, tmp_path, capsys):
    to, bad = tmp_path / "box", tmp_path / "bad"
    main([str(training), str(to)])
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
