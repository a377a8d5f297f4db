"""Encode pictures with a trained flow, bit for bit, or a data set, and report bits per dimension.

    python easyEncode.py -img FILE_OR_FOLDER... -out DIR        writes DIR/NAME.nwf
    python easyEncode.py -decode FILE_OR_FOLDER... -out DIR     writes DIR/NAME.png; -format has others
    python easyEncode.py -decode FILE -out PICTURE.webp         one file; - is standard input and output
    python easyEncode.py -img - -out - < PICTURE > FILE.nwf
    python easyEncode.py -decode FILE -out DIR -levels 2        a quarter as wide, from the file's first part
    python easyEncode.py -decode FILE -out DIR -partial         a file that was cut
    python easyEncode.py -info FILE_OR_FOLDER... -json          what .nwf files hold
    torchrun --nproc-per-node 2 easyEncode.py -img FOLDER -out DIR    each process takes a share of the files
    torchrun --nproc-per-node 2 easyEncode.py -folder opt/NAME        or of the test set
    python easyEncode.py -folder opt/NAME -batch 10 -earlyStop 5    the test set of the training
    python easyEncode.py -folder opt/NAME -target ImageNet64    migrate: another data set, the same weights

What folders have become already is skipped. A file that fails is reported, the others are done: status 2.
A data set is coded to bytes, decoded from the bytes alone and compared: exit status 1 if an image came back
changed. Ctrl-C ends all with status 130, a data set with the figures until then.
"""

import utils.interrupt  # noqa: F401

# isort: split
import sys

from flow.codec.options import CODER, DATA_SET, EFFORT, MODEL, PRECISION
from utils.options import Option, grouped, parse, pick_device, refuse, script

ENCODE = {
    "img": Option(
        None, "encode these image files, and those in these folders; - is standard input", many=True
    ),
    "effort": EFFORT,
    "verify": Option(
        False, "decode what was made, compare, and only then keep it: the default with a folder"
    ),
    "noVerify": Option(False, "not with a folder either"),
}
DECODE = {
    "decode": Option(
        None, "decode these .nwf files, and those in these folders; - is standard input", many=True
    ),
    "format": Option(None, "of the pictures (default: that of -out, or png)", ("png", "ppm", "tif", "webp")),
    "levels": Option(0, "leave out so many of the finest levels", least=0),
    "partial": Option(
        False, "files that were cut too, as far as they go, and as far as corrupt ones are sound"
    ),
}
WRITE = {
    "out": Option(".", "folder of the files written, or the name of one; - is standard output"),
    "force": Option(False, "overwrite files that are there"),
    "jobs": Option(
        None, "files worked on at once (default: as many as there are cores, one on a GPU)", kind=int, least=1
    ),
}
INFO = {
    "info": Option(None, "tell what these .nwf files hold, and those in these folders", many=True),
    "json": Option(False, "as JSON, an object a line"),
}
OTHER = {
    "products": Option(None, "how to sum products, in place of the fastest; the files are the same"),
    "verbose": Option(False, "tell how networks are computed here: ways of summing products, and how fast"),
}
OPTIONS = (
    grouped("encode", ENCODE) | grouped("decode", DECODE) | grouped("encode and decode", WRITE)
    | grouped("info", INFO) | DATA_SET | PRECISION | CODER | MODEL | grouped("other", OTHER)
)  # fmt: skip
CODING = PRECISION | CODER
# What is to be done, and the options that have an effect then, besides MODEL and OTHER.
TASKS = {"img": ENCODE | WRITE | CODING, "decode": DECODE | WRITE, "info": INFO}


def check(typed):
    """The task of what was typed; None: a data set. Raises ValueError for what has no effect beside it."""
    first, *more = [name for name in TASKS if name in typed] or [None]
    if more:
        raise ValueError(f"-{first} and -{more[0]}: need one of them at most")
    effective = TASKS.get(first, DATA_SET | CODING) | MODEL | OTHER
    others = [name for name in OPTIONS if name not in effective]
    refuse(typed, others, f"beside -{first}" if first else "on a data set: see -img, -decode and -info in -h")
    refuse(typed, ["noVerify"] if "verify" in typed else [], "beside -verify")
    return first


def tell_products(device):
    """Print what became of each way's trial on a device."""
    from utils.arithmetic.dense import instructions
    from utils.arithmetic.products import choose, forced, trials

    if device.type == "cpu" and not forced() and (name := instructions()):
        print(f"networks of -prior bands as one function each, by {name}; the rest:", file=sys.stderr)
    for wide in (False, True):
        for name, trial in trials(device, wide).items():
            times = trial.fault or f"{trial.much:8.3f} ms for much work, {trial.little:6.3f} ms for little"
            chosen = [
                work
                for little, work in ((False, "much"), (True, "little"))
                if choose(device, wide, little).name == name
            ]
            note = f"  <- {', '.join(chosen)}" if chosen else ""
            print(f"{'16 bits' if wide else ' 8 bits'}  {name:20} {times}{note}", file=sys.stderr)


@script
def main(argv=None):
    """Encode files, decode files, tell what they hold, or measure a data set."""
    argv = sys.argv[1:] if argv is None else argv
    options, typed = parse(__doc__, OPTIONS, argv or ["-h"])
    task = check(typed)
    # from here on it takes seconds, which -h does not have to wait for
    from flow.codec import evaluate, files
    from utils.arithmetic.products import force

    force(options["products"])
    if options["verbose"]:
        tell_products(pick_device(options["cuda"]))
    if task is None:
        evaluate.measure(options)
    elif {"img": files.encode_files, "decode": files.decode_files, "info": files.show_files}[task](options):
        sys.exit(2)


if __name__ == "__main__":
    main()
