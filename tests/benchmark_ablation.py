"""What each part of a model is worth: bits per dimension, size and time, beside the paper's.

    python tests/benchmark_ablation.py                                  all rows, on the photographs
    python tests/benchmark_ablation.py -target CIFAR -threads 1         on another data set
    python tests/benchmark_ablation.py -rows full full-bands            some of the rows
    python tests/benchmark_ablation.py -config etc/model/plan.json -also PATH/TO/KODAK      on fresh crops

Every row is a model trained from the same seed for as many steps on the same images in the same order, by
Adam with a cosine rate, and measured on the same test images. With -config, training crops are drawn as that
plan says, its target's test part is measured, and -also pictures in folders are, their middle 256x256. Rows:
    paper   the paper's prior on the lazy wavelet; +couplings: the method as published; +wide: that with as
            many multiply-adds as full
    blind   the band-wise prior without any of the parts below; +PART: with this one alone
    full    with all of them; -PART: without this one; +couplings: behind couplings; +wide: without couplings,
            but widened to as many multiply-adds; +drfirst: the diagonal band first; +own: the finest level
            has networks of its own; +five: mixtures of two components more; +muon: by Muon, half the rate;
            +differences: networks see pixels less what the coarse band interpolates to
    paper+ycocg and full with +haar, +legall: behind that wavelet, fixed; +learnedhaar, +learnedlegall:
            lifting that starts so, free to leave it. Rows and columns at once: +joint, LeGall's, fixed;
            +linear, +luma, +wavelet: -lifting so, which start as that; +linear2: -repeat 2; +cubic: 9/7-F,
            which predicts by cubics, fixed; +fourstep: CDF 9/7, fixed
Parts, and what stands in their place:
    bands     sight of the detail bands before; the coarse band alone
    channels  sight of the channels before, in the same band; none
    mixtures  several logistic components; one
    compand   logarithmic inputs and errors; linear ones of about the same range
    levels    a bias for each of the finest levels; one for all
    scales    means counted in scales; in steps
    ycocg     YCoCg-R; red, green and blue
What a row is blind to is left out of its networks, so that nothing multiplies zeros. Multiply-adds are those
of convolutions, at all levels, for each value of an image. "change" is against the row before the first sign.
Of the transform alone: bits a coefficient of three levels, each band under its own histogram, and the low
pass's amplitude at pi over that at 0 (FIR.py), which are 1 without a transform.
Finished rows are kept in -out, with their settings, and not trained again: delete it when models change.
"""

import csv
import math
import re
import sys
import tempfile
from bisect import bisect_left
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from easymain import read_plan  # noqa: E402
from flow.analysis import entropy, filter_figures  # noqa: E402
from flow.figures.loading import middle  # noqa: E402
from flow.figures.responses import PLACES, patches  # noqa: E402
from flow.lifting import JointLevel, Lift  # noqa: E402
from flow.model import build  # noqa: E402
from flow.options import ARCHITECTURE, TRAINING  # noqa: E402
from flow.pyramid import Pyramid  # noqa: E402
from flow.training import Trainer  # noqa: E402
from source.bands import LEVELS, START_OCTAVES, Band, BandPrior, Mixer  # noqa: E402
from source.distribution import Mixture  # noqa: E402
from source.networks import Joined  # noqa: E402
from source.prior import LevelPriors  # noqa: E402
from utils.arithmetic.integers import STEPS  # noqa: E402
from utils.arithmetic.polyphase import depth  # noqa: E402
from utils.data.crops import Pictures  # noqa: E402
from utils.data.datasets import choose_sides, draw, load  # noqa: E402
from utils.data.images import image_files, read_rgb  # noqa: E402
from utils.files import write_table  # noqa: E402
from utils.options import CUDA, DATA_FOLDER, SEED, SIDE, Option, parse, pick_device, refuse, script  # noqa: E402
from utils.workers import Stop, Workers  # noqa: E402

