"""Load a folder of photographs as a data set, at several sizes, from .nwf and from PNG files.

    python tests/benchmark_dataset.py -img etc/photos -count 8

Pictures are written to a temporary folder both ways, then read one after the other, on one core: .nwf at
level 0, 1, .. from the first part of each file; PNG as a whole, and reduced by Pillow. Bytes are those read.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from flow.codec.api import Codec  # noqa: E402
from flow.codec.dataset import NwfFolder, read_part  # noqa: E402
from utils.data.images import image_files, read_rgb  # noqa: E402
from utils.options import Option, parse, script  # noqa: E402

OPTIONS = {
    "img": Option("etc/photos", "a folder of photographs"),
    "count": Option(8, "so many of them", least=1, most=10**6),
    "side": Option(512, "the middle of each, so many pixels wide and high at most", least=16, most=10**4),
    "levels": Option(5, "level 0 and so many beyond", least=0, most=12),
}


def middle(image, side):
    """The middle of an image (3, H, W), as a picture."""
    top, left = (max(n - side, 0) // 2 for n in image.shape[1:])
    part = image[:, top : top + side, left : left + side]
    return Image.fromarray(part.permute(1, 2, 0).contiguous().numpy())


@script
def main(argv=None):
    """Print the table."""
    options, _ = parse(__doc__, OPTIONS, argv)
    torch.set_num_threads(1)
    codec = Codec(threads=1)
    with TemporaryDirectory() as folder:
        names = [Path(folder) / str(n) for n in range(options["count"])]
        files = image_files(options["img"])[: options["count"]]
        names = names[: len(files)]
        for name, file in zip(names, files):
            picture = middle(read_rgb(file), options["side"])
            picture.save(name.with_suffix(".png"))
            name.with_suffix(".nwf").write_bytes(codec.compress(picture))
        png = sum(name.with_suffix(".png").stat().st_size for name in names)
        print(f"{'level':>5} {'.nwf bytes':>12} {'images/s':>9} {'PNG bytes':>12} {'images/s':>9}")
        for level in range(options["levels"] + 1):
            data = NwfFolder(folder, level, codec)
            start = time.perf_counter()
            for n in range(len(data)):
                _ = data[n]
            middle_of = time.perf_counter()
            for name in names:
                with Image.open(name.with_suffix(".png")) as image:
                    _ = torch.from_numpy(np.array(image.reduce(1 << level))).permute(2, 0, 1).contiguous()
            end = time.perf_counter()
            count = sum(read_part(codec, path, level)[1] for path in data.files)
            rates = len(names) / (middle_of - start), len(names) / (end - middle_of)
            print(f"{level:5} {count:12,} {rates[0]:9.2f} {png:12,} {rates[1]:9.2f}", flush=True)


if __name__ == "__main__":
    main()
