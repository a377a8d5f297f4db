"""From coarse to fine: images loaded level by level, and images made larger than they are."""

from typing import NamedTuple

import torch

from flow.codec.container import FLOW, read_head, unpack
from flow.codec.stream import DEFAULT, decode_levels, encode, pixels
from flow.pyramid import finest
from source.distribution import drawing
from source.rans import Decoder, Truncated
from utils.arithmetic.integers import centre
from utils.arithmetic.polyphase import channels_last, crop, depth
from utils.data.images import halve
from utils.show.quality import psnr, ssim
from utils.show.sheets import FILTERS, from_pillow, resized

# In the fit of colours: matters only in images so tiny that there is next to nothing to fit.
RIDGE = 1e-3
# What the PSNR of an image counts in a mean at most: images of one colour are often met exactly.
BEST_PSNR = 100.0


class Stage(NamedTuple):
    """An image (3, H, W), uint8, of which all but the `level` finest levels was read, in `bytes` bytes."""

    level: int
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
    """Yield the Stages of an image (3, H, W), coarsest first: real levels, finer ones from the prior.

    model: frozen; base_scale, generator: as for model.sample. The last Stage is the image itself.
    """
    height, width = image.shape[-2:]
    images = image[None].to(model.device)
    (encoder,) = encode(model, images)
    bands = coarse_bands(model, images, depth(height, width))
    for level, count in prefixes(model, encoder.finish(), (height, width)):
        full = model.sample(1, height, width, base_scale, generator, bands[level], level)
        yield Stage(level, full[0].to("cpu", torch.uint8), count)


def load_file(model, name, data):
    """Yield the Stages of the bytes of a .nwf file, each from so many of its first bytes and nothing else.

    model, name: frozen, and its identity. The prior's means stand for what was not read; the last bytes
    of a level hold a few symbols of the next, which count as read. Cut files have fewer Stages.
    Raises ValueError if the flow did not make the file.
    """
    head = read_head(data)
    if head.method != FLOW:
        raise ValueError("a .nwf file without levels: deflate was smaller than the flow")
    stream, size = data[head.end :], head.size[::-1]
    for level, count in prefixes(model, stream, size, head.settings):
        count += head.end
        yield Stage(level, from_pillow(unpack(data[:count], model, name, partial=level > 0)), count)


@torch.no_grad()
def enlarge(model, images, doublings, base_scale=None, generator=None, matched=True):
    """Images (B, 3, H, W), uint8 -> (B, 3, 2^doublings H, 2^doublings W), with details from the prior.

    An image is taken for the coarse band of one twice as large, again and again, all at the finest level.
    matched: brought to the colours of a coarse band first, see _colours.
    base_scale, generator: as for model.sample.
    """
    x = model.from_images(images)
    colours = _colours(model, images) if matched else None
    for _ in range(doublings):
        height, width = x.shape[-2:]
        if matched:
            x = torch.round(x + (_terms(x) @ colours).mT.reshape(x.shape))
        sizes = (2 * height, 2 * width), (height, width)
        x = finest(model.synthesise(channels_last(x), sizes, drawing(base_scale, generator)))
    return pixels(model, x)


def _colours(model, images):
    """What affine maps of colours add to images, halved, to bring them next to their coarse bands: (B, 4, 3).

    Nothing in the likelihood ties a learned coarse band to the brightness, the contrast and the colours of
    the image: each level may change them, and the prior expects what it does. Least squares, image by image.
    """
    half = model.from_images(halve(images))
    _, coarse = coarse_bands(model, images, 1)
    change = (crop(coarse, half.shape[-2:]) - half).flatten(2).mT
    terms = _terms(half)
    return torch.linalg.solve(terms.mT @ terms + RIDGE * torch.eye(4).to(terms), terms.mT @ change)


def _terms(x):
    """(B, 3, H, W) -> (B, H * W, 4): the centred channels, and 1."""
    return torch.cat([centre(x), torch.ones_like(x[:, :1])], 1).flatten(2).mT


def measure(model, images, doublings, batch=16):
    """Halve images (N, 3, H, W) so many times, enlarge them again: method -> mean PSNR and SSIM.

    The methods: those of utils.show.sheets.FILTERS, "learned" (the prior's means) and "learned, unmatched".
    """
    small = images
    for _ in range(doublings):
        small = halve(small)
    height, width = (n << doublings for n in small.shape[-2:])
    images, groups = crop(images, (height, width)), [group.to(model.device) for group in small.split(batch)]
    back = {m: [resized(image, (height, width), m) for image in small] for m in FILTERS}
    for method, matched in (("learned", True), ("learned, unmatched", False)):
        back[method] = torch.cat([enlarge(model, g, doublings, matched=matched) for g in groups]).cpu()
    means = {}
    for method, others in back.items():
        near = [min(psnr(x, y), BEST_PSNR) for x, y in zip(images, others)]
        means[method] = sum(near) / len(near), sum(map(ssim, images, others)) / len(near)
    return means