# What makes a figure, and stands beside it in the table.
SETTINGS = {
    "target": Option("photos", "photos, CIFAR, ImageNet32, ImageNet64, or a folder of image files"),
    "config": Option(None, "a plan of easymain.py: -target and the rest of its data, in fresh crops"),
    "also": Option(None, "folders of pictures to be measured too", many=True),
    "amp": TRAINING["amp"],
    "size": SIDE._replace(default=32),
    "steps": Option(800, "training steps of each model", least=1, most=10**6),
    "batch": Option(24, "images a step", least=1, most=10**6),
    "lr": Option(0.004, "Adam's learning rate", above=0),
    "count": Option(256, "test images", least=1),
    "seed": SEED._replace(help="seed of the initial weights and of all that is drawn"),
    "width": ARCHITECTURE["width"]._replace(default=32, help="channels of the hidden layers"),
    "blocks": ARCHITECTURE["blocks"]._replace(help="residual blocks of each band's network"),
    "components": ARCHITECTURE["components"]._replace(help="logistic components of a mixture"),
    "hchnl": ARCHITECTURE["hchnl"]._replace(
        default=16, help="channels of couplings before the band-wise prior"
    ),
}
OPTIONS = SETTINGS | CUDA | DATA_FOLDER | {
    "rows": Option(None, "these rows only", many=True),
    "out": Option("output/ablation.csv", "table of finished rows"),
    "threads": Option(torch.get_num_threads(), "threads to compute with", least=1, most=1024),
}  # fmt: skip
FIGURES = ("bits", "parameters", "multiply_adds", "seconds", "coefficient_bits", "low_ratio", "bits_also")
KEY = ("row", *SETTINGS)
WIDTH = 24
# A value 255 away from the middle comes out as 8, as companded.
PLAIN = 2.0**-5
# The side of what is measured of a picture.
MIDDLE_SIDE = 256

PARTS = "bands", "channels", "mixtures", "compand", "levels", "scales", "ycocg"


class Row(NamedTuple):
    """How a row's model is built.

    parts: those it has; bands: whether its prior is band-wise, or the paper's; wavelet: its transform, one of
    WAVELETS; order: of the bands; like: the row that it is widened to, in multiply-adds; repeat: pairs of
    steps of lifting; taps: fixed filters of both directions; own: levels with networks of their own;
    more: components more than of other rows; muon: the optimiser; differences: as of BandPrior.
    """

    parts: frozenset = frozenset()
    bands: bool = True
    couplings: bool = False
    wavelet: str | None = None
    order: tuple = (0, 1, 2)
    like: str | None = None
    repeat: int = 1
    taps: tuple = ()
    own: int = 0
    more: int = 0
    muon: bool = False
    differences: bool = False


ALL, COLOUR = frozenset(PARTS), frozenset({"ycocg"})
# A name of rows to -lifting, and whether it stays as it starts.
WAVELETS = {
    "haar": ("haar", True),
    "legall": ("legall", True),
    "joint": ("linear", True),
    "learnedhaar": ("haar", False),
    "learnedlegall": ("legall", False),
    "linear": ("linear", False),
    "luma": ("luma", False),
    "wavelet": ("wavelet", False),
}
# Predictions and updates in turn, of 9/7-F by Deslauriers and Dubuc's cubics and of CDF 9/7.
TAPS = {
    "cubic": ((0, -1 / 16, 9 / 16, 9 / 16, -1 / 16), (1 / 4, 1 / 4, 0)),
    "fourstep": (
        *((0, 1.586134342, 1.586134342), (-0.052980118, -0.052980118, 0)),
        *((0, -0.882911076, -0.882911076), (0.443506852, 0.443506852, 0)),
    ),
}
ROWS = {
    "paper": Row(bands=False),
    "paper+ycocg": Row(COLOUR, bands=False),
    "paper+couplings": Row(bands=False, couplings=True),
    "paper+couplings+ycocg": Row(COLOUR, bands=False, couplings=True),
    "paper+couplings+ycocg+wide": Row(COLOUR, bands=False, couplings=True, like="full"),
    "blind": Row(),
    **{f"blind+{part}": Row(frozenset({part})) for part in PARTS},
    "full": Row(ALL),
    **{f"full-{part}": Row(ALL - {part}) for part in PARTS},
    "full+drfirst": Row(ALL, order=(2, 0, 1)),
    "full+couplings": Row(ALL, couplings=True),
    "full+wide": Row(ALL, like="full+couplings"),
    **{f"paper+ycocg+{name}": Row(COLOUR, bands=False, wavelet=name) for name in WAVELETS},
    **{f"full+{name}": Row(ALL, wavelet=name) for name in WAVELETS},
    "full+linear2": Row(ALL, wavelet="linear", repeat=2),
    "full+linear+drfirst": Row(ALL, wavelet="linear", order=(2, 0, 1)),
    "full+linear+muon": Row(ALL, wavelet="linear", muon=True),
    **{f"full+{name}": Row(ALL, wavelet="linear", taps=taps) for name, taps in TAPS.items()},
    "full+own": Row(ALL, own=1),
    "full+five": Row(ALL, more=2),
    "full+muon": Row(ALL, muon=True),
    "full+differences": Row(ALL, differences=True),
    "full+muon+differences": Row(ALL, muon=True, differences=True),
    "full+linear+muon+differences": Row(ALL, wavelet="linear", muon=True, differences=True),
    "full+luma+muon+differences": Row(ALL, wavelet="luma", muon=True, differences=True),
    "full+muon+own+five": Row(ALL, muon=True, own=1, more=2),
    "full+linear+muon+own+five": Row(ALL, wavelet="linear", muon=True, own=1, more=2),
}


