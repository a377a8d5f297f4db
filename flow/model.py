"""The model: colour, pyramid and prior as one normalizing flow, and the options that it is built from."""

import copy

import torch
from torch import nn

from flow.coupling import CouplingLevel
from flow.lifting import CLASSICAL, lifting_level
from flow.pyramid import Pyramid
from source.bands import MAX_BLOCKS, BandPrior
from source.distribution import flat, joint
from source.prior import ConditionalPrior, PositionPrior, SimplePrior, TopPrior, against, walk
from utils.arithmetic.colour import rgb_to_ycocg, ycocg_to_rgb
from utils.arithmetic.integers import centre
from utils.arithmetic.polyphase import channels_last, depth, level_sizes
from utils.options import Option, check_values

# What the user types and parameter.json holds; translated to arguments in `build` alone.
ARCHITECTURE = {
    "repeat": Option(
        1, "couplings of each band at a level; with -lifting, pairs of predict and update", least=0, most=64
    ),
    "hchnl": Option(12, "channels of the networks' hidden layers", least=1, most=2048),
    "nhidden": Option(1, "1x1 layers between the first and the last layer of a network", least=0, most=32),
    "nMixing": Option(5, "logistic components of the mixture for the last 2x2 block", least=1, most=256),
    "simplePrior": Option(False, "details under one learned mean and scale for each band, without networks"),
    "diffDetail": Option(False, "with -simplePrior: separate for each level and position"),
    "HUE": Option(False, "put the lossless luma and chroma transform YCoCg-R in front of the flow"),
    "clamp": Option(-1.0, "limit of the absolute means of the mixture; -1: none", least=-1),
    "heavy": Option(False, "networks of its own for every level, in place of shared ones"),
    "lifting": Option(
        "none", "scheme 1, lifting of rows and columns, started as this classical wavelet; none: scheme 2",
        ("none", *CLASSICAL),
    ),
    "prior": Option(
        "paper",
        "of the details: paper, means and scales by two networks of the coarse band; bands, mixtures, band "
        "by band and channel by channel; simple, as -simplePrior",
        ("paper", "bands", "simple"),
    ),
    "width": Option(64, "channels of the networks of -prior bands", least=1, most=2048),
    "blocks": Option(
        1, "residual blocks of -prior bands for each band; twice as many before", least=0, most=MAX_BLOCKS
    ),
    "components": Option(3, "logistic components of the mixtures of -prior bands", least=1, most=32),
}  # fmt: skip
BANDS = "width", "blocks", "components"


