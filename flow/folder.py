"""The model folder: what training leaves and all other scripts read.

parameter.json                 every option, resolved
savings/latest.safetensors     weights, optimiser and progress: what -load goes on from
savings/epoch_N.safetensors    the same, periodic, the last few
savings/best_test.safetensors  the weights with the lowest test loss; best_train likewise
records/losses.csv             bits per dimension of every epoch
pic/                           lossCurve.png, and what the plotting scripts draw
"""

import json
from pathlib import Path

from flow.model import ARCHITECTURE, build
from utils.files import load_tensors, write_text

WEIGHTS = ("best_test", "best_train", "latest")


def default_folder(options):
    """opt/default_easyMera_TARGET_..., with every architecture option. Source: method 5."""
    target = Path(options["target"]).name
    names = "_".join(f"{name}_{options[name]}" for name in ARCHITECTURE)
    return Path("opt") / f"default_easyMera_{target}_{names}"


def write_options(folder, options):
    """Write parameter.json."""
    write_text(Path(folder) / "parameter.json", json.dumps(options, indent=1) + "\n")


def read_options(folder):
    """Read parameter.json. Raises ValueError if there is none, or none that makes sense."""
    path = Path(folder) / "parameter.json"
    try:
        options = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a model folder (it has no parameter.json)") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(options, dict):
        raise ValueError(f"{path}: not a table of options")
    for name, option in ARCHITECTURE.items():
        value, kind = options.get(name, option.default), type(option.default)
        if not (type(value) is kind or (kind is float and type(value) is int)):
            raise ValueError(f"{path}: {name} is {value!r}, need {kind.__name__}")
    return options


def open_model(folder, weights=None, device="cpu"):
    """The trained model of a folder, and its options.

    weights: best_test, best_train or latest; None: the first of them that is there.
    Raises ValueError if the folder holds no such model.
    """
    options, savings = read_options(folder), Path(folder) / "savings"
    names = WEIGHTS if weights is None else (weights,)
    path = next((p for p in (savings / f"{n}.safetensors" for n in names) if p.exists()), None)
    if path is None:
        raise ValueError(f"{savings}: none of {', '.join(f'{n}.safetensors' for n in names)} is there")
    tensors, _ = load_tensors(path)
    part = "average." if any(n.startswith("average.") for n in tensors) else "model."
    model = build(options)
    try:
        model.load_state_dict({n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)})
    except RuntimeError:
        raise ValueError(f"{path}: its weights do not fit the options in parameter.json") from None
    return model.eval().to(device), options
