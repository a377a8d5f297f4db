"""The model folder: what training leaves and all other scripts read.

parameter.json                     every option, resolved, and the side of patches
savings/latest.safetensors         weights, optimiser and progress: what -load goes on from
savings/epoch_N.safetensors        the same, periodic, the last few
savings/best_test.safetensors      the weights with the lowest test loss, in part in 8 bits where a model was
                                   published; best_train likewise
savings/..._frozen.safetensors.xz  the same in integers, which the codec uses; packed, enough to decode
records/losses.csv                 bits per dimension of every epoch
records/bands.csv                  of which so many for each band of the test images; level 0 is the finest
records/board/                     the losses for TensorBoard, with -board
pic/                               lossCurve.png; samples.png and a test image's pyramid.png, at periodic
                                   savings; what the plotting scripts draw
"""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident

from torch.nn.modules.module import register_module_parameter_registration_hook

from flow.checkpoint import Progress
from flow.model import build
from flow.options import ARCHITECTURE
from utils.box import BOX, ROOT
from utils.data.datasets import load, split_target
from utils.files import (
    PACKED,
    contents,
    has_checksum,
    load_state,
    load_tensors,
    remove_unfinished,
    save_tensors,
    write_text,
)
from utils.options import DATA_FOLDER, SCALES, SIDE, Option, check_values, naming

# The architecture options that names and identities always hold, in this order; those that came later count
# only where they are not at their defaults, so that older models keep their identities.
PAPER = (
    *("repeat", "hchnl", "nhidden", "nMixing", "simplePrior"),
    *("diffDetail", "HUE", "clamp", "heavy", "lifting"),
)
# What frozen models compute is another thing with another number: their integers are made anew.
ENGINE = 2
# The images on which the ranges of activations are observed: their number and side.
SAMPLES, SAMPLE_SIDE = 16, 128
# What names of weights in integers end with.
FROZEN = "_frozen"
WEIGHTS = "best_test", "best_train", "latest"
RESUMABLE = "latest", "best_test", "best_train"
STORED = (
    ARCHITECTURE
    | DATA_FOLDER
    | {
        "target": Option(None, "data set of the training"),
        "size": SIDE._replace(help="side of all images of the training; none: they differ"),
        "patch": SIDE._replace(default=32),
        "scales": SCALES,
    }
)


def options_file(folder):
    """The file of all options; a folder that has it holds a model."""
    return Path(folder) / "parameter.json"


def savings(folder):
    """The folder of everything that holds weights."""
    return Path(folder) / "savings"


def saving(folder, name):
    """The file of the weights with a name: latest, best_test, best_train, or what epoch_name gives.

    Of those in integers, all that a decoder needs, it is packed: two of five of their bits say nothing.
    """
    return savings(folder) / f"{name}.safetensors{PACKED if name.endswith(FROZEN) else ''}"


def epoch_name(epoch):
    """The name of a periodic saving."""
    return f"epoch_{epoch:05d}"


def savings_of_epochs(folder):
    """The files of the periodic savings, oldest first."""
    return sorted(savings(folder).glob("epoch_*.safetensors"))


def losses_file(folder):
    """The table of the losses of every epoch."""
    return Path(folder) / "records" / "losses.csv"


def bands_file(folder):
    """The table of the test losses of every epoch by band."""
    return losses_file(folder).with_name("bands.csv")


def board_folder(folder):
    """What TensorBoard reads."""
    return losses_file(folder).with_name("board")


def pictures(folder):
    """The folder of what is drawn of a model."""
    return Path(folder) / "pic"


def loss_curve_file(folder):
    """The picture of the table of losses."""
    return pictures(folder) / "lossCurve.png"


def remove_unfinished_files(folder):
    """Remove what a training that was killed while it wrote has left."""
    for part in (folder, savings(folder), losses_file(folder).parent, pictures(folder)):
        remove_unfinished(part)


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
        if options_file(path).exists():
            return path
    raise ValueError("no model yet: give -folder, or train one with `make demo`")


def picture_folder(out, folder):
    """Where pictures of a model go: -out, or pic/ in its folder; output/NAME/ for a model in the box."""
    if out is not None:
        return Path(out)
    folder = Path(folder)
    return Path("output") / folder.name if folder.resolve().parent == BOX else pictures(folder)


def write_options(folder, options):
    """Write parameter.json."""
    write_text(options_file(folder), json.dumps(options, indent=1) + "\n")


def read_options(folder):
    """Read parameter.json; where old ones lack them, `patch`, the side of patches, is `size`, and `scales` 1.

    Raises ValueError if there is none, or none that makes sense.
    """
    path = options_file(folder)
    try:
        options = read_table(path)
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a model folder (it has no parameter.json)") from None
    check_values(options, STORED, path)
    return {"patch": options.get("size") or 32, "scales": 1} | options


def read_table(path):
    """Read a JSON object. Raises FileNotFoundError, and ValueError for a file that holds anything else."""
    try:
        table = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: not a table of options")
    return table


def find_saving(folder, names):
    """The first saving with one of these names that is there. Raises ValueError if none is."""
    paths = [saving(folder, name) for name in names]
    for path in paths:
        if path.exists():
            return path
    raise ValueError(f"{savings(folder)}: none of {', '.join(path.name for path in paths)} is there")


