"""Draw the low-pass and the high-pass image of a picture and their spectra, learned and LeGall 5/3.

    python legall_lena.py
    python legall_lena.py -folder opt/NAME -img FILE -deltaDepth 2
    python legall_lena.py -img target        a test image of the model's data set

Low-pass: the details of the finest -deltaDepth levels replaced by the prior's means (LeGall: by 0).
High-pass: what those details, less the means, add to an even grey in place of the coarse band.
Spectra: log(|FFT| + 1) of the mean of red, green and blue under a Hann window, without which the jumps from
one border to the other would be in them. The networks compute in floating point, as in training.
"""

import utils.interrupt  # noqa: F401

# isort: split
from utils.options import CUDA, FIGURE, FOLDER, PICTURE, Option, parse, refuse, script

OPTIONS = (
    FOLDER
    | {name: option._replace(help=option.help + "; target: a test image") for name, option in PICTURE.items()}
    | {
        "deltaDepth": Option(1, "finest levels whose details are taken away", least=1),
        "data": Option(None, "folder of the data sets (default: the one the model was trained with)"),
    }
    | FIGURE
    | CUDA
)


@script
def main(argv=None):
    """Draw the images and their spectra."""
    options, typed = parse(__doc__, OPTIONS, argv)
    refuse(typed, ["data"] if options["img"] != "target" else [], "without -img target")
    from flow.figures.spectra import write_figures  # takes seconds, which -h does not have to wait for

    write_figures(options)


if __name__ == "__main__":
    main()
