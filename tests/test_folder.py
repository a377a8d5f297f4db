"""The model folder: names, identities, and frozen weights that are made once, kept and checked."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import noise
from PIL import Image
from safetensors.torch import save
from test_band_models import SMALL, make_model

import easyEncode
from flow import Codec
from flow.codec.stream import encode
from flow.folder import (
    ENGINE,
    SAMPLE_SIDE,
    SAMPLES,
    default_folder,
    freeze,
    identity,
    open_frozen,
    open_model,
    read_options,
    sample,
    write_options,
)
from flow.model import build
from flow.options import ARCHITECTURE
from utils.files import load_tensors, save_tensors


def test_identity_counts_the_later_options_where_they_are_not_their_defaults():
    model = build({"hchnl": 4}).freeze()
    later = {name: ARCHITECTURE[name].default for name in ("prior", "width", "blocks", "components")}
    old = {"hchnl": 4, "repeat": 1, "size": 8}
    name = identity(model, old)
    assert identity(model, old | later) == name
    others = {
        identity(model, old | later | change)
        for change in ({"components": 4}, {"width": 5}, {"width": 6}, {"blocks": 0}, {"prior": "bands"})
    }
    assert len(others | {name}) == 6


def test_default_folder_names_later_options_where_they_are_not_their_defaults():
    options = {name: option.default for name, option in ARCHITECTURE.items()} | {"target": "photos"}
    old = (
        "default_easyMera_photos_repeat_1_hchnl_12_nhidden_1_nMixing_5_simplePrior_False_diffDetail_False"
        "_HUE_False_clamp_-1.0_heavy_False_lifting_none"
    )
    assert default_folder(options).name == old
    assert default_folder(options | {"prior": "bands"}).name == old + "_prior_bands"
    changed = options | {"components": 5, "prior": "bands", "blocks": 0}
    assert default_folder(changed).name == old + "_prior_bands_blocks_0_components_5"


WEIGHTS = Path("savings", "best_test.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A folder of a model without frozen weights."""
    options, model = SMALL | {"repeat": 0, "HUE": True}, make_model("no couplings HUE")
    write_options(tmp_path, options)
    tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
    save_tensors(tmp_path / WEIGHTS, tensors, {})
    return tmp_path


def streams(model, images):
    return [encoder.finish() for encoder in encode(model, images)]


def test_folder_of_a_model(folder):
    made, options, name = open_frozen(folder)
    again, _, _ = open_frozen(folder)  # from the frozen file
    x, model = noise(2, 3, 9, 10), make_model("no couplings HUE").freeze(sample(SAMPLE_SIDE))
    assert streams(made, x) == streams(again, x) == streams(model, x) and name == identity(again, options)
    _, state = load_tensors(folder / "savings" / "best_test_frozen.safetensors.xz")
    assert json.dumps(state).count(name) == 1 and state["engine"] == ENGINE


def test_integers_are_enough_to_code(folder, by_flow):
    picture = Image.fromarray(noise(9, 10, 3).byte().numpy())
    data = Codec(folder).compress(picture)
    (folder / WEIGHTS).unlink()
    alone = Codec(folder)
    assert alone.compress(picture) == data and alone.decompress(data).tobytes() == picture.tobytes()
    with pytest.raises(ValueError, match=r"savings: none of best_test\.safetensors, .* is there"):
        open_model(folder)
    path = folder / "savings" / "best_test_frozen.safetensors.xz"
    tensors, state = load_tensors(path)
    save_tensors(path, tensors, state | {"engine": ENGINE - 1})
    with pytest.raises(ValueError, match=r"of another version, and no best_test\.safetensors"):
        Codec(folder)


