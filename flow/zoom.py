"""From coarse to fine: images loaded level by level, and images made larger than they are."""

from typing import NamedTuple

import torch

from flow.codec.container import FLOW, check_plausible, model_of, read_head, unpack
from flow.codec.pictures import of_8_bits
from flow.codec.stream import DEFAULT, decode_levels, encode, pixels
from flow.pyramid import finest
from source.distribution import drawing
from source.rans import Decoder, Truncated
from utils.arithmetic.polyphase import channels_last, depth
from utils.show.interpolation import KERNELS, interpolated
from utils.show.quality import psnr, ssim
from utils.show.sheets import from_pillow

# The samples that are averaged, and what is added to their logscales: of few samples, calm ones come nearer.
AVERAGED, AVERAGED_SCALE = 16, -1.0
# What the PSNR of an image counts in a mean at most: images of one colour are often met exactly.
BEST_PSNR = 100.0


class Stage(NamedTuple):
    """An image of which all but the `level` finest levels was read, in `bytes` bytes; both uint8.

    coarse: what was read, the coarse band as a picture, (3, h, w); image: completed by the prior, (3, H, W).
    """

    level: int
    coarse: torch.Tensor
    image: torch.Tensor
    bytes: int


@torch.no_grad()
def coarse_bands(model, images, levels):
    """Images (B, 3, H, W) -> what the pyramid sees of them, its coarse band, that band's, ...: levels + 1."""
    x = model.from_images(images)
    return [x, *(coarse for _, coarse, _ in model.pyramid.analyse(x, levels))]


def prefixes(model, stream, size, settings=DEFAULT):
    """Yield level and number of bytes: how many of a stream's first bytes hold all but the finest levels.

    model: frozen; size: (height, width) of the one image in the stream. Stops where a cut stream ends.
    """
    decoder = Decoder(stream)
    try:
        for level, _, _ in decode_levels(model, [decoder], size, settings):
            yield level, decoder.taken
    except Truncated:
        return


def load_image(model, image, base_scale=None, generator=None):
    """Yield the Stages of an image (3, H, W), coarsest first.

    model: frozen; base_scale, generator: as for model.sample. The last Stage is the image itself.
    """
    height, width = image.shape[-2:]
    images = image[None].to(model.device)
    (encoder,) = encode(model, images)
    bands = coarse_bands(model, images, depth(height, width))
    for level, count in prefixes(model, encoder.finish(), (height, width)):
        full = model.sample(1, height, width, base_scale, generator, bands[level], level)
        coarse = pixels(model, bands[level])
        yield Stage(level, coarse[0].cpu(), full[0].to("cpu", torch.uint8), count)


def load_file(model, name, data):
    """Yield the Stages of the bytes of a .nwf file, each from so many of its first bytes and nothing else.

    model, name: frozen, and its identity. The prior's means stand for what was not read; the last bytes
    of a level hold a few symbols of the next, which count as read. Cut files have fewer Stages. Of 16 bits a
    sample, Stages have the high bytes.
    Raises ValueError if the flow did not make the file, if it is damaged, or if it has too few bytes for
    images of its size.
    """
    head = read_head(data)
    if head.method != FLOW:
        raise ValueError("a .nwf file without levels: another method was smaller than the flow")
    stream, size = data[head.end :], head.size[::-1]
    check_plausible(head.size, stream)
    level = depth(*size)
    for level, count in prefixes(model_of(head, model, name), stream, size, head.settings):
        count = count + head.end if level else len(data)
        coarse = unpack(data[:count], model, name, level)
        full = unpack(data[:count], model, name, partial=True) if level else coarse
        yield Stage(level, *(from_pillow(of_8_bits(picture)) for picture in (coarse, full)), count)
    if level:  # it ends early: was it cut there?
        unpack(data, model, name, partial=True)


@torch.no_grad()
def enlarge(model, images, doublings, base_scale=None, generator=None):
    """Images (B, 3, H, W), uint8 -> (B, 3, 2^doublings H, 2^doublings W), with details from the prior.

    An image is taken for the coarse band of one twice as large, again and again, all at the finest level: its
    pixels are the even ones of the result.
    base_scale, generator: as for model.sample.
    """
    x = model.from_images(images)
    for _ in range(doublings):
        height, width = x.shape[-2:]
        sizes = (2 * height, 2 * width), (height, width)
        x = finest(model.synthesise(channels_last(x), sizes, drawing(base_scale, generator)))
    return pixels(model, x)


@torch.no_grad()
def restore(model, images, doublings, base_scale=None, generator=None):
    """Images (B, 3, H, W) from their own coarse bands, so many levels down: method -> (B, 3, H, W), uint8.

    The methods: the interpolations of the coarse band in RGB; "learned", with details from the prior; and
    "averaged", the mean of samples: nearer than the prior's means, each of which those that follow take for
    the truth.
    base_scale, generator: as for model.sample.
    """
    size, coarse = images.shape[-2:], coarse_bands(model, images, doublings)[-1]
    back = interpolations(model.to_images(coarse), size, 2**doublings)
    learned = model.sample(len(images), *size, base_scale, generator, coarse, doublings)
    many = coarse.repeat(AVERAGED, 1, 1, 1)
    many = model.sample(len(many), *size, AVERAGED_SCALE, generator, many, doublings)
    averaged = many.unflatten(0, (AVERAGED, -1)).mean(0).round()
    return back | {"learned": learned.to(torch.uint8), "averaged": averaged.to(torch.uint8)}


def interpolations(images, size, factor, methods=tuple(KERNELS)):
    """Images (B, 3, h, w), integer-valued, larger by methods of KERNELS: method -> (B, 3, *size), uint8."""
    large = {method: interpolated(images, size, factor, method) for method in methods}
    return {method: x.round().clamp(0, 255).to(torch.uint8) for method, x in large.items()}


def measure(model, images, doublings, generator=None, batch=4):
    """How near `restore` brings images (N, 3, H, W), uint8: method -> mean PSNR and SSIM."""
    scores = {}
    for group in images.split(batch):
        restored = restore(model, group.to(model.device), doublings, generator=generator)
        for method, back in restored.items():
            pairs = list(zip(group, back.cpu()))
            near = [min(psnr(x, y), BEST_PSNR) for x, y in pairs]
            scores.setdefault(method, []).extend(zip(near, (ssim(x, y) for x, y in pairs)))
    return {method: tuple(sum(s) / len(images) for s in zip(*pairs)) for method, pairs in scores.items()}
