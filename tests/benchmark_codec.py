"""Time and memory of encoding to bytes and decoding from them, and what of it the networks take.

    python tests/benchmark_codec.py             untrained models at the paper's and at small options
    python tests/benchmark_codec.py -folder opt/demo -cuda 0

A 512x512 photograph, and 32x32 patches in batches. MB count the raw pixels, three bytes each; memory is the
peak of a process of its own, less that of the same process after its imports.
"""

import resource
import subprocess
import sys
import time

import torch

sys.path.insert(0, ".")
from flow.codec.stream import decode, encode  # noqa: E402
from flow.folder import open_frozen  # noqa: E402
from flow.model import build  # noqa: E402
from source.bands import Band, BandPrior  # noqa: E402
from source.rans import Decoder  # noqa: E402
from utils.arithmetic.fixed import FixedNetwork  # noqa: E402
from utils.data.datasets import PHOTOS, load  # noqa: E402
from utils.data.images import read_rgb  # noqa: E402
from utils.options import CUDA, Option, parse, pick_device, script  # noqa: E402

# The methods in which networks compute.
NETWORKS = (FixedNetwork, "forward"), (BandPrior, "_look"), (Band, "features"), (Band, "mixture")
MODELS = {
    "paper": dict(hchnl=350, repeat=3, nhidden=3, HUE=True),
    "small": dict(hchnl=64, repeat=2, nhidden=1, HUE=True),
}
OPTIONS = CUDA | {
    "folder": Option(None, "model folder; default: untrained models of two sizes"),
    "threads": Option(torch.get_num_threads(), "threads of the CPU", least=1, most=1024),
    "count": Option(100, "32x32 images", least=1),
    "batch": Option(50, "32x32 images coded together", least=1, most=10**6),
    "case": Option("", "internal: model and images of this process"),
}


def peak():
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def timed(device, work):
    """Run work(); return its result, its seconds, and those spent in networks."""
    inside, plain = [0.0], {(kind, name): getattr(kind, name) for kind, name in NETWORKS}

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def watched(forward):
        def timed_forward(*args):
            wait()
            start = time.perf_counter()
            y = forward(*args)
            wait()
            inside[0] += time.perf_counter() - start
            return y

        return timed_forward

    for (kind, name), forward in plain.items():
        setattr(kind, name, watched(forward))
    try:
        start = time.perf_counter()
        result = work()
        wait()
        return result, time.perf_counter() - start, inside[0]
    finally:
        for (kind, name), forward in plain.items():
            setattr(kind, name, forward)


def measure(options):
    """One case, in this process."""
    name, images = options["case"].split(",")
    device = pick_device(options["cuda"])
    torch.set_num_threads(options["threads"])
    model = open_frozen(options["folder"])[0] if options["folder"] else build(MODELS[name]).freeze()
    model = model.to(device)
    if images == "photograph":
        batches = [read_rgb(PHOTOS / "roman-colosseum.png")[None, :, :512, :512]]
    else:
        batches = load("photos", "test", progress=False)[0][: options["count"]].split(options["batch"])
    warm = batches[0][:1, :, :32, :32]
    decode(model, [Decoder(e.finish()) for e in encode(model, warm)], (32, 32))
    before = peak()

    def coding():
        return [[encoder.finish() for encoder in encode(model, batch.to(device))] for batch in batches]

    def decoding():
        size = batches[0].shape[-2:]
        return [decode(model, [Decoder(s) for s in streams], size).cpu() for streams in coded]

    coded, seconds, inside = timed(device, coding)
    back, seconds_back, inside_back = timed(device, decoding)
    assert all(torch.equal(a, b) for a, b in zip(batches, back))
    count, megabytes = sum(map(len, batches)), sum(b.numel() for b in batches) / 1e6
    memory = (peak() - before) / 2**20
    rows = ((seconds, inside), (seconds_back, inside_back))
    cells = (f"{s / count:.4f} s an image, {megabytes / s:.3f} MB/s, {i / s:.0%} networks" for s, i in rows)
    print(f"{name:6} {images:11} encode {next(cells)}; decode {next(cells)}; {memory:.0f} MiB", flush=True)


@script
def main(argv=None):
    """Measure each case in a process of its own."""
    options, _ = parse(__doc__, OPTIONS, argv)
    if options["case"]:
        measure(options)
        return
    arguments = [
        a for name in ("threads", "count", "batch", "cuda") for a in (f"-{name}", str(options[name]))
    ]
    arguments += ["-folder", options["folder"]] if options["folder"] else []
    for name in ["model"] if options["folder"] else MODELS:
        for images in ("photograph", "patches"):
            case = ["-case", f"{name},{images}"]
            subprocess.run([sys.executable, __file__, *arguments, *case], check=True)


if __name__ == "__main__":
    main()
