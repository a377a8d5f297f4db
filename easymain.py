"""Train a neural wavelet flow by exact likelihood.

    python easymain.py                                          the photographs in etc/photos, on the CPU
    python easymain.py -cuda 0 -epoch 600 -hchnl 350 -repeat 3 -nhidden 3 -target ImageNet32 -paper
    python easymain.py -config etc/wavelet/plan.json -folder opt/NAME    as a file of options plans it
    python easymain.py -folder opt/NAME -load -epoch 800        go on with a training
    python easymain.py -folder opt/NAME -start etc/model -config etc/model/plan.json    from a model's weights
    torchrun --nproc-per-node 4 easymain.py -cuda 0 -target CIFAR    four GPUs, from the first

Writes a model folder that all other scripts read: see flow/folder.py.
"""

import utils.interrupt  # noqa: F401

# isort: split
import sys
from contextlib import nullcontext

from flow.options import ARCHITECTURE, PAPER_TRAINING, TRAINING
from utils.options import (
    CUDA,
    DATA_FOLDER,
    SCALES,
    SIDE,
    Option,
    check_values,
    grouped,
    naming,
    parse,
    pick_device,
    refuse,
    script,
)

DATA = DATA_FOLDER | {
    "target": Option(
        "photos",
        "photos, CIFAR, ImageNet32, ImageNet64, joint, or a folder of image files; + joins several; with "
        "-crops, NAME*N is drawn from N times as often",
    ),
    "size": SIDE._replace(help=f"{SIDE.help} (default: that of sets joined to them, or 32)"),
    "scales": SCALES,
    "workers": Option(2, "threads that decode image files", least=0, most=256),
}
FOLDER = {
    "config": Option(
        None, "JSON file of options, under those that are typed: a plan such as etc/wavelet/plan.json"
    ),
    "folder": Option(None, "model folder (default: opt/default_easyMera_TARGET and the architecture)"),
    "start": Option(
        None,
        "model folder whose weights to begin with; this model may have other -ownLevels, more -components, "
        "wider and deeper networks of -prior bands, -differences, and -lifting where the other has -repeat 0",
    ),
    "load": Option(False, "go on with the training in the folder; architecture and data set are its own"),
}
PAPER = {
    "paper": Option(
        False,
        "train as the paper does, where options do not say otherwise: "
        + " ".join(f"-{name} {value}" for name, value in PAPER_TRAINING.items()),
    )
}
OPTIONS = (
    grouped("data set", DATA) | grouped("architecture", ARCHITECTURE)
    | grouped("training", TRAINING | PAPER) | grouped("model folder", FOLDER) | CUDA
)  # fmt: skip
CROPS_ALONE, PATCHES_ALONE = ("transpose", "grey", "origins"), ("shift",)
OF_NETWORKS = "hchnl", "nhidden"
STEPS_OF_EPOCH = "batch", "crops"
MAY_CHANGE = {"data", "workers", "cuda"} | TRAINING.keys() - {"ema", "seed", "optimizer"}


