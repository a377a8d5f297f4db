"""Generate images: an N x N grid of samples, or of what the prior makes of real coarse bands.

    python easyGenerate.py -folder opt/NAME                        8 x 8 samples at the training's size
    python easyGenerate.py -folder opt/NAME -baseScale -1          calmer: logscales of the details less 1
    python easyGenerate.py -folder opt/NAME -from coarse -depth 2  test images, their two finest levels anew

The top is drawn from its mixture, then each level's details from the prior: means (-mean), or sampled with
-baseScale added to their logscales. Colours are as they come, clipped to 0..255. Writes the grid as a figure,
the grid as a PNG of whole pixels, and the samples as .npz.
"""

import utils.interrupt  # noqa: F401

# isort: split
from utils.options import BASE_SCALE, CUDA, DATA_FOLDER, FIGURE, FOLDER, SIDE, Option, parse, refuse, script

OPTIONS = FOLDER | DATA_FOLDER | {
    "num": Option(8, "rows and columns of the grid", least=1, most=1000),
    "baseScale": BASE_SCALE,
    "mean": Option(False, "the means of the details, in place of samples"),
    "size": SIDE._replace(help="side of the images (default: as in training, or 32)"),
    "from": Option("prior", "prior: draw all; coarse: keep test images' coarse bands", ("prior", "coarse")),
    "depth": Option(2, "with -from coarse: finest levels to generate", least=0),
    "target": Option("photos", "with -from coarse: data set or folder of the test images"),
} | FIGURE | CUDA  # fmt: skip


@script
def main(argv=None):
    """Draw the images."""
    options, typed = parse(__doc__, OPTIONS, argv)
    refuse(typed, ["baseScale"] if options["mean"] else [], "beside -mean")
    refuse(typed, ["depth", "target", "data"] if options["from"] == "prior" else [], "without -from coarse")
    from flow.figures.samples import write_figures  # takes seconds, which -h does not have to wait for

    write_figures(options)


if __name__ == "__main__":
    main()
