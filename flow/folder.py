"""The model folder: what training leaves and all other scripts read.

parameter.json                 every option, resolved, and the side of patches
savings/latest.safetensors     weights, optimiser and progress: what -load goes on from
savings/epoch_N.safetensors    the same, periodic, the last few
savings/best_test.safetensors  the weights with the lowest test loss; best_train likewise
savings/..._frozen.safetensors their fixed-point forms, which the codec uses
records/losses.csv             bits per dimension of every epoch
pic/                           lossCurve.png, and what the plotting scripts draw
"""

import hashlib
import json
from pathlib import Path

import torch

from flow.model import ARCHITECTURE, build
from utils.box import BOX, ROOT
from utils.data.datasets import split_target
from utils.files import load_tensors, save_tensors, write_text
from utils.options import Option, check_types

# The architecture options that names and identities always hold, in this order; those that came later count
# only where they are not at their defaults, so that older models keep their identities.
PAPER = (
    *("repeat", "hchnl", "nhidden", "nMixing", "simplePrior"),
    *("diffDetail", "HUE", "clamp", "heavy", "lifting"),
)
WEIGHTS = ("best_test", "best_train", "latest")


def _later(options):
    """The names of the architecture options after PAPER that are not at their defaults."""
    later = ((name, option.default) for name, option in ARCHITECTURE.items() if name not in PAPER)
    return [name for name, default in later if options.get(name, default) != default]


def default_folder(options):
    """opt/default_easyMera_TARGET_..., with the options of PAPER and what differs of the later ones.

    Source: method 5.
    """
    target = target_name(options["target"])
    names = "_".join(f"{name}_{options[name]}" for name in (*PAPER, *_later(options)))
    return Path("opt") / f"default_easyMera_{target}_{names}"


def target_name(target):
    """A target's name in names of files and captions: folders without what leads to them, joined by "+"."""
    return "+".join(Path(name).name for name in split_target(target))


def find_folder(folder=None, box="model"):
    """The model folder to use: the one given, or that in the box, etc/BOX, or what `make demo` trained."""
    if folder is not None:
        return Path(folder)
    for path in (BOX / box, ROOT / "opt" / "demo"):
        if (path / "parameter.json").exists():
            return path
    raise ValueError("no model yet: give -folder, or train one with `make demo`")


def picture_folder(out, folder):
    """Where pictures of a model go: -out, or pic/ in its folder; output/NAME/ for a model in the box."""
    if out is not None:
        return Path(out)
    folder = Path(folder)
    return Path("output") / folder.name if folder.resolve().parent == BOX else folder / "pic"


def write_options(folder, options):
    """Write parameter.json."""
    write_text(Path(folder) / "parameter.json", json.dumps(options, indent=1) + "\n")


def read_options(folder):
    """Read parameter.json; `patch`, the side of patches, is `size` where old ones do not have it.

    Raises ValueError if there is none, or none that makes sense.
    """
    path = Path(folder) / "parameter.json"
    try:
        options = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a model folder (it has no parameter.json)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path}: not a table of options")
    check_types(options, ARCHITECTURE | {"patch": Option(32, "side of the patches")}, path)
    if type(options.get("size")) not in (int, type(None)):
        raise ValueError(f"{path}: size is {options['size']!r}, need int or null")
    return {"patch": options.get("size") or 32} | options


def _weights_path(folder, weights):
    """The .safetensors file of the weights asked for, or the first of WEIGHTS that is there."""
    savings = Path(folder) / "savings"
    names = WEIGHTS if weights is None else (weights,)
    for name in names:
        path = savings / f"{name}.safetensors"
        if path.exists():
            return path
    raise ValueError(f"{savings}: none of {', '.join(f'{n}.safetensors' for n in names)} is there")


def open_model(folder, weights=None, device="cpu"):
    """The trained model of a folder, and its options.

    weights: best_test, best_train or latest; None: the first of them that is there.
    Raises ValueError if the folder holds no such model.
    """
    options, path = read_options(folder), _weights_path(folder, weights)
    tensors, _ = load_tensors(path)
    part = "average." if any(n.startswith("average.") for n in tensors) else "model."
    model = build(options)
    _fill(model, {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}, path)
    return model.eval().to(device), options


def _fill(model, tensors, path):
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise ValueError(f"{path}: its weights do not fit the options in parameter.json") from None


def identity(model, options):
    """A SHA-256, in hex, over the integers of a frozen model and the options that shape it."""
    shape = [options.get(name) for name in (*PAPER, "size")]
    shape += [[name, options[name]] for name in _later(options)]
    digest = hashlib.sha256(json.dumps(shape).encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.contiguous().cpu().numpy()
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def freeze(folder, weights=None):
    """Write the fixed-point form of weights beside them, unless theirs is there; returns its path.

    Raises ValueError if the weights are too large to be frozen.
    """
    path = _weights_path(folder, weights)
    frozen = path.with_name(f"{path.stem}_frozen.safetensors")
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    if not frozen.exists() or load_tensors(frozen)[1].get("weights") != source:
        model, options = open_model(folder, path.stem)
        model = model.freeze()
        save_tensors(frozen, model.state_dict(), {"identity": identity(model, options), "weights": source})
    return frozen


def open_frozen(folder, weights=None, device="cpu"):
    """The frozen model of a folder, made now if it is not there yet, its options and its identity (hex).

    Raises ValueError if there is none, or if its integers are not those that it was stored with.
    """
    options, path = read_options(folder), freeze(folder, weights)
    tensors, state = load_tensors(path)
    model = build(options).freeze()
    _fill(model, tensors, path)
    for part in model.modules():
        if hasattr(part, "check"):
            part.check()
    # what is not checked above: whole numbers, and the taps of lifting
    if not all(torch.equal(p * 2**16, torch.round(p * 2**16)) for p in model.parameters()):
        raise ValueError(f"{path}: damaged: its numbers are not in fixed point")
    name = identity(model, options)
    if name != state.get("identity"):
        raise ValueError(f"{path}: damaged: its integers are not those that it was stored with")
    return model.to(device), options, name


def trained(folder, weights=None):
    """What a caption says of the weights: "CIFAR, 11 of 12 epochs, 4.023 bits per dimension"."""
    options, path = read_options(folder), _weights_path(folder, weights)
    _, state = load_tensors(path)
    words = [target_name(options.get("target", "unknown images"))]
    words.append(f"{state.get('epoch', 0)} of {options.get('epoch', '?')} epochs")
    if state.get("history"):
        words.append(f"{state['history'][-1]['test_bpd']:.3f} bits per dimension")
    return ", ".join(words)
