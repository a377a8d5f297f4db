"""A test set to bytes and back: options, loop and report of easyEncode.py and easyEncodeTrans.py."""

import sys
import time
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from flow.codec.stream import DEFAULT
from flow.folder import find_folder, open_frozen
from source.rans import Decoder
from source.units import MAX_PRECISION, MIN_PRECISION
from utils.data.datasets import choose_sides, load
from utils.options import CUDA, DATA_FOLDER, FOLDER, SCALES, SIDE, Option, pick_device

TEST_SET = (
    FOLDER
    | DATA_FOLDER
    | {
        "target": Option(None, "data set as in easymain.py (default: that of the training)"),
        "size": SIDE._replace(help=f"{SIDE.help} (default: the training's, or else as there)"),
        "scales": SCALES._replace(
            default=None, help=f"{SCALES.help} (default: the training's, or else 1)", kind=int
        ),
        "batch": Option(10, "images coded together", least=1, most=10**6),
        "earlyStop": Option(
            None, "stop after so many batches (default: -1, the whole test set)", kind=int, least=1, absent=-1
        ),
        "precision": Option(
            DEFAULT.precision,
            "probabilities are integers out of 2^precision",
            least=MIN_PRECISION,
            most=MAX_PRECISION,
        ),
        "best": Option(False, "the weights with the lowest training loss"),
        "valbest": Option(False, "the weights with the lowest test loss: the default, where there are any"),
    }
    | CUDA
)
CODER = {
    "nbins": Option(
        DEFAULT.nbins, "integers around the mean that need no escape", least=2, most=1 << MAX_PRECISION - 1
    )
}


class Figures(NamedTuple):
    """Means over images: bits per dimension (theory: by each measure), differences; images a second."""

    actual: float
    theory: tuple
    error: float
    encoding: float
    decoding: float


def weights_of(options):
    """The weights that -best or -valbest ask for, as flow.folder names them; None: the best there are."""
    if options["best"] and options["valbest"]:
        raise ValueError("-best and -valbest: need one of them at most")
    return "best_train" if options["best"] else "best_test" if options["valbest"] else None


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
    """
    actual, ideal, errors, encoding, decoding = [], [], [], 0.0, 0.0
    for batch in tqdm(batches, delay=1, leave=False):
        images, values = batch.to(device), batch[0].numel()
        start = time.perf_counter()
        streams = encode(images)
        middle = time.perf_counter()
        back = decode(streams, tuple(batch.shape[-2:])).cpu()
        encoding, decoding = encoding + middle - start, decoding + time.perf_counter() - middle
        actual += [8 * len(stream) / values for stream in streams]
        ideal.append(np.asarray(theory(images)) / values)
        errors += (back.double() - batch).abs().flatten(1).mean(1).tolist()
    measures = np.concatenate(ideal, axis=1).mean(axis=1).tolist()
    rates = len(actual) / encoding, len(actual) / decoding
    return Figures(float(np.mean(actual)), tuple(measures), float(np.mean(errors)), *rates)


def report(figures):
    """Print the figures, the last line as the original has it, and end with status 1 if an image changed.

    Theory is the first of its measures; whoever has more prints them.
    """
    print(f"encoded {figures.encoding:.1f} images/s, decoded {figures.decoding:.1f} images/s")
    means = f"Actual Mean BPD: {figures.actual:.4f} Theory Mean BPD: {figures.theory[0]:.4f}"
    print(f"{means} Mean Error: {figures.error}")
    if figures.error:
        sys.exit(1)
