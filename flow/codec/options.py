"""The options of what codes: tables alone, which are read before anything that takes seconds to import."""

from source.units import MAX_PRECISION, MIN_PRECISION
from utils.options import CUDA, DATA_FOLDER, FOLDER, SCALES, SIDE, Option, grouped

MODEL = grouped(
    "model",
    FOLDER
    | {
        "best": Option(False, "the weights with the lowest training loss"),
        "valbest": Option(False, "the weights with the lowest test loss: the default, where there are any"),
    }
    | CUDA,
)
PRECISION = grouped(
    "coder",
    {
        "precision": Option(
            24, "probabilities are integers out of 2^precision", least=MIN_PRECISION, most=MAX_PRECISION
        )
    },
)
CODER = grouped(
    "coder",
    {
        "nbins": Option(
            4096, "integers around the mean that need no escape", least=2, most=1 << MAX_PRECISION - 1
        )
    },
)
EFFORT = Option(
    5,
    "1, fastest, to 9, smallest: how much to adapt to each picture; above 6 up to about a minute a megapixel",
    least=1,
    most=9,
)
DATA_SET = grouped(
    "data set",
    DATA_FOLDER
    | {
        "target": Option(None, "data set as in easymain.py (default: that of the training)"),
        "size": SIDE._replace(help=f"{SIDE.help} (default: the training's, or else as there)"),
        "scales": SCALES._replace(
            default=None, help=f"{SCALES.help} (default: the training's, or else 1)", kind=int
        ),
        "batch": Option(10, "images coded together", least=1, most=10**6),
        "earlyStop": Option(
            None, "stop after so many batches (default: -1, the whole test set)", kind=int, least=1, absent=-1
        ),
    },
)
TEST_SET = MODEL | DATA_SET | PRECISION


def weights_of(options):
    """The weights that -best or -valbest ask for, as flow.folder names them; None: the best there are."""
    if options["best"] and options["valbest"]:
        raise ValueError("-best and -valbest: need one of them at most")
    return "best_train" if options["best"] else "best_test" if options["valbest"] else None
