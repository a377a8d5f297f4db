"""Draw the test bits per dimension of several trainings over the images that they have seen, or over hours.

    python tests/benchmark_curve.py -folder opt/A opt/B -names "paper's prior" bands -out etc
    python tests/benchmark_curve.py -folder etc/model -hours -title "photographs" -out etc

The folders are of trainings on one data set, whose images are counted. Writes curve.png and
curve.csv, or hours.png and hours.csv. Horizontal lines: JPEG XL and the like on the same test images, given
as NAME=BITS by -lines.
"""

import csv
import sys
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from flow.folder import losses_file, read_options  # noqa: E402
from utils.data.datasets import load  # noqa: E402
from utils.options import Option, parse, script  # noqa: E402
from utils.show.plots import plt, save_figure, save_rows  # noqa: E402

OPTIONS = {
    "folder": Option(None, "model folders", many=True),
    "names": Option(None, "a name for each of them in the legend (default: the folders' names)", many=True),
    "hours": Option(False, "over the hours that they took, in place of images"),
    "title": Option(None, "title (default: the name of the data set)"),
    "lines": Option(None, "horizontal lines, NAME=BITS", many=True),
    "data": Option("data", "folder of the data sets"),
    "out": Option("output", "folder of the figure"),
}


def read_curve(folder, images=None):
    """(images seen, test bits per dimension) of every epoch of a training; ValueError without a record.

    images: those of an epoch; None: hours that it took to get there, in place of images seen.
    """
    path = losses_file(folder)
    try:
        with path.open() as file:
            rows = list(csv.DictReader(file))
        if not rows:
            raise ValueError("no epochs")
        hours = accumulate(float(row["seconds"]) / 3600 for row in rows)
        seen = (int(row["epoch"]) * images for row in rows) if images else hours
        return list(zip(seen, [float(row["test_bpd"]) for row in rows]))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not the record of a training ({error})") from None


def images_of_an_epoch(options):
    """How many images an epoch of a training has, given its options."""
    if options.get("crops"):
        return options["crops"]
    sets = load(
        options["target"], "train", options["data"], options["patch"], scales=options.get("scales", 1)
    )
    return sum(map(len, sets))


def read_lines(lines):
    """NAME=BITS -> (name, bits). Raises ValueError for anything else."""
    pairs = [line.rpartition("=") for line in lines or ()]
    try:
        return [(name, float(bits)) for name, _, bits in pairs]
    except ValueError:
        raise ValueError(f"-lines {' '.join(lines)}: need NAME=BITS") from None


@script
def main(argv=None):
    """Read the records, draw and save."""
    options, _ = parse(__doc__, OPTIONS, argv)
    folders = options["folder"] or []
    names = options["names"] or [Path(folder).name for folder in folders]
    if not folders or len(names) != len(folders):
        raise ValueError("need -folder, and as many -names as folders if any")
    lines, trained = read_lines(options["lines"]), [read_options(folder) for folder in folders]
    targets = {(o["target"], o["patch"], o.get("scales", 1)) for o in trained}
    if len(targets) > 1:
        raise ValueError(f"trained on {', '.join(sorted(map(str, targets)))}: need one data set")
    first = trained[0] | {"data": options["data"]}
    images = None if options["hours"] else images_of_an_epoch(first)
    curves = [read_curve(folder, images) for folder in folders]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, curve in zip(names, curves):
        seen, bits = zip(*curve)
        axes.plot(seen, bits, marker=".", label=f"{name}: {bits[-1]:.3f}")
    for name, bits in lines:
        axes.axhline(bits, color="grey", linestyle="--", linewidth=1)
        axes.annotate(
            f"{name} {bits:.2f}", (1, bits), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    # the first epochs of slow ones would press the rest together
    last = max(curve[-1][1] for curve in curves)
    axes.set_ylim(top=last + 3 * (last - min(min(bits for _, bits in curve) for curve in curves)) + 0.2)
    kind, label = ("hours", "hours of training") if options["hours"] else ("images", "images seen")
    axes.set(xlabel=label, ylabel="bits per dimension, test images", xlim=(0, None))
    axes.set_title(options["title"] or f"{first['target']}, test images")
    axes.grid(alpha=0.3)
    axes.legend()
    rows = [
        {"name": name, kind: seen, "test_bpd": bits} for name, c in zip(names, curves) for seen, bits in c
    ]
    name = "hours" if options["hours"] else "curve"
    save_rows(options["out"], name, rows)
    save_figure(figure, options["out"], name)


if __name__ == "__main__":
    main()
