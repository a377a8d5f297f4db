"""The model folder: names, identities, and frozen weights that are made once, kept and checked."""

import json

from conftest import noise
from test_band_models import SMALL, make_model

from flow.codec.stream import encode
from flow.folder import default_folder, identity, open_frozen, write_options
from flow.model import ARCHITECTURE, build
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


def test_folder_of_a_model(tmp_path):
    options = SMALL | {"repeat": 0, "HUE": True}
    model = make_model("no couplings HUE")
    write_options(tmp_path, options)
    tensors = {f"model.{name}": p for name, p in model.state_dict().items()}
    save_tensors(tmp_path / "savings" / "best_test.safetensors", tensors, {})
    made, _, name = open_frozen(tmp_path)
    again, _, _ = open_frozen(tmp_path)  # from the frozen file
    x = noise(2, 3, 9, 10)
    streams = [[encoder.finish() for encoder in encode(m, x)] for m in (made, again, model.freeze())]
    assert streams[0] == streams[1] == streams[2] and name == identity(again, options)
    _, state = load_tensors(tmp_path / "savings" / "best_test_frozen.safetensors")
    assert json.dumps(state).count(name) == 1