class Plain(nn.Module):
    """In place of Compand: linear, of about the same range."""

    def forward(self, u):
        return PLAIN * u


class PlainMixer(Mixer):
    """A Mixer whose means are base + m steps, times the scale that scales start from."""

    def forward(self, outputs, base):
        logits, mean, octaves = self.fields(outputs.to(base.dtype))
        mean = base + mean * 2**START_OCTAVES
        return Mixture(logits * math.log(2), mean / STEPS, (octaves - math.log2(STEPS)) * math.log(2))


class Nothing(nn.Module):
    """In place of a convolution whose output is added: adds nothing."""

    def forward(self, u):
        return 0.0


class PartialBand(Band):
    """A Band with only some of PARTS."""

    def __init__(self, parts, index, before, width, blocks, components, **starting):
        super().__init__(index, before if "bands" in parts else 1, width, blocks, components, **starting)
        if "channels" not in parts:
            self.beside, self.linear = (
                nn.ModuleList(Nothing() for _ in convolutions) for convolutions in (self.beside, self.linear)
            )
        if "compand" not in parts:
            self.compand = Plain()
        if "scales" not in parts:
            self.mixer = PlainMixer(components)

    def features(self, trunk, planes):
        return super().features(trunk, planes[:, : self.base.in_channels])


class PartialPrior(BandPrior):
    """A BandPrior with only some of PARTS."""

    def __init__(self, parts, width, blocks, components, order=(0, 1, 2), **starting):
        components = components if "mixtures" in parts else 1
        super().__init__(width, blocks, components, order, **starting)
        self.bands = nn.ModuleList(
            PartialBand(parts, index, k + 1, width, blocks, components, **starting)
            for k, index in enumerate(order)
        )
        if "compand" not in parts:
            self.compand = Plain()
        if "levels" not in parts:
            del self.level
            self.register_buffer("level", torch.zeros(LEVELS, width, 1, 1))


def make_model(name, options):
    """The untrained model of a row."""
    row, width = ROWS[name], options["width"]

    def cost(width):
        return multiply_adds(_model(row, width, options), options["size"])

    if row.like:
        wanted = multiply_adds(make_model(row.like, options), options["size"])
        width = bisect_left(range(8 * width), wanted, width, key=cost)
    return _model(row, width, options)


