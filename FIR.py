"""Draw the frequency responses of a learned wavelet's filters beside LeGall 5/3, CDF 9/7 and Haar.

    python FIR.py
    python FIR.py -folder opt/NAME -step 0.001 -num 56

One level of the transform. It is not linear: the Jacobian of a row of [ul | ur] holds, row by row, impulse
responses at one picture and place; ul's are low-pass, ur's high-pass. Their |H(e^iw)| are averaged over
patches of the photographs in etc/photos and over places; so are those down, of a column of [ul / dl]. Two
figures, and their amplitudes at 0 and pi in a table:
    FIR_row       the pixels of the coefficients' own row are varied, as in the paper; a separable wavelet's
                  response is then multiplied by its vertical filter's central tap
    FIR_columns   whole columns are varied: the response to waves across, of vertical frequency 0
Both are of the first channel that the wavelet sees: red, or the luma Y of a model with -HUE. The slope of a
rounding is taken as 1, as in training.
"""

import utils.interrupt  # noqa: F401

# isort: split
import math

from utils.options import CUDA, FIGURE, FOLDER, Option, parse, script

OPTIONS = (
    FOLDER
    | {
        "step": Option(0.001, "step between frequencies, in radians per pixel", least=1e-5, most=math.pi),
        "num": Option(28, "patches of photographs", least=1, most=10_000),
    }
    | FIGURE
    | CUDA
)


@script
def main(argv=None):
    """Draw the frequency responses."""
    options, _ = parse(__doc__, OPTIONS, argv)
    from flow.figures.responses import write_figures  # takes seconds, which -h does not have to wait for

    write_figures(options)


if __name__ == "__main__":
    main()
