"""Draw the wavelet pyramid of a picture, learned beside LeGall 5/3 and Haar, and measure its bands.

    python simpleBigWavelet.py
    python simpleBigWavelet.py -folder opt/NAME -img FILE -depth 3
    python simpleBigWavelet.py -jpg             the picture in the README

Coarse band top left, as it is; right of it the details across (ur), below it those down (dl), in the corner
both (dr). The transform is the codec's, and nothing but the transform is compared. A band's energy is its
variance; its bits per coefficient are the entropy of its histogram, channel by channel. All three transforms
preserve volume, so that both compare. A line apart: what remains of learned details less the prior's means,
for which the classical ones have no counterpart. And PSNR of coarse bands, as pictures, against linear low
passes of the picture.
"""

import utils.interrupt  # noqa: F401

# isort: split
from utils.options import CUDA, FIGURE, FOLDER, PICTURE, Option, parse, script

OPTIONS = FOLDER | PICTURE | {"depth": Option(2, "levels of the pyramid", least=1)} | FIGURE | CUDA


@script
def main(argv=None):
    """Draw the pyramids and measure their bands."""
    options, _ = parse(__doc__, OPTIONS, argv)
    from flow.figures.pyramids import write_figures  # takes seconds, which -h does not have to wait for

    write_figures(options)


if __name__ == "__main__":
    main()
