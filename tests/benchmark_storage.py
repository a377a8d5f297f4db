"""Bytes of PNG, lossless WebP and ours, for pictures of all kinds.

    python tests/benchmark_storage.py -img data/more/odd/pngsuite etc/photos -effort 5

A row for each folder or file. PNG is the file given, if it is one, or Pillow's at its best, whichever is
smaller. WebP is Pillow's at its slowest, with profile, EXIF and XMP; texts and palettes it does not keep.
Where samples have 16 bits, PNG's bytes stand for it. Ours is decoded again and compared; exit status 1 if
it came back changed. "worst": how many bytes more than the smaller of the two ours takes at most. What is no
picture, such as PngSuite's damaged files, is counted as refused.
"""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from flow.codec.api import Codec  # noqa: E402
from flow.codec.deep import Deep  # noqa: E402
from flow.codec.options import EFFORT  # noqa: E402
from flow.codec.pictures import png_size, read_picture  # noqa: E402
from utils.data.images import image_files  # noqa: E402
from utils.options import Option, parse, script  # noqa: E402

OPTIONS = {
    "img": Option(None, "folders of image files, and files", many=True),
    "effort": EFFORT,
}


def webp_size(picture):
    """Bytes of the slowest lossless WebP; None: it cannot hold the picture."""
    if isinstance(picture, Deep) or max(picture.size) > 16383:
        return None
    file, info = BytesIO(), picture.info
    kept = {name: info[name] for name in ("exif", "xmp", "icc_profile") if name in info}
    shown = picture.convert("RGBA" if "A" in picture.mode or "transparency" in info else "RGB")
    shown.info = {}
    shown.save(file, "WEBP", lossless=True, exact=True, method=6, quality=100, **kept)
    return file.tell()


@script
def main(argv=None):
    """Print the table."""
    options, _ = parse(__doc__, OPTIONS, argv)
    if not options["img"]:
        raise ValueError("-img: need folders or files")
    for name in options["img"]:
        if not Path(name).exists():
            raise ValueError(f"{name}: no such file")
    codec, sound = Codec(), True
    print(f"{'':28} {'pictures':>8} {'refused':>8} {'PNG':>12} {'WebP':>12} {'ours':>12} {'worst':>8}")
    for name in map(Path, options["img"]):
        rows, more, refused = [], [], 0
        for file in image_files(name) if name.is_dir() else [name]:
            try:
                picture = read_picture(file)
            except ValueError:
                refused += 1
                continue
            data = codec.compress(picture, options["effort"])
            if not np.array_equal(np.asarray(codec.decompress(data)), np.asarray(picture)):
                print(f"{file}: came back changed", file=sys.stderr)
                sound = False
            png = min(png_size(picture), file.stat().st_size if file.suffix == ".png" else 10**12)
            webp = webp_size(picture) or png
            rows.append((png, webp, len(data)))
            more.append((file.name, len(data) - min(png, webp)))
        totals = [sum(column) for column in zip(*rows)] or [0, 0, 0]
        cells = "".join(f" {total:12,}" for total in totals)
        worst = max(more, key=lambda pair: pair[1], default=("", 0))
        print(f"{name.name:28.28} {len(rows):8} {refused:8}{cells} {worst[1]:+8} {worst[0]}", flush=True)
    if not sound:
        sys.exit(1)


if __name__ == "__main__":
    main()
