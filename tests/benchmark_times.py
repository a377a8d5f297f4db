"""Draw rate against time, both ways, of lossless codecs at several efforts: ours and those installed.

    python tests/benchmark_times.py -img FILE_OR_FOLDER... -out etc

Each codec takes the same pixels and as many threads as it likes; what is decoded is compared. Times are sums
over the pictures of the shortest of -repeat rounds, in seconds a megapixel; rates are means over pictures.
Writes times.png, times.pdf and times.csv.
"""

import sys
import time
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from flow.codec.api import Codec  # noqa: E402
from utils.data.images import image_files, read_rgb  # noqa: E402
from utils.options import FOLDER, Option, parse, script  # noqa: E402
from utils.show.plots import plt, save_figure, save_rows  # noqa: E402
from utils.show.rivals import pillow  # noqa: E402

EFFORTS = 1, 5, 9  # ours
OPTIONS = FOLDER | {
    "img": Option(None, "these image files, and those in these folders", many=True),
    "out": Option("output", "folder of the figure"),
    "repeat": Option(2, "rounds, of which the shortest time counts", least=1),
    "jpg": Option(False, "a small JPEG too"),
}


def _open(data):
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def rivals():
    """Family -> [(effort, encode, decode)] of what is installed."""
    families = {
        "PNG": [(e, pillow("PNG", compress_level=e), _open) for e in (1, 6, 9)],
        "WebP": [
            (e, pillow("WEBP", lossless=True, method=e, quality=100 if e == 6 else 75), _open)
            for e in (0, 4, 6)
        ],
    }
    try:
        import imagecodecs
    except ImportError:
        return families
    jpeg2k = partial(imagecodecs.jpeg2k_encode, reversible=True, mct=True, codecformat="j2k", resolutions=6)
    families["JPEG 2000"] = [("", jpeg2k, imagecodecs.jpeg2k_decode)]
    families["JPEG XL"] = [
        (e, partial(imagecodecs.jpegxl_encode, lossless=True, effort=e), imagecodecs.jpegxl_decode)
        for e in (1, 3, 5, 7, 9)
    ]
    return families


def measure(encode, decode, pictures, repeat):
    """Bits per dimension, and seconds a megapixel each way. ValueError if a picture came back changed."""
    megapixels = sum(p.size for p in pictures) / 3e6
    seconds, rates = np.zeros(2), []
    for pixels in pictures:
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            data = encode(pixels)
            middle = time.perf_counter()
            back = decode(data)
            times.append((middle - start, time.perf_counter() - middle))
        if not np.array_equal(back, pixels):
            raise ValueError("a picture came back changed")
        seconds += np.min(times, axis=0)
        rates.append(8 * len(data) / pixels.size)
    return float(np.mean(rates)), *(seconds / megapixels).tolist()


@script
def main(argv=None):
    """Measure, draw and save."""
    options, _ = parse(__doc__, OPTIONS, argv)
    files = [f for n in map(Path, options["img"] or []) for f in (image_files(n) if n.is_dir() else [n])]
    if not files:
        raise ValueError("need -img with image files")
    pictures = [np.ascontiguousarray(read_rgb(file).permute(1, 2, 0).numpy()) for file in files]
    codec = Codec(options["folder"])
    codec.decompress(codec.compress(pictures[0]))  # compiled, and its memory there
    ours = [
        (e, partial(codec.compress, effort=e), lambda d: np.asarray(codec.decompress(d))) for e in EFFORTS
    ]
    rows = []
    for family, kinds in (rivals() | {"ours": ours}).items():
        for effort, encode, decode in kinds:
            rate, encoding, decoding = measure(encode, decode, pictures, options["repeat"])
            rows.append(dict(codec=family, effort=effort, bits=rate, encode=encoding, decode=decoding))
            print(
                f"{family:10} {effort!s:2} {rate:8.4f} bits {encoding:8.3f} {decoding:8.3f} s/Mpixel",
                flush=True,
            )
    draw(rows, len(pictures), options)


def draw(rows, count, options):
    """The figure of both directions, and its numbers."""
    figure, both = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    colours = dict(
        zip(dict.fromkeys(row["codec"] for row in rows), plt.rcParams["axes.prop_cycle"].by_key()["color"])
    )
    for axes, way in zip(both, ("encode", "decode")):
        for family, colour in colours.items():
            alike = [row for row in rows if row["codec"] == family]
            times, bits = [row[way] for row in alike], [row["bits"] for row in alike]
            axes.plot(
                times, bits, marker="o", color=colour, label=family, linewidth=2 if family == "ours" else 1
            )
            for row in alike:
                axes.annotate(
                    row["effort"],
                    (row[way], row["bits"]),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=8,
                )
        axes.set(xscale="log", xlabel=f"seconds a megapixel, to {way}")
        axes.grid(alpha=0.3, which="both")
    both[0].set_ylabel(f"bits per dimension, mean of {count} pictures")
    both[1].legend()
    save_rows(options["out"], "times", rows)
    save_figure(figure, options["out"], "times", jpg=options["jpg"])


if __name__ == "__main__":
    main()
