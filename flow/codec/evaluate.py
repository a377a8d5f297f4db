"""A test set to bytes and back: loop and report of easyEncode.py and easyEncodeTrans.py."""

import sys
import time
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from flow.codec import stream
from flow.codec.options import weights_of
from flow.codec.stream import Settings
from flow.folder import find_folder, open_frozen, open_model
from source.rans import Decoder
from utils.arithmetic.integers import bits_per_dimension
from utils.data.datasets import choose_sides, load
from utils.options import pick_device
from utils.show.rivals import quick, sizes


class Figures(NamedTuple):
    """Means over images: bits per dimension (theory: by each measure), differences; images a second.

    coded: how many batches they are of; interrupted: whether there were to be more.
    """

    actual: float
    theory: tuple
    error: float
    encoding: float
    decoding: float
    coded: int
    interrupted: bool


def open_test_set(options, count=None):
    """The frozen model and the batches of the test set that the options of TEST_SET ask for.

    count: take only the first so many images of each size.
    """
    folder, device = find_folder(options["folder"]), pick_device(options["cuda"])
    model, trained, _ = open_frozen(folder, weights_of(options), device)
    target = options["target"] or trained.get("target")
    if target is None:
        raise ValueError("the model folder does not tell a data set: give -target")
    same = target == trained.get("target")
    side = options["size"] or (trained["patch"] if same else choose_sides(target)[0])
    scales = options["scales"] or (trained["scales"] if same else 1)
    sets = load(target, "test", options["data"], side, scales=scales)
    stop = options["earlyStop"]
    return model, [batch for images in sets for batch in images[:count].split(options["batch"])[:stop]]


def streams_of(coder, model, settings):
    """The `encode` and `decode` that `code` asks for: a stream is all there is, without head and seal.

    coder: flow.codec, with its Settings, or flow.codec.histogram, with a precision.
    """

    def encode(images):
        return [encoder.finish(seal=None) for encoder in coder.encode(model, images, settings)]

    def decode(streams, size):
        decoders = [Decoder(stream) for stream in streams]
        images = coder.decode(model, decoders, size, settings)
        for decoder in decoders:
            decoder.finish(sealed=False)
        return images

    return encode, decode


@torch.no_grad()
def code(batches, encode, decode, theory, device):
    """Code images to bytes and back; the decoder knows their size, as that of the data set. Returns Figures.

    batches: of images (B, 3, H, W), uint8, on the CPU.
    encode: images on the device -> B streams of bytes. decode: streams and (height, width) -> images.
    theory: images -> the bits that each should take, by one or more measures: (measures, B).
    Ctrl-C ends it with the figures of the batches until then, if there are any.
    """
    rows = []  # of batches: bits per dimension, by theory, and differences of each image; two times
    with suppress(KeyboardInterrupt):
        for batch in tqdm(batches, delay=1, leave=False, disable=None):
            images, values = batch.to(device), batch[0].numel()
            start = time.perf_counter()
            streams = encode(images)
            middle = time.perf_counter()
            back = decode(streams, tuple(batch.shape[-2:])).cpu()
            end = time.perf_counter()
            actual = [8 * len(stream) / values for stream in streams]
            errors = (back.double() - batch).abs().flatten(1).mean(1).tolist()
            rows.append((actual, np.asarray(theory(images)) / values, errors, middle - start, end - middle))
    if not rows:
        raise KeyboardInterrupt
    actual, ideal, errors, *seconds = zip(*rows)
    actual, errors = (np.concatenate(parts) for parts in (actual, errors))
    rates = (len(actual) / sum(each) for each in seconds)
    measures = tuple(np.concatenate(ideal, axis=1).mean(axis=1).tolist())
    coded = len(rows), len(rows) < len(batches)
    return Figures(float(actual.mean()), measures, float(errors.mean()), *rates, *coded)


def measure(options):
    """Code the test set with the learned scales, compare, and print the figures."""
    model, batches = open_test_set(options)
    learned, _ = open_model(find_folder(options["folder"]), weights_of(options), model.device)
    settings = Settings(options["nbins"], options["precision"])

    def theory(images):
        return [bits_per_dimension(-m.log_prob(images), 1).tolist() for m in (model, learned)]

    figures = code(batches, *streams_of(stream, model, settings), theory, model.device)
    print(f"before the weights were rounded: {figures.theory[1]:.4f} bits per dimension")
    if not figures.interrupted:
        others = sizes(batches, quick())
        print("other codecs: " + ", ".join(f"{name} {size:.4f}" for name, size in others.items()))
    report(figures)


def report(figures):
    """Print the figures, the last line as the original has it, and end with status 1 if an image changed.

    Theory is the first of its measures; whoever has more prints them. Of an interrupted set: status 130.
    """
    print(f"encoded {figures.encoding:.1f} images/s, decoded {figures.decoding:.1f} images/s")
    means = f"Actual Mean BPD: {figures.actual:.4f} Theory Mean BPD: {figures.theory[0]:.4f}"
    print(f"{means} Mean Error: {figures.error}", flush=True)
    if figures.error:
        sys.exit(1)
    if figures.interrupted:
        print(f"interrupted: these are of the first {figures.coded} batches", file=sys.stderr)
        sys.exit(130)
