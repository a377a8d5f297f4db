"""Load images progressively, and enlarge them.

    python progressive.py -folder opt/NAME                  test images of -target
    python progressive.py -folder opt/NAME -img FILE...     pictures, or .nwf files from their first bytes
    python progressive.py -folder opt/NAME -measure 100     PSNR and SSIM of super-resolution, in a table
    python progressive.py -num 3 -size 128 -jpg             the picture in the README

Progressive loading: for every k, the coarse band that is left without the finest k levels, and the image that
the prior completes it to; with the bytes that the codec needs so far, and PSNR beside that of the coarse
band interpolated. Super-resolution by 2^exdepth: from the image's own coarse band, beside interpolation of
that band, whose samples are at their true places; averaged: the mean of 16 samples. Enlarged: the image
itself, taken for a coarse band. Details not read are the prior's means, or samples with -baseScale
(-exBaseScale) added to their logscales (.nwf files: always means).
"""

import utils.interrupt  # noqa: F401

# isort: split
from utils.options import BASE_SCALE, CUDA, DATA_FOLDER, FIGURE, FOLDER, SIDE, Option, parse, refuse, script

SAMPLED = BASE_SCALE._replace(
    default=None, kind=float, help="samples of details in place of means, so much added to their logscales"
)
OPTIONS = FOLDER | DATA_FOLDER | {
    "num": Option(4, "test images to draw", least=1),
    "target": Option("photos", "data set or folder of the test images"),
    "size": SIDE._replace(help=f"{SIDE.help} (default: as in training, or 32)"),
    "img": Option(None, "pictures or .nwf files in place of test images", many=True),
    "baseScale": SAMPLED,
    "exBaseScale": SAMPLED._replace(help=f"{SAMPLED.help}, in super-resolution"),
    "exdepth": Option(2, "super-resolution by 2^exdepth; 0: none", least=0, most=10),
    "exsize": Option(
        128, "super-resolution is of the middle of an image, at most so many pixels a side",
        least=1, most=8192,
    ),
    "measure": Option(
        None, "measure super-resolution on so many test images, in place of all else", kind=int, least=1
    ),
} | FIGURE | CUDA  # fmt: skip
MEASURED_WITHOUT = "num", "img", "baseScale", "exBaseScale", "exdepth", "exsize", "show", "jpg"


@script
def main(argv=None):
    """Load progressively and enlarge, or measure."""
    options, typed = parse(__doc__, OPTIONS, argv)
    if "measure" in typed:
        refuse(typed, MEASURED_WITHOUT, "beside -measure")
    refuse(typed, ["num", "target", "size", "data"] if "img" in typed else [], "beside -img")
    refuse(typed, ["exsize", "exBaseScale"] if options["exdepth"] == 0 else [], "beside -exdepth 0")
    from flow.figures.loading import write_figures  # takes seconds, which -h does not have to wait for

    write_figures(options)


if __name__ == "__main__":
    main()