def _model(row, width, options):
    torch.manual_seed(options["seed"])
    transform = row.couplings or row.wavelet is not None
    architecture = {"repeat": row.repeat if transform else 0, "HUE": "ycocg" in row.parts}
    lifting, fixed = WAVELETS.get(row.wavelet, ("none", False))
    architecture |= {"lifting": lifting}
    if row.bands:
        # a prior that costs nothing, until the right one replaces it
        model = build(architecture | {"hchnl": options["hchnl"], "prior": "simple"})
        starting = {"details": model.pyramid.level(0).details, "differences": row.differences}
        parts = width, options["blocks"], options["components"] + row.more, row.order
        priors = [PartialPrior(row.parts, *parts, **starting) for _ in range(1 + row.own)]
        model.detail = LevelPriors(priors) if row.own else priors[0]
    else:
        model = build(architecture | {"hchnl": width, "prior": "paper"})
    if row.taps:
        model.pyramid = Pyramid([JointLevel(Lift(taps, 0) for taps in row.taps)]).requires_grad_(False)
    elif fixed:
        for lift in (m for m in model.pyramid.modules() if isinstance(m, Lift)):
            lift.network = None
        model.pyramid.requires_grad_(False)
    return model


@torch.no_grad()
def multiply_adds(model, size):
    """Multiply-adds of all convolutions for each of the 3 size^2 values of an image."""
    total = 0

    def convolution(module, inputs, output):
        nonlocal total
        several = isinstance(module, Joined)
        for layer, y in zip(module, output) if several else [(module, output)]:
            total += layer.weight.numel() * y.shape[-2] * y.shape[-1]

    kinds = nn.Conv2d, Joined
    hooks = [m.register_forward_hook(convolution) for m in model.modules() if isinstance(m, kinds)]
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=model.device)
    model(images)
    for hook in hooks:
        hook.remove()
    return total / images.numel()


@torch.no_grad()
def coefficient_bits(model, images, levels=3):
    """Bits per coefficient of the transform alone, each band under its own histogram."""
    top, details = model.transform(images, min(levels, depth(*images.shape[-2:])))
    bands = [top, *(band for detail in details for band in detail)]
    return sum(entropy(band) * band.numel() for band in bands) / sum(band.numel() for band in bands)


def low_ratio(model):
    """The low pass's amplitude at pi over that at 0, of luma or red, across."""
    images = model.from_images(patches(4, seed=0).to(model.device))
    return filter_figures(model.pyramid.level(0), images, PLACES[3:5])["across", "columns"]["low_ratio"]


class Data(NamedTuple):
    """What rows are trained on and measured by.

    train: uint8 (N, 3, S, S), as many as all steps take, or Pictures; test: uint8 (N, 3, S, S); also: the
    pictures of each folder, uint8 (1, 3, H, W); plan: options of a training that say how crops are drawn.
    """

    train: torch.Tensor | Pictures
    test: torch.Tensor
    also: list
    plan: dict


def open_data(options):
    """The Data of a run."""
    folders = options["also"] or ()
    also = [[middle(read_rgb(path), MIDDLE_SIDE)[None] for path in image_files(f)] for f in folders]
    if options["config"]:
        plan = read_plan(options["config"])
        drawn = {name: plan[name] for name in ("grey", "origins", "flip", "transpose") if name in plan}
        drawn["crops"] = options["steps"] * options["batch"]
        side, scales = options["size"], plan.get("scales", 1)
        reading = dict(data=options["data"], size=side, workers=2, scales=scales)
        train, sets = Pictures(plan["target"], **reading), load(plan["target"], "test", **reading)
        images = torch.cat([part[..., :side, :side] for part in sets])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(options["seed"]))
        return Data(train, images[order[: options["count"]]], also, drawn)
    images, *others = load(options["target"], "train", options["data"], options["size"])
    if others:
        raise ValueError(f"-target {options['target']}: need images of one size")
    needed, generator = options["steps"] * options["batch"], torch.Generator().manual_seed(options["seed"])
    turns = -(-needed // len(images))
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(turns)])
    chosen = {name: options[name] for name in ("target", "data", "size", "seed")}
    return Data(images[order[:needed]], draw(options["count"], **chosen), also, {})


