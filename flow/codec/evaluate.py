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
from flow.codec.stream import Settings, can_adapt
from flow.folder import find_folder, open_frozen, open_model
from source.rans import Decoder
from utils.arithmetic.integers import bits_per_dimension
from utils.data.datasets import choose_sides, load
from utils.options import pick_device
from utils.show.rivals import bits_by, quick
from utils.workers import PATIENCE, Workers


class Figures(NamedTuple):
    """Means over images: bits per dimension (theory: by each measure), differences; images a second.

    coded: how many batches they are of; interrupted: whether there were to be more. leader: whether this
    process is the first.
    """

    actual: float
    theory: tuple
    error: float
    encoding: float
    decoding: float
    coded: int
    interrupted: bool
    leader: bool


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

    def fitting(size):
        return settings.adapting(can_adapt(model, size)) if isinstance(settings, Settings) else settings

    def encode(images):
        encoders = coder.encode(model, images, fitting(images.shape[-2:]))
        return [encoder.finish(seal=None) for encoder in encoders]

    def decode(streams, size):
        decoders = [Decoder(stream, sealed=False) for stream in streams]
        images = coder.decode(model, decoders, size, fitting(size))
        for decoder in decoders:
            decoder.finish()
        return images

    return encode, decode


@torch.no_grad()
def code(batches, encode, decode, theory, device):
    """Code images to bytes and back; the decoder knows their size, as that of the data set. Returns Figures.

    batches: of images (B, 3, H, W), uint8, on the CPU; of torchrun's processes, each takes every n-th.
    encode: images on the device -> B streams of bytes. decode: streams and (height, width) -> images.
    theory: images -> the bits that each should take, by one or more measures: (measures, B).
    Ctrl-C ends it with the figures of the batches until then, if there are any.
    """
    workers, rows = Workers(), {}  # batch -> actual bits per dimension, differences, theory of each image
    with workers.joined(device, PATIENCE):
        if len(batches) < workers.count:
            raise ValueError(f"{workers.count} processes: need a batch for each, of {len(batches)}")
        seconds = torch.zeros(workers.count, 2, dtype=torch.float64, device=device)
        mine, quiet = range(workers.rank, len(batches), workers.count), workers.rank > 0 or None
        with suppress(KeyboardInterrupt):
            for k in tqdm(mine, delay=1, leave=False, disable=quiet):
                images, values = batches[k].to(device), batches[k][0].numel()
                start = time.perf_counter()
                streams = encode(images)
                middle = time.perf_counter()
                back = decode(streams, tuple(images.shape[-2:])).cpu()
                end = time.perf_counter()
                actual = [8 * len(stream) / values for stream in streams]
                errors = (back.double() - batches[k]).abs().flatten(1).mean(1).tolist()
                rows[k] = [actual, errors, *np.asarray(theory(images)) / values]
                seconds[workers.rank] += torch.tensor([middle - start, end - middle]).to(seconds)
        if not rows:
            raise KeyboardInterrupt
        # what others have coded is 0 here, so that the sum has the images in their order, whoever coded them
        columns = len(next(iter(rows.values())))
        parts = [torch.zeros(len(batch), 1 + columns, dtype=torch.float64) for batch in batches]
        for k, row in rows.items():
            parts[k][:, 0], parts[k][:, 1:] = 1 / len(parts[k]), torch.tensor(np.array(row)).T
        table = torch.cat(parts).to(device)
        workers.add_up([table, seconds])
    share, *columns = table[table[:, 0] > 0].cpu().numpy().T
    actual, error, *measures = (float(column.mean()) for column in columns)
    rates = (len(share) / seconds.amax(0)).tolist()
    coded = round(share.sum())
    return Figures(actual, tuple(measures), error, *rates, coded, coded < len(batches), not workers.rank)


def measure(options):
    """Code the test set with the learned scales, compare, and print the figures."""
    model, batches = open_test_set(options)
    learned, _ = open_model(find_folder(options["folder"]), weights_of(options), model.device)
    settings, others = Settings(options["nbins"], options["precision"]), quick()

    def theory(images):
        ours = [bits_per_dimension(-m.log_prob(images), 1).tolist() for m in (model, learned)]
        return ours + bits_by(images, others)

    figures = code(batches, *streams_of(stream, model, settings), theory, model.device)
    _, before, *rates = figures.theory
    report(
        figures,
        f"before the weights were rounded: {before:.4f} bits per dimension",
        "other codecs: " + ", ".join(f"{name} {rate:.4f}" for name, rate in zip(others, rates)),
    )


def report(figures, *lines):
    """Print lines and figures, the last as the original has it, and end with status 1 if an image changed.

    Theory is the first of its measures; whoever has more gives lines of them. Of an interrupted set: status
    130. Of several processes the first prints.
    """
    if figures.leader:
        print(*lines, sep="\n")
        print(f"encoded {figures.encoding:.1f} images/s, decoded {figures.decoding:.1f} images/s")
        means = f"Actual Mean BPD: {figures.actual:.4f} Theory Mean BPD: {figures.theory[0]:.4f}"
        print(f"{means} Mean Error: {figures.error}", flush=True)
    if figures.error:
        sys.exit(1)
    if figures.interrupted:
        if figures.leader:
            print(f"interrupted: these are of the first {figures.coded} batches", file=sys.stderr)
        sys.exit(130)