class NeuralWavelet(nn.Module):
    """x -> (top, details) and its likelihood under a hierarchical prior.

    pyramid: Pyramid; top: TopPrior; detail: a prior of details as in source/prior.py; ycocg: whether the
    pyramid sees YCoCg-R in place of RGB.
    Images are (B, 3, H, W), integers 0..255 in any dtype, of any height and width.
    """

    def __init__(self, pyramid, top, detail, ycocg=False):
        super().__init__()
        self.pyramid, self.top, self.detail, self.ycocg = pyramid, top, detail, ycocg

    def freeze(self):
        """A copy in fixed point, on the CPU: everything it computes is equal bit for bit on any machine.

        Its distributions are in the integers of the entropy coder.
        Raises ValueError if the weights are too large.
        """
        frozen = copy.deepcopy(self).cpu().double()
        for level in frozen.pyramid.levels:
            level.freeze()
        frozen.top, frozen.detail = frozen.top.freeze(), frozen.detail.freeze()
        return frozen.requires_grad_(False).eval()

    @property
    def device(self):
        """Where the model computes."""
        return self.top.mean.device

    @property
    def dtype(self):
        """The type in which bands are held: float32, or float64 when frozen."""
        return self.top.mean.dtype if self.top.mean.is_floating_point() else torch.float64

    def enter(self, images):
        """Images (B, 3, H, W) of any dtype -> what the pyramid sees. Inverse: leave."""
        x = channels_last(images.to(self.dtype))
        return rgb_to_ycocg(x) if self.ycocg else x

    def leave(self, x):
        """Undo enter: RGB as integer-valued floats."""
        return ycocg_to_rgb(x) if self.ycocg else x

    def transform(self, images, depth=None):
        """Images -> top, [details of the finest level, ..., of the coarsest]; each detail is (ur, dl, dr).

        depth: the number of levels, by default down to 2x2 or less. Inverse: inverse.
        """
        return self.pyramid(self.enter(images), depth)

    def inverse(self, top, details):
        """Top and details -> images as integer-valued floats, exactly those that transform was given."""
        return self.leave(self.pyramid.inverse(top, details))

    def log_prob(self, images, levels=None):
        """Log-likelihood of images in nats: (B,). levels: as depth in transform."""
        x = self.enter(images)
        parts = []
        for i in range(depth(*x.shape[-2:]) if levels is None else levels):
            size = x.shape[-2:]
            x, detail = self.pyramid.level(i).split(x)
            parts += against(self.detail, x, i, size, detail, lambda given, values: (given, flat(values)))
        total = self.top(len(x), x.shape[-2:]).log_prob(x).flatten(1).sum(1)
        if parts:
            distributions, symbols = zip(*parts)
            total = total + joint(distributions).log_prob(torch.cat(symbols, -1)).sum(1)
        return total

    forward = log_prob

    @torch.no_grad()
    def sample(self, count, height, width, base_scale=0.0, generator=None, top=None, levels=None):
        """Draw images: the top from its mixture, then the details of each level given what is there.

        base_scale is added to every logscale of the details; None takes their means.
        top: real tops (B, 3, h, w) to go on from, `levels` levels below images of height x width.
        Returns (B, 3, height, width), clipped to 0..255.
        """
        sizes = level_sizes(height, width, depth(height, width) if levels is None else levels)
        x = self.top(count, sizes[-1]).sample(0.0, generator) if top is None else top
        for i in reversed(range(len(sizes) - 1)):
            x = self.refine(x, i, sizes[i], base_scale, generator)
        return self.leave(x).clamp(0, 255)

    def refine(self, coarse, level, size, base_scale=None, generator=None):
        """Merge a coarse band with details from the prior; size: (height, width) of the result."""

        def draw(distribution, band, channels):
            return distribution.mode() if base_scale is None else distribution.sample(base_scale, generator)

        return self.pyramid.level(level).merge(coarse, walk(self.detail, coarse, level, size, draw))


def build(options):
    """The model of a dict of options: those of ARCHITECTURE (its values where absent), and `size`.

    size, the side of the training images, matters to -heavy (as many levels as they have) and -diffDetail.
    Raises ValueError for values that make no model.
    """
    check_values(options, ARCHITECTURE)
    o = {name: option.default for name, option in ARCHITECTURE.items()} | options
    for name in BANDS:
        if o["prior"] != "bands" and o[name] != ARCHITECTURE[name].default:
            raise ValueError(f"-{name} is of -prior bands: give that too")
    if o["simplePrior"] and o["prior"] == "bands":
        raise ValueError("-simplePrior and -prior bands: need one of them at most")
    simple = o["simplePrior"] or o["prior"] == "simple"
    if o["diffDetail"] and not simple:
        raise ValueError("-diffDetail is a form of the simple prior: give -simplePrior too")
    if o["lifting"] != "none" and not o["repeat"]:
        raise ValueError("-repeat 0: lifting needs at least one predict and update")
    side = o.get("size")
    if (o["heavy"] or o["diffDetail"]) and not side:
        raise ValueError("-heavy and -diffDetail need training images of one size")

    def level():
        if o["lifting"] == "none":
            return CouplingLevel(o["repeat"], o["hchnl"], o["nhidden"])
        return lifting_level(o["lifting"], o["repeat"], o["hchnl"], o["nhidden"])

    pyramid = Pyramid(level() for _ in range(max(depth(side, side), 1) if o["heavy"] else 1))
    # couplings start as the identity, with pixels for details; lifting with differences, around 0
    start = 0.0 if o["lifting"] == "none" else centre(0)
    if o["diffDetail"]:
        detail = PositionPrior((side, side), depth(side, side), start)
    elif simple:
        detail = SimplePrior(start)
    elif o["prior"] == "bands":
        detail = BandPrior(o["width"], o["blocks"], o["components"], start=start)
    else:
        detail = ConditionalPrior(o["hchnl"], o["nhidden"], start)
    return NeuralWavelet(pyramid, TopPrior(o["nMixing"], o["clamp"]), detail, o["HUE"])
