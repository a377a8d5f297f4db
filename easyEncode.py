"""Encode pictures with a trained flow, bit for bit, or a data set, and report bits per dimension.

    python easyEncode.py -img FILE_OR_FOLDER... -out DIR        writes DIR/NAME.nwf
    python easyEncode.py -decode FILE_OR_FOLDER... -out DIR     writes DIR/NAME.png
    python easyEncode.py -decode FILE -out DIR -levels 2        a quarter as wide, from the file's first part
    torchrun --nproc-per-node 2 easyEncode.py -img FOLDER -out DIR    each process takes a share of the files
    python easyEncode.py -folder opt/NAME -batch 10 -earlyStop 5    the test set of the training
    python easyEncode.py -folder opt/NAME -target ImageNet64    migrate: another data set, the same weights

A data set is coded to bytes, decoded from the bytes alone and compared: exit status 1 if an image came back
changed. A file that fails is reported, the others are done: exit status 2.
"""

import os
import sys

import torch

from flow.codec import stream
from flow.codec.api import Codec
from flow.codec.evaluate import CODER, TEST_SET, code, open_test_set, report, streams_of, weights_of
from flow.codec.jobs import Sizes, of_all, plan, run, share
from flow.codec.pictures import png_size, read_picture, write_png
from flow.codec.stream import Settings
from flow.folder import find_folder, open_model
from utils.arithmetic.integers import bits_per_dimension
from utils.arithmetic.products import WAYS, choose, force, trials
from utils.data.images import image_files
from utils.options import Option, parse, pick_device, script
from utils.show.rivals import quick, sizes

FILES = {
    "img": Option(None, "encode these image files, and those in these folders", many=True),
    "decode": Option(None, "decode these .nwf files, and those in these folders", many=True),
    "out": Option(".", "folder of the files written"),
    "force": Option(False, "overwrite files that are there"),
    "levels": Option(0, "with -decode: leave out so many of the finest levels", least=0),
    "partial": Option(False, "with -decode: files that were cut too, as far as they go"),
    "jobs": Option(
        None, "files worked on at once (default: as many as there are cores, one on a GPU)", kind=int, least=1
    ),
}
ARITHMETIC = {
    "products": Option(
        None, "how to sum products, in place of the fastest; the files are the same", tuple(WAYS)
    ),
    "verbose": Option(False, "tell which ways of summing products work here, and how fast"),
}
OPTIONS = FILES | TEST_SET | CODER | ARITHMETIC


def encode_files(options):
    """Pictures -> .nwf files. Returns how many failed."""
    jobs, codec, at_once = open_jobs(options, plan(options["img"], image_files, options["out"], ".nwf"))

    def work(source, path):
        picture = read_picture(source)
        data = codec.compress(picture)
        path.write_bytes(data)
        return Sizes(len(data), count_values(picture), png_size(picture))

    return of_all(run(jobs, work, options["force"], at_once))


def decode_files(options):
    """.nwf files -> PNG files. Returns how many failed."""
    jobs, codec, at_once = open_jobs(options, plan(options["decode"], nwf_files, options["out"], ".png"))

    def work(source, path):
        data = source.read_bytes()
        picture = codec.decompress(data, options["levels"], options["partial"])
        write_png(picture, path)
        if options["levels"]:  # the file holds a larger picture
            return Sizes(len(data))
        return Sizes(len(data), count_values(picture), path.stat().st_size)

    return of_all(run(jobs, work, options["force"], at_once))


def open_jobs(options, jobs):
    """The share of the jobs that is this process's, the Codec for them, and how many to work on at once.

    The cores are shared out among those; a GPU takes one after the other.
    """
    jobs, cuda = share(jobs), options["cuda"]
    device = pick_device(cuda + int(os.environ.get("LOCAL_RANK", 0)) if cuda >= 0 else cuda)
    cores = torch.get_num_threads()
    at_once = options["jobs"] or (1 if device.type == "cuda" else cores)
    settings = Settings(options["nbins"], options["precision"])
    threads = max(cores // max(min(at_once, len(jobs)), 1), 1)
    return jobs, Codec(options["folder"], device, threads, weights_of(options), settings), at_once


def tell_products(device):
    """Print what became of each way's trial on a device."""
    for wide in (False, True):
        for name, trial in trials(device, wide).items():
            times = trial.fault or f"{trial.many:8.3f} ms many pixels, {trial.few:6.3f} ms few"
            chosen = [
                size
                for few, size in ((False, "many"), (True, "few"))
                if choose(device, wide, few).name == name
            ]
            note = f"  <- {', '.join(chosen)}" if chosen else ""
            print(f"{'16 bits' if wide else ' 8 bits'}  {name:20} {times}{note}", file=sys.stderr)


def count_values(picture):
    """The dimensions in bits per dimension."""
    return picture.width * picture.height * len(picture.getbands())


def nwf_files(folder):
    """The .nwf files under a folder, sorted."""
    return sorted(path for path in folder.rglob("*.nwf") if not path.name.startswith("."))


def encode_data_set(options):
    """Code the test set, compare, and print the figures."""
    model, batches = open_test_set(options)
    learned, _ = open_model(find_folder(options["folder"]), weights_of(options), model.device)
    settings = Settings(options["nbins"], options["precision"])

    def theory(images):
        return [bits_per_dimension(-m.log_prob(images), 1).tolist() for m in (model, learned)]

    figures = code(batches, *streams_of(stream, model, settings), theory, model.device)
    others = sizes(batches, quick())
    print(f"before the weights were rounded: {figures.theory[1]:.4f} bits per dimension")
    print("other codecs: " + ", ".join(f"{name} {size:.4f}" for name, size in others.items()))
    report(figures)


@script
def main(argv=None):
    """Encode files, decode files, or measure a data set."""
    options, typed = parse(__doc__, OPTIONS, argv)
    if "img" in typed and "decode" in typed:
        raise ValueError("-img encodes, -decode decodes: need one of them at most")
    if "decode" not in typed and typed.keys() & {"levels", "partial"}:
        raise ValueError("-levels and -partial go with -decode")
    force(options["products"])
    if options["verbose"]:
        tell_products(pick_device(options["cuda"]))
    if not typed.keys() & {"img", "decode"}:
        encode_data_set(options)
    elif encode_files(options) if "img" in typed else decode_files(options):
        sys.exit(2)


if __name__ == "__main__":
    main()