def train(model, row, data, options):
    """Train for one epoch. Returns bits per dimension of the test images, those of -also, and seconds."""
    training = {name: option.default for name, option in TRAINING.items()} | data.plan
    training |= {name: options[name] for name in ("batch", "lr", "seed", "amp")}
    training |= {"epoch": 1, "optimizer": "adam", "lrSchedule": "cosine", "clipNorm": 1.0, "ema": 0.0}
    if row.muon:
        training |= {"optimizer": "muon", "lr": options["lr"] / 2}
    device, images = pick_device(options["cuda"]), data.train
    images = images if isinstance(images, Pictures) else [images]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, images, [data.test], training, folder, device, Workers())
        try:
            trainer.run_epoch(Stop(), show=True)
            bits, also = trainer.evaluate()[0], []
            for pictures in data.also:
                trainer.test = pictures
                also.append(trainer.evaluate()[0])
            return bits, also, trainer.state.progress.seconds
        except FloatingPointError:
            return math.nan, [math.nan] * len(data.also), trainer.state.progress.seconds


def read_rows(path):
    """The finished rows in a file: a dict from what makes each of them to the row, all as text."""
    if not Path(path).exists():
        return {}
    with Path(path).open(newline="") as file:
        table = csv.DictReader(file)
        rows = list(table)
        if tuple(table.fieldnames or ()) != (*KEY, *FIGURES):
            raise ValueError(f"{path}: not a table of this script")
    return {tuple(row[name] for name in KEY): row for row in rows}


def show(row, shown):
    """Print a row of the table; shown: bits by row, of those before it."""
    name, bits = row["row"], float(row["bits"])
    beside = re.split("[+-]", name)[0]
    change = f"{bits - shown[beside]:+.4f}" if beside in shown else ""
    shown[name] = bits
    cells = f"{bits:.4f}", change, f"{int(row['parameters']):,}", f"{float(row['multiply_adds']):,.0f}"
    cells += tuple(f"{float(row[name]):.{digits}f}" for name, digits in zip(FIGURES[3:], (0, 3, 3)))
    line = "".join(f"{cell:>13}" for cell in (*cells, *row["bits_also"].split()))
    tqdm.write(f"{name:{WIDTH + 3}}{line}")
    sys.stdout.flush()


@script
def main(argv=None):
    """Train the rows that are not in the table yet, and print it."""
    options, typed = parse(__doc__, OPTIONS, argv)
    names = list(dict.fromkeys(options["rows"] or ROWS))
    for name in names:
        if name not in ROWS:
            raise ValueError(f"-rows {name}: need some of {', '.join(ROWS)}")
    if options["config"]:
        refuse(typed, ("target",), "with -config")
    options["size"] = choose_sides(options["target"], typed.get("size"))[0]
    torch.set_num_threads(options["threads"])
    torch.set_float32_matmul_precision("high")
    done, device, data, shown = read_rows(options["out"]), pick_device(options["cuda"]), None, {}
    columns = "bits/dim", "change", "parameters", "mul-adds/val", "train s", "bits/coeff.", "low, pi/0"
    columns += tuple(Path(folder).name[-12:] for folder in options["also"] or ())
    tqdm.write(f"{'':{WIDTH + 3}}" + "".join(f"{column:>13}" for column in columns))
    bar = tqdm(names, unit="row", disable=len(names) < 2 or None, leave=False)
    for name in bar:
        bar.set_description(name)
        row = {"row": name} | {setting: str(options[setting]) for setting in SETTINGS}
        key = tuple(row.values())
        if key not in done:
            data = data or open_data(options)
            model = make_model(name, options).to(device)
            cost = multiply_adds(model, options["size"])
            size = sum(p.numel() for p in model.parameters())
            bits, also, seconds = train(model, ROWS[name], data, options)
            figures = f"{bits:.6f}", size, f"{cost:.1f}", f"{seconds:.2f}"
            figures += f"{coefficient_bits(model, data.test.to(device)):.4f}", f"{low_ratio(model):.4f}"
            figures += (" ".join(f"{b:.4f}" for b in also),)
            done[key] = row | dict(zip(FIGURES, figures))
            write_table(options["out"], (*KEY, *FIGURES), done.values())
        show(done[key], shown)


if __name__ == "__main__":
    main()