@pytest.mark.parametrize("checked", [True, False], ids=["with a checksum", "without"])
def test_damaged_weights_leave_the_integers_as_they_are(checked, folder, capsys):
    """A wrong bit makes other weights, as training on does; but it must not cost the integers."""
    path = folder / WEIGHTS
    if not checked:
        tensors, state = load_tensors(path)
        path.write_bytes(save(tensors, metadata={"state": json.dumps(state)}))
    frozen, whole = freeze(folder), path.read_bytes()
    made = frozen.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    with pytest.raises(SystemExit) as end:
        easyEncode.main(["-folder", str(folder), "-decode", "a.nwf"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and f"{path}: " in error and "damaged" in error
    assert frozen.read_bytes() == made
    path.unlink()
    assert freeze(folder) == frozen


def test_integers_of_another_engine_or_other_weights_are_made_anew(folder):
    path = freeze(folder)
    for key, value in (("engine", ENGINE - 1), ("weights", "0" * 64)):
        tensors, state = load_tensors(path)
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors["detail.level"] = tensors["detail.level"] + 1
        save_tensors(path, tensors, state | {key: value})
        _, _, name = open_frozen(folder)
        tensors, state = load_tensors(path)
        assert torch.equal(tensors["detail.level"], before["detail.level"])
        assert (state["engine"], state["identity"]) == (ENGINE, name)


def test_weights_that_are_a_folder_are_told_so(folder):
    path = folder / WEIGHTS
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="a folder, not weights"):
        open_model(folder)


def test_options_that_make_no_model_name_their_file(folder):
    write_options(folder, {"width": 32})
    with pytest.raises(ValueError, match=r"parameter\.json: -width is of -prior bands"):
        open_frozen(folder)


def test_weights_too_large_to_be_frozen_are_named(folder):
    path = folder / WEIGHTS
    tensors, state = load_tensors(path)
    save_tensors(path, {name: 1e9 * tensor for name, tensor in tensors.items()}, state)
    with pytest.raises(ValueError, match=r"best_test\.safetensors: these weights are too large to be frozen"):
        freeze(folder)


@pytest.mark.parametrize(
    "text",
    [
        *(
            '{"width": 1' + "0" * 30 + "}",
            '{"width": 1' + "0" * 5000 + "}",
            '{"repeat": 100000}',
            '{"hchnl": NaN}',
        ),
        *("[" * 100_000, '{"a": ' * 100_000 + "1" + "}" * 100_000, "[]", "\0", "", '{"repeat": [[]]}'),
    ],
    ids=range(10),
)
def test_options_that_make_no_sense_are_one_line(text, folder, capsys):
    (folder / "parameter.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        easyEncode.main(["-folder", str(folder), "-img", "a.png"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and f"{folder / 'parameter.json'}: " in error


def test_integers_are_stored_as_integers(folder):
    tensors, _ = load_tensors(freeze(folder))
    kinds = {tensor.dtype for tensor in tensors.values()}
    assert kinds == {torch.int8, torch.int16, torch.int32, torch.int64}


def forged(folder, change):
    """Change stored integers, with an identity that says so, as one who forges them would."""
    path = freeze(folder)
    tensors, state = load_tensors(path)
    change(tensors)
    model, options = build(SMALL | {"repeat": 0, "HUE": True}).freeze(), read_options(folder)
    model.load_state_dict(tensors)
    save_tensors(path, tensors, state | {"identity": identity(model, options)})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("detail.bands.0.out.1.exponent", -128, "a shift by more bits"),
        ("detail.bands.2.trunk.shift", 1, "the trunk each in its own units"),
        ("detail.bands.2.blocks.0.wide.shift", 100, "a shift by more bits"),
        ("detail.bands.1.hidden.bias", 2**24, "too large"),
        ("detail.bands.1.base.bias", -(2**60), "too large"),
        ("detail.enter.weight", 2**15 - 1, "too large"),
        ("detail.level", -(2**15), "a level's bias"),
        ("detail.bands.1.beside.0.shift", 1, "in other units"),
    ],
)
def test_forged_integers_are_refused(folder, name, value, message):
    forged(folder, lambda tensors: tensors[name].view(-1)[1].fill_(value))
    with pytest.raises(ValueError, match=message) as caught:
        open_frozen(folder)
    assert "\n" not in str(caught.value)


def test_stored_integers_of_another_shape_are_refused(folder):
    path = freeze(folder)
    tensors, state = load_tensors(path)
    tensors["detail.level"] = tensors["detail.level"][:1]
    save_tensors(path, tensors, state)
    with pytest.raises(ValueError, match="do not fit the options"):
        open_frozen(folder)


@pytest.fixture
def little_memory():
    """A gigabyte at most beside what is taken already."""
    resource = pytest.importorskip("resource")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="what is taken is read from /proc")
@pytest.mark.parametrize("open_it", [open_model, open_frozen])
def test_options_of_terabytes_are_refused_before_they_take_them(open_it, folder, little_memory):
    freeze(folder)
    large = {"repeat": 64, "hchnl": 2048, "nhidden": 32, "width": 2048, "blocks": 6, "ownLevels": 16}
    write_options(folder, SMALL | large)
    with pytest.raises(ValueError, match="best_test.*: its weights do not fit the options"):
        open_it(folder)


def test_images_to_observe_are_photographs_that_are_not_for_testing():
    images = sample(32)
    assert images.shape == (SAMPLES, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(images, sample(32)) and images.float().std() > 20
