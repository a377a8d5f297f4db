"""What a picture moves biases of the prior's networks by, learned from it by gradient descent.

Networks serve all pictures. At high effort the encoder goes on training them, on the one picture that they
are to serve; of all weights the biases of narrow layers, of which a decoder needs some hundred bytes, and
which it moves in no time. Moves are integers, 0 unless they pay for their bits, in the head of the file.
Source: instance-adaptive compression (arXiv 2101.08687), where moves are priced in the loss as well.
"""

import math
from copy import deepcopy

import numpy as np
import torch

from flow.codec.options import EFFORT
from source.corrections import around
from source.distribution import concatenated, flattened
from source.prior import parts_in_turn
from source.rans import Decoder, Encoder
from utils.arithmetic.crew import submit
from utils.arithmetic.fixed import FixedConv
from utils.arithmetic.passes import ACTIVATION_BITS, FINE_BITS
from utils.arithmetic.polyphase import depth

# Moves count 2^-3 of an activation.
MOVE_BITS, MOVE_MAX = 3, 1 << 8
# From this effort on, with so many steps at the highest, half as many with each below.
LEAST_EFFORT = 7
# A step sees pieces of the picture of this side; there is a step for so many pixels, up to a limit. Fewer
# than the least do not get far enough, and small pictures have too few values for what moves cost.
CROPS, SIDE, PIXELS_PER_STEP, LEAST_STEPS, MOST_STEPS = 2, 96, 4 << 10, 12, 256
# After a quarter of the steps, or so many, moves are given up unless they have taken this part off the bits
# of so many pieces: what is less, mixtures that adapt find by themselves.
LEAST_JUDGED, LEAST_GAIN, JUDGED_CROPS = 8, 0.015, 4
RATE, BETAS = 0.024, (0.9, 0.99)
# Pieces begin at multiples of this, so that their finest levels are the picture's; deeper levels have too few
# values to learn from.
GRID, LEVELS = 8, 3
# How moves are coded: of each layer around 0, of a scale of so many half octaves, which is coded around that
# of the layer before.
HALF_OCTAVES = range(-8, 9)