def read_plan(path):
    """The options in a JSON file. Raises ValueError for what is no option, or has no such value."""
    from flow.folder import read_table

    try:
        plan = read_table(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    for name in plan.keys() - (OPTIONS.keys() - {"config"}):
        raise ValueError(f"{path}: {name} is no option of this script")
    check_values(plan, {name: OPTIONS[name] for name in plan}, path)
    return plan


def has_networks(options):
    """Whether a model has networks that OF_NETWORKS shape, in its prior or its transform."""
    if options["prior"] == "paper" and not options["simplePrior"]:
        return True
    return options["lifting"] not in ("linear", "luma") and options["repeat"] > 0


def resolve(argv):
    """The options of a training: typed, over -config's, over the folder's (-load), over the defaults.

    Also its folder, whether it goes on, and the folder whose weights it begins with, or None.
    """
    options, typed = parse(__doc__, OPTIONS, argv)
    # from here on it takes seconds, which -h does not have to wait for
    from flow.board import writer_class
    from flow.folder import default_folder, options_file, read_options
    from utils.data.datasets import choose_sides

    by_hand = typed
    if config := options.pop("config"):
        del typed["config"]
        typed = read_plan(config) | typed
        options |= typed
    if options.pop("paper"):
        typed = PAPER_TRAINING | {name: value for name, value in typed.items() if name != "paper"}
        options |= typed
    folder = options.pop("folder") or default_folder(options)
    resume, start = options.pop("load"), options.pop("start")
    refuse(typed, ("start",) if resume else (), "with -load")
    if resume:
        saved = PAPER_TRAINING | read_options(folder)
        check_values(saved, DATA | TRAINING, options_file(folder))
        for name in typed.keys() - MAY_CHANGE - {"folder", "load"}:
            value = saved["patch"] if name == "size" else saved.get(name, OPTIONS[name].default)
            if typed[name] != value:
                raise ValueError(f"-{name} {typed[name]}: the model in {folder} has {value}")
        options |= saved | {name: typed[name] for name in typed.keys() & MAY_CHANGE}
    elif options_file(folder).exists():
        raise ValueError(f"{folder} holds a model: -load goes on with it, -folder names another place")
    elif not has_networks(options):  # plans may have them: they are part of what a model is called
        refuse(by_hand, OF_NETWORKS, "without couplings, lifting with networks or -prior paper")
    asked = {name for name in typed if options.get(name)}
    refuse(asked, CROPS_ALONE if not options["crops"] else (), "without -crops")
    refuse(asked, PATCHES_ALONE if options["crops"] else (), "with -crops")
    if options["shift"] and options["diffDetail"]:
        raise ValueError("-shift: a model with -diffDetail knows one size only")
    if options["board"]:
        try:
            writer_class()
        except ValueError:
            if "board" in typed:
                raise
            options["board"] = False  # so a folder may go on where there is none; from then on, unless typed
    if options["prior"] == "simple":  # one model, one name
        options |= {"prior": "paper", "simplePrior": True}
    sides = choose_sides(options["target"], typed.get("size"))
    if not resume:
        options["patch"], options["size"] = sides
    return options, folder, resume, start


def refuse_in_mid_epoch(options, before, progress):
    """Raise ValueError if options change what the steps of an epoch are of which some are done."""
    for name in STEPS_OF_EPOCH if progress.step else ():
        begun, epoch = (PAPER_TRAINING | before).get(name, OPTIONS[name].default), progress.epoch + 1
        if options[name] != begun:
            raise ValueError(
                f"-{name} {options[name]}: epoch {epoch} has begun with {begun}; "
                f"give it when that is done, at which -load -epoch {epoch} stops"
            )


@script
def main(argv=None):
    """Train, and leave the model folder."""
    options, folder, resume, start = resolve(argv)
    import torch

    from flow.folder import (
        RESUMABLE,
        find_saving,
        freeze,
        open_model,
        options_file,
        read_options,
        remove_unfinished_files,
        saving,
        write_options,
    )
    from flow.model import build
    from flow.start import inherit
    from flow.training import Trainer
    from utils.data.crops import Pictures
    from utils.data.datasets import load
    from utils.workers import Workers, keep_memory

    keep_memory()
    workers = Workers()
    device = pick_device(options["cuda"])
    torch.manual_seed(options["seed"])
    torch.set_float32_matmul_precision("high")
    with naming(options_file(folder)) if resume else nullcontext():
        model = build(options)
    if start is not None:
        inherit(model, open_model(start)[0])
    reading = {name: options[name] for name in ("data", "workers", "scales")} | {"size": options["patch"]}
    with workers.joined(device):
        with workers.leader_first():
            if options["crops"]:
                train = Pictures(options["target"], **reading)
            else:
                train = load(options["target"], "train", **reading)
            test = load(options["target"], "test", **reading)
        trainer = Trainer(model, train, test, options, folder, device, workers)
        if not workers.rank:
            remove_unfinished_files(folder)
        before = read_options(folder) if resume else options
        if resume:
            trainer.state.load(find_saving(folder, RESUMABLE))
            refuse_in_mid_epoch(options, before, trainer.state.progress)
        if not workers.rank:
            for name, value in options.items():
                if before.get(name, value) != value:
                    print(f"-{name} {value}, was {before[name]}")
            # in this order: a folder with options has what -load goes on from
            trainer.save()
            write_options(folder, options)
            count = len(train) if options["crops"] else sum(map(len, train))
            parameters = sum(p.numel() for p in model.parameters())
            print(f"{folder}: {parameters:,} parameters, {count:,} images of {options['target']}")
            step, weights = (size / 2**20 for size in trainer.memory())
            each = " in each process" if workers.count > 1 else ""
            parts = f"{step:,.0f} for a step, {weights:,.0f} for weights, gradients and averages of them"
            if not resume and options["optimizer"] != PAPER_TRAINING["optimizer"]:
                how = f"by {options['optimizer']}, {options['batch']} images a step"
                print(f"{how}; -paper trains as the paper does")
            print(f"about {step + weights:,.0f} MiB of memory{each} beside the data: {parts}")
        finished = trainer.run()
    if workers.rank:
        return
    for weights in ("best_train", "best_test"):
        if saving(folder, weights).exists():
            try:
                freeze(folder, weights)
            except ValueError as error:
                print(f"the codec cannot use {weights}: {error}", file=sys.stderr)
    progress = trainer.state.progress
    if not finished:
        print(f"stopped in epoch {progress.epoch + 1} and saved: go on with -folder {folder} -load")
        sys.exit(130)
    best = f"best test {progress.best_test:.4f} bits per dimension"
    print(f"{folder}: trained for {progress.epoch} epochs, {best}")


if __name__ == "__main__":
    main()
