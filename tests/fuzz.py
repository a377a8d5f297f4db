"""Change .nwf files at random: none may give a wrong picture, and none may end in more than one line.

    python tests/fuzz.py -count 100000              the stored files of tests/fixtures, one after the other
    python tests/fuzz.py -seed 1 -first 4711 -count 1    the one that was found

Each has one to three bytes or stretches changed, cut out or put in; a quarter has the checksum of its head
made right again, as one who forges it would. They are decoded as a whole, cut (partial), or small (levels).
Exit status 1 if there was a fault: each is printed with its number.
"""

import random
import resource
import sys
import time
import zlib
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
from test_container import FIXTURES, tiny_model  # noqa: E402

from flow.codec.container import FLOW, read_head, unpack  # noqa: E402
from utils.options import SEED, Option, parse, script  # noqa: E402

OPTIONS = {
    "count": Option(2000, "how many files", least=1),
    "first": Option(0, "the number of the first", least=0),
    "seed": SEED,
}
WAYS = {}, {}, {"partial": True}, {"levels": 1}, {"levels": 2, "partial": True}
SECONDS = 20  # more than any of these small files may take


def stored_files():
    """A list of (data, model, its identity, the picture), for each of the files."""
    files = []
    for folder in (FIXTURES, FIXTURES / "bands", FIXTURES / "ycc"):
        model, name = tiny_model(folder)
        for path in sorted(folder.glob("*.nwf")):
            with Image.open(path.with_suffix(".png")) as picture:
                picture.load()
            files.append((path.read_bytes(), model, name, picture))
    return files


def changed(data, draw):
    """The data with one thing changed."""
    at, size = draw.randrange(len(data) + 1), min(draw.randrange(1, 9), draw.randrange(1, 9))
    new = draw.choice((draw.randbytes(size), bytes(size), b"\xff" * size))
    if at < len(data) and draw.randrange(3) == 0:
        new = bytes([data[at] ^ 1 << draw.randrange(8)])
        size = 1
    kind = draw.randrange(4)
    if kind == 0:
        return data[:at] + data[at + size :]
    if kind == 1:
        return data[:at] + new + data[at:]
    if kind == 2 and draw.randrange(4) == 0:
        return data[:at]
    return data[:at] + new + data[at + len(new) :]


def mutant(data, draw):
    """A file with something wrong, and whether the checksum of its head is right for all that."""
    if draw.randrange(4):
        for _ in range(draw.randrange(1, 4)):
            data = changed(data, draw)
        return data, False
    end = read_head(data).end
    head = changed(data[: end - 4], draw)
    return head + zlib.crc32(head).to_bytes(4, "big") + data[end:], True


def fault(file, draw):
    """What is wrong with how a mutant of a file was taken, or None."""
    data, model, name, picture = file
    wrong, forged = mutant(data, draw)
    how = draw.choice(WAYS)
    start = time.perf_counter()
    try:
        found = unpack(wrong, model, name, **how)
    except ValueError as error:
        if "\n" in str(error) or not str(error):
            return f"its error is no line: {error!r}"
    except Exception as error:  # whatever it is, it is a fault
        return f"{type(error).__name__}: {error}"
    else:
        small = tuple(-(-side >> how.get("levels", 0)) for side in picture.size)
        guarded = not forged or (read_head(data).method == FLOW and not how)
        if guarded and found.size != small:
            return f"{found.size[0]}x{found.size[1]} pixels"
        if guarded and not how and (found.mode != picture.mode or found.tobytes() != picture.tobytes()):
            return "another picture"
    seconds = time.perf_counter() - start
    return f"{seconds:.0f} seconds" if seconds > SECONDS else None


def fuzz(numbers, seed):
    """Yield the number and the fault of each file that was taken wrongly."""
    files = stored_files()
    for number in numbers:
        problem = fault(files[number % len(files)], random.Random(f"{seed} {number}"))
        if problem:
            yield number, problem


@script
def main(argv=None):
    """Print the faults, how many there were, and the most memory that was taken."""
    options, _ = parse(__doc__, OPTIONS, argv)
    torch.set_num_threads(1)
    numbers = range(options["first"], options["first"] + options["count"])
    before, count = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number, problem in fuzz(tqdm(numbers, leave=False, disable=None), options["seed"]):
        count += 1
        tqdm.write(f"-seed {options['seed']} -first {number}: {problem}")
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{len(numbers):,} files, {count} faults; {more:,.0f} MiB more at most")
    if count:
        sys.exit(1)


if __name__ == "__main__":
    main()
