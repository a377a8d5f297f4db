"""Bits per dimension of lossless codecs side by side: ours, and those installed (utils/show/rivals.py).

    python tests/benchmark_rates.py -img FILE_OR_FOLDER...             pictures of any size, as .nwf files
    python tests/benchmark_rates.py -target CIFAR -count 1000          the test part of a data set, as streams
    python tests/benchmark_rates.py -folder opt/NAME                   that of the model's training

Actual bytes: ours are decoded again and compared; exit status 1 if an image came back changed. All codecs get
the same pixels, red, green and blue, without metadata. A .nwf file counts as a whole, head and checksums
included, as the others' files do. Means are over pictures; "over XL 9" says how many more bits ours takes
than JPEG XL at effort 9. Seconds are ours, for one picture; those of a data set are coded -batch together.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from flow.codec import stream  # noqa: E402
from flow.codec.api import Codec  # noqa: E402
from flow.codec.evaluate import code, open_test_set, streams_of  # noqa: E402
from flow.codec.options import CODER, EFFORT, TEST_SET, weights_of  # noqa: E402
from flow.codec.stream import Settings  # noqa: E402
from flow.folder import find_folder, read_options, target_name  # noqa: E402
from utils.data.images import image_files, read_rgb  # noqa: E402
from utils.options import Option, parse, pick_device, script  # noqa: E402
from utils.show.rivals import rivals, sizes  # noqa: E402

ALL_BATCHES = {name: option for name, option in TEST_SET.items() if name != "earlyStop"}
OPTIONS = ALL_BATCHES | CODER | {
    "img": Option(None, "these image files, and those in these folders", many=True),
    "others": Option(None, "only these of the other codecs, such as PNG", many=True),
    "effort": EFFORT._replace(help=f"of ours, with -img: {EFFORT.help}"),
    "asRGB": Option(False, "with -img: ours does not look for luma and chroma that pictures were made of"),
    "count": Option(None, "only the first so many pictures (default: all)", kind=int, least=1, most=10**9),
}  # fmt: skip
REFERENCE = "JPEG XL 9"
COLUMNS = "over XL 9", "encode s", "decode s"
WIDTH = 28


def show(options, name, rates, encoding, decoding):
    """Print a row of the table. rates: bits per dimension by ours and -others, in this order."""
    ours, others = rates[0], dict(zip(options["others"], rates[1:]))
    over = f"{ours / others[REFERENCE] - 1:+.1%}" if REFERENCE in others else "-"
    cells = [*(f"{rate:.4f}" for rate in rates), over, f"{encoding:.3f}", f"{decoding:.3f}"]
    print(f"{name:{WIDTH}.{WIDTH}}" + "".join(f"{cell:>10}" for cell in cells), flush=True)


def measure_pictures(options):
    """Code pictures one by one to .nwf files and back, in memory. Returns whether all came back equal."""
    files = [f for n in map(Path, options["img"]) for f in (image_files(n) if n.is_dir() else [n])]
    files = files[: options["count"]]
    if not files:
        raise ValueError(f"{', '.join(options['img'])}: no image files")
    settings = Settings(options["nbins"], options["precision"])
    codec = Codec(options["folder"], pick_device(options["cuda"]), None, weights_of(options), settings)
    rows, sound = [], True
    for file in files:
        pixels = read_rgb(file)
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        start = time.perf_counter()
        data = codec.compress(picture, options["effort"], undo=not options["asRGB"])
        middle = time.perf_counter()
        back = codec.decompress(data)
        end = time.perf_counter()
        if back.mode != "RGB" or not np.array_equal(np.asarray(back), np.asarray(picture)):
            print(f"{file}: came back changed", file=sys.stderr)
            sound = False
        rates = 8 * len(data) / pixels.numel(), *sizes([pixels[None]], options["others"]).values()
        rows.append((rates, middle - start, end - middle))
        show(options, file.name, *rows[-1])
    if len(rows) > 1:
        means = (np.mean(column, axis=0) for column in zip(*rows))
        show(options, f"mean of {len(rows)}", *means)
    return sound


def measure_data_set(options):
    """Code a test set to streams and back. Returns whether all images came back equal."""
    model, batches = open_test_set(options | {"earlyStop": None}, options["count"])
    settings = Settings(options["nbins"], options["precision"])

    def theory(images):
        return torch.zeros(1, len(images))

    figures = code(batches, *streams_of(stream, model, settings), theory, model.device)
    rates = figures.actual, *sizes(batches, options["others"]).values()
    target = options["target"] or read_options(find_folder(options["folder"]))["target"]
    name = f"{target_name(target)}, {sum(map(len, batches))} images"
    show(options, name, rates, 1 / figures.encoding, 1 / figures.decoding)
    if figures.error:
        print(f"images came back changed: mean error {figures.error}", file=sys.stderr)
    return not figures.error


@script
def main(argv=None):
    """Print the table."""
    options, typed = parse(__doc__, OPTIONS, argv)
    if "img" in typed and "target" in typed:
        raise ValueError("-img measures pictures, -target a data set: need one of them at most")
    for name in "effort", "asRGB":
        if name in typed and "img" not in typed:
            raise ValueError(f"-{name} is of -img: images of a data set are coded alike")
    options["others"] = options["others"] or list(rivals())
    unknown = [name for name in options["others"] if name not in rivals()]
    if unknown:
        raise ValueError(f"-others {unknown[0]}: not one of {', '.join(rivals())}, the codecs installed")
    columns = ("ours", *options["others"], *COLUMNS)
    print(f"{'bits per dimension':{WIDTH}}" + "".join(f"{column:>10}" for column in columns))
    if not (measure_pictures if "img" in typed else measure_data_set)(options):
        sys.exit(1)


if __name__ == "__main__":
    main()