def count_steps(model, size, effort):
    """How many steps of descent an image with these sides is worth; 0: none."""
    if effort < LEAST_EFFORT or not _layers(model):
        return 0
    steps = min(size[0] * size[1] // PIXELS_PER_STEP, MOST_STEPS) >> EFFORT.most - effort
    return steps if steps >= LEAST_STEPS else 0


@torch.inference_mode(False)
def learn(model, learned, image, steps, progress=None, halved=False):
    """The moves that make an image (3, H, W) cheapest, as far as so many steps tell, as bytes.

    model: frozen; learned: the same in real numbers, which stays as it is. image: as the pyramid sees it.
    halved: of its finest details the first channel alone is coded.
    progress: called after each step with what part of the image's values that is, and with the rest where
    moves are given up.
    The same moves for any number of threads. b"" if there are none, if they are not worth it, or if there is
    no room for them. Inverse: tuned.
    """
    counts = {name: len(layer.bias) for name, layer, _ in _layers(model)}
    real = deepcopy(learned).requires_grad_(False)
    layers = {name: _convolutions(real.detail.get_submodule(name)) for name in counts if _is_tuned(name)}
    biases = [conv.bias.requires_grad_() for layer in layers.values() for conv in layer]
    start = [bias.detach().clone() for bias in biases]

    def away():
        return [(bias.detach() - first) * (1 << MOVE_BITS) for bias, first in zip(biases, start)]

    optimizer = torch.optim.Adam(biases, RATE, BETAS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    judged_by = [_crop(image, generator) for _ in range(JUDGED_CROPS)]

    def of_each(function, crops, *arguments):
        pixels = crops[0][0, 0].numel()
        tasks = [submit(function, real, crop, halved, *arguments, pixels=pixels) for crop in crops]
        return [task.result() for task in tasks]

    def cost():
        return sum(map(float, of_each(torch.no_grad()(_bits), judged_by)))

    before, judged_at = cost(), max(steps // 4, LEAST_JUDGED)
    for step in range(steps):
        if step == judged_at and cost() > (1 - LEAST_GAIN) * before:
            if progress:
                progress(image.numel() - image.numel() * step // steps)
            return b""
        crops = [_crop(image, generator) for _ in range(CROPS)]
        share = image.numel() / sum(map(torch.numel, crops))
        for bias, move, *gradients in zip(biases, away(), *of_each(_gradient, crops, biases)):
            # of the bits that moves take, about 2 log2(1 + |move|) each
            price = 2 * move.sign() * (1 << MOVE_BITS) / ((1 + move.abs()) * math.log(2))
            bias.grad = share * sum(gradients) + price
        optimizer.step()
        schedule.step()
        if progress:
            progress(image.numel() * (step + 1) // steps - image.numel() * step // steps)
    found = iter(away())
    moves = {name: torch.zeros(count) for name, count in counts.items()}
    moves |= {name: torch.cat([next(found) for _ in layer]) for name, layer in layers.items()}
    moves = [values.round().clamp(-MOVE_MAX, MOVE_MAX) for values in moves.values()]
    moves = [values.int().cpu().numpy() for values in moves]
    if not any(values.any() for values in moves):
        return b""
    data = _pack(moves)
    try:
        tuned(model, data)
    except ValueError:  # there are biases near what is exact
        return b""
    return data


def tuned(model, data):
    """A copy of a frozen model whose layers are moved by what `learn` gave.

    Raises ValueError for what it cannot have given.
    """
    model = deepcopy(model)
    layers = _layers(model)
    for (_, layer, bits), moves in zip(layers, _unpack(data, [len(layer.bias) for _, layer, _ in layers])):
        layer.move(torch.from_numpy(moves).long() << bits - MOVE_BITS)
    return model


def _layers(model):
    """The narrow layers of a frozen prior, by name, and the bits behind the point of what they give."""
    narrow = [(name, layer) for name, layer in model.detail.named_modules() if isinstance(layer, FixedConv)]
    return [(n, layer, FINE_BITS if ".out." in n else ACTIVATION_BITS) for n, layer in sorted(narrow)]


def _is_tuned(name):
    """Whether to move a layer: those of the trunk that all bands share give nothing more."""
    return "bands." in name


def _convolutions(module):
    """Those that are one layer when they are frozen."""
    return list(module) if isinstance(module, torch.nn.ModuleList) else [module]


def _crop(image, generator):
    """A piece of an image, (1, 3, h, w)."""
    for axis in (1, 2):
        spare = max(image.shape[axis] - SIDE, 0)
        first = int(torch.randint(spare // GRID + 1, (), generator=generator)) * GRID
        image = image.narrow(axis, first, min(SIDE, image.shape[axis]))
    return image[None]


@torch.enable_grad()
def _gradient(model, crop, halved, biases):
    """That of the bits of a crop's details."""
    bits = _bits(model, crop, halved)
    return torch.autograd.grad(bits, biases, allow_unused=True, materialize_grads=True)


def _bits(model, crop, halved):
    """Those of a crop's details."""
    kind, fast = crop.device.type, crop.is_cuda or _has_bfloat16()
    # not from autocast's cache, which within another autocast keeps biases as they were
    with torch.autocast(kind, torch.bfloat16, enabled=fast, cache_enabled=False):
        parts = []
        for level, coarse, detail in model.pyramid.analyse(crop, min(LEVELS, depth(*crop.shape[-2:]))):
            for part, distribution, values in parts_in_turn(model.detail, coarse, level, detail):
                if level or not halved or not part.channels.start:
                    parts.append((distribution, flattened(values)))
        distributions, values = zip(*parts)
        return -concatenated(distributions).log_prob(torch.cat(values, -1)).sum() / math.log(2)


def _has_bfloat16():
    """Whether this processor computes in bfloat16; where it does not, it would be slower."""
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def _pack(layers):
    """Moves, (C,) of each layer -> bytes. Inverse: _unpack."""
    encoder, before = Encoder(), 0
    for moves in layers:
        step = _cheapest_step(moves)
        encoder.push(around(1, 0, before), np.array([step]))
        encoder.push(around(len(moves), step / 2), moves)
        before = step
    return encoder.finish()


def _unpack(data, counts):
    """Bytes -> moves of layers with so many channels each. Raises ValueError if the bytes are no such."""
    decoder, before, layers = Decoder(data), 0, []
    for count in counts:
        (step,) = decoder.pop(around(1, 0, before))
        before = int(np.clip(step, HALF_OCTAVES[0], HALF_OCTAVES[-1]))
        layers.append(np.clip(decoder.pop(around(count, before / 2)), -MOVE_MAX, MOVE_MAX))
    if decoder.finish():
        raise ValueError("corrupt file: moves of biases that end otherwise than they should")
    return layers


def _cheapest_step(moves):
    """The half octaves of the scale by which moves take the fewest bits."""

    def bits(step):
        encoder = Encoder()
        encoder.push(around(len(moves), step / 2), moves)
        return encoder.bits

    return min(HALF_OCTAVES, key=bits)
