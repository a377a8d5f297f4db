"""Make of a trained model one such as those in the box: what trainings alone need left out, losses joined.

    python -m flow.publish opt/NAME etc/model

TO gets the options, the weights that were best by test, those of a band-wise prior's wide layers in 8 bits,
and their integers; the losses of this training come after those that TO has, each once, however often it is
published. Its card and plan stay as they are: they are written by hand.
"""

import argparse
import csv
import re
import tempfile
from pathlib import Path

from flow.checkpoint import RECORD
from flow.folder import losses_file, open_frozen, options_file, read_options, saving
from utils.files import load_tensors, save_tensors, write_table, write_text
from utils.options import Parser, script

BEST = "best_test"
# Weights of so many numbers and more are kept in 8 bits where integers have as many too, which is in these
# layers of the band-wise prior, and in 16 elsewhere; but not of what reads samples: the means of its kernels
# are larger than the rest by 1 / SLOW, and the rest would be lost beside them.
MANY, OF_SAMPLES = 1 << 12, "enter."
NARROW = re.compile(r"model\.detail\.(levels\.\d+\.)?(trunk|bands)\..*(trunk|wide|last|hidden\.\d+)\.weight")


def publish(folder, to):
    """Publish the model of a folder into another: see the module. Raises ValueError if there is none.

    What is there already is replaced when all of the new is made, and works.
    """
    read_options(folder)  # or it is none
    tensors, state = load_tensors(saving(folder, BEST))
    rows = joined(losses(to), losses(folder))
    many = [name for name, tensor in tensors.items() if _has_many(name, tensor)]
    in_bytes = [name for name in many if NARROW.fullmatch(name)]
    small = tensors | {name: tensors[name].half() for name in many if name not in in_bytes}
    to = Path(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new", dir=to.parent) as new:
        save_tensors(saving(new, BEST), small, state, in_bytes)
        write_text(options_file(new), options_file(folder).read_text())
        write_table(losses_file(new), RECORD, [{"epoch": n} | row for n, row in enumerate(rows, 1)])
        try:
            published = open_frozen(new, BEST)
        except ValueError as error:
            raise ValueError(str(error).replace(str(saving(new, BEST)), str(saving(folder, BEST)))) from None
        for path in [path for path in Path(new).rglob("*") if path.is_file()]:
            made = to / path.relative_to(new)
            made.parent.mkdir(parents=True, exist_ok=True)
            path.replace(made)
    return published


def losses(folder):
    """The rows of a folder's table of losses without the epoch's number; none if it has none.

    Raises ValueError for a file that is no such table.
    """
    path = losses_file(folder)
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error):
        rows = [{}]
    if not all(set(RECORD[:3]) <= set(row) <= set(RECORD) for row in rows):
        raise ValueError(f"{path}: not a table of {', '.join(RECORD)}")
    return [{name: value for name, value in row.items() if name != "epoch"} for row in rows]


def joined(before, rows):
    """Rows after those before them, of which the last may be the first of these: published already."""
    known = min(len(before), len(rows))
    while before[len(before) - known :] != rows[:known]:
        known -= 1
    return before + rows[known:]


def _has_many(name, tensor):
    return name.endswith(".weight") and tensor.numel() >= MANY and OF_SAMPLES not in name


@script
def main(argv=None):
    """Publish, and say what it is called."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="model folder of a training")
    parser.add_argument("to", help="model folder to write")
    args = parser.parse_args(argv)
    before = options_file(args.to).exists()
    _, _, name = publish(args.folder, args.to)
    print(f"{args.to}: {name[:16]}, {'anew' if before else 'new'}")


if __name__ == "__main__":
    main()