def _names(weights):
    """The names of the weights asked for, the first that is there to be taken."""
    return WEIGHTS if weights is None else (weights,)


def _weights_and_frozen(folder, weights):
    """The files of weights, and of these in integers, of which either may not be there."""
    names = _names(weights)
    path = find_saving(folder, (*names, *(name + FROZEN for name in names)))
    name = path.name.partition(".")[0].removesuffix(FROZEN)
    return saving(folder, name), saving(folder, name + FROZEN)


def open_model(folder, weights=None, device="cpu"):
    """The trained model of a folder, and its options.

    weights: best_test, best_train or latest; None: the first of them that is there.
    Raises ValueError if the folder holds no such model.
    """
    options, path = read_options(folder), find_saving(folder, _names(weights))
    tensors, _ = load_tensors(path)
    part = "average." if any(n.startswith("average.") for n in tensors) else "model."
    weights = {n.removeprefix(part): t for n, t in tensors.items() if n.startswith(part)}
    if not all(tensor.is_floating_point() for tensor in weights.values()):
        raise _unfit(path)
    with naming(options_file(folder)), _no_larger(weights, path):
        model = build(options)
    _fill(model, weights, path)
    return model.eval().to(device), options


@contextmanager
def _no_larger(tensors, path):
    """Within: a model of more weights than tensors have values is refused as soon as it has them.

    A few options may ask for terabytes.
    """
    left, thread = sum(t.numel() for t in tensors.values()), get_ident()

    def count(module, name, parameter):
        nonlocal left
        again = getattr(module, name, None) is parameter  # as after `self.weight *= 2`
        if get_ident() == thread and not again:
            left -= parameter.numel()
            if left < 0:
                raise _unfit(path)

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _fill(model, tensors, path):
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise _unfit(path) from None
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: its weights are not finite")


def _unfit(path):
    return ValueError(f"{path}: its weights do not fit the options in parameter.json")


def identity(model, options):
    """A SHA-256, in hex, over the integers of a frozen model and the options that shape it."""
    shape = [ENGINE, *(options.get(name) for name in (*PAPER, "size"))]
    shape += [[name, options[name]] for name in _later(options)]
    digest = hashlib.sha256(json.dumps(shape).encode())
    for part in contents(model.state_dict()):
        digest.update(part)
    return digest.hexdigest()


def freeze(folder, weights=None):
    """Write weights in integers beside them, unless theirs are there; returns the path.

    Integers of other weights are made anew, as the weights were trained on; but not by weights that are
    damaged, or may be: those of earlier versions have no checksum.
    Raises ValueError for such weights, or if they are too large to be frozen.
    """
    path, frozen = _weights_and_frozen(folder, weights)
    state = load_state(frozen) if frozen.exists() else {}
    if not path.exists():
        if state.get("engine") != ENGINE:
            raise ValueError(f"{frozen}: of another version, and no {path.name} to make it anew")
        return frozen
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    if (state.get("engine"), state.get("weights")) != (ENGINE, source):
        if state.get("weights", source) != source and not has_checksum(path):
            raise ValueError(
                f"{path}: damaged, or trained since {frozen.name} was made of it; no checksum tells: "
                "remove one of the two"
            )
        model, options = open_model(folder, path.stem)
        with naming(path):
            model = model.freeze(sample(options["patch"] if options.get("diffDetail") else SAMPLE_SIDE))
        state = {"engine": ENGINE, "identity": identity(model, options), "weights": source}
        save_tensors(frozen, model.state_dict(), state)
    return frozen


def stored_identity(folder):
    """The identity of the integers in a folder as their file has it, not checked; "" if they are not there.

    Raises ValueError if the folder has no weights either, or a damaged file.
    """
    _, path = _weights_and_frozen(folder, None)
    return str(load_state(path).get("identity", "")) if path.exists() else ""


def sample(side):
    """Patches of the photographs in the box that are not for testing: (SAMPLES, 3, side, side), uint8."""
    (patches,) = load("photos", "train", size=side, progress=False)
    return patches[:: max(len(patches) // SAMPLES, 1)][:SAMPLES]


def open_frozen(folder, weights=None, device="cpu"):
    """The frozen model of a folder, made now if it is not there yet, its options and its identity (hex).

    Raises ValueError if there is none, or if its integers are not those that it was stored with.
    """
    options, path = read_options(folder), freeze(folder, weights)
    tensors, state = load_tensors(path)
    with naming(options_file(folder)), _no_larger(tensors, path):  # each weight is one of the integers
        model = build(options).freeze()
    _fill(model, tensors, path)
    with naming(path):
        for part in model.modules():
            if hasattr(part, "check"):
                part.check()
    name = identity(model, options)
    if name != state.get("identity"):
        raise ValueError(f"{path}: damaged: its integers are not those that it was stored with")
    return model.to(device), options, name


def trained(folder, weights=None):
    """What a caption says of the weights: "CIFAR, 11 of 12 epochs, 4.023 bits per dimension"."""
    options, path = read_options(folder), find_saving(folder, _names(weights))
    progress = Progress.of(load_state(path), path)
    words = [target_name(options.get("target", "unknown images"))]
    words.append(f"{progress.epoch} of {options.get('epoch', '?')} epochs")
    if progress.history:
        words.append(f"{progress.history[-1]['test_bpd']:.3f} bits per dimension")
    return ", ".join(words)
