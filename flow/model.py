"""The model: colour, pyramid and prior as one normalizing flow, and the options that it is built from."""

import torch
from torch import nn

from flow.coupling import CouplingLevel
from flow.lifting import lifting_level
from flow.options import ARCHITECTURE, BAND_PRIOR_OPTIONS
from flow.pyramid import Pyramid, finest
from source.bands import BandPrior
from source.distribution import concatenated, drawing, flattened
from source.prior import (
    ConditionalPrior,
    LevelPriors,
    PositionPrior,
    SimplePrior,
    TopPrior,
    empty_details,
    parts_in_turn,
)
from utils.arithmetic.colour import rgb_to_ycocg, ycocg_to_rgb
from utils.arithmetic.crew import crew
from utils.arithmetic.fixed import observe
from utils.arithmetic.integers import centre
from utils.arithmetic.polyphase import channels_last, depth, level_sizes
from utils.options import check_values

# Images whose activations are observed together.
OBSERVED_AT_ONCE = 4


class NeuralWavelet(nn.Module):
    """x -> (top, details) and its likelihood under a hierarchical prior.

    pyramid: Pyramid; top: TopPrior; detail: a prior of details as in source/prior.py; ycocg: whether the
    pyramid sees YCoCg-R in place of RGB.
    Images are (B, 3, H, W), integers 0..255 in any dtype, of any height and width.
    """

    def __init__(self, pyramid, top, detail, ycocg=False):
        super().__init__()
        self.pyramid, self.top, self.detail, self.ycocg = pyramid, top, detail, ycocg

    def freeze(self, images=None):
        """A model in integers, on the CPU: everything it computes is equal bit for bit on any machine.

        images: (B, 3, H, W), such as it is to code, whose activations tell the ranges of those in 8 bits;
        None: a guess, for a model whose integers are to be filled in.
        Its distributions are in the coder's integers.
        Raises ValueError if the weights are too large.
        """
        with observe(self) as peaks, torch.no_grad(), crew():
            for group in () if images is None else images.to(self.device).split(OBSERVED_AT_ONCE):
                self.log_prob(group)
        levels = [level.freeze(peaks) for level in self.pyramid.levels]
        frozen = NeuralWavelet(Pyramid(levels), self.top.freeze(), self.detail.freeze(peaks), self.ycocg)
        return frozen.requires_grad_(False).eval()

    @property
    def device(self):
        """Where the model computes."""
        return self.top.mean.device

    @property
    def dtype(self):
        """The type in which bands are held: float32 has all integers that occur."""
        return self.top.mean.dtype if self.top.mean.is_floating_point() else torch.float32

    def from_images(self, images):
        """Images (B, 3, H, W) of any dtype -> what the pyramid sees. Inverse: to_images."""
        x = channels_last(images.to(self.dtype))
        return rgb_to_ycocg(x) if self.ycocg else x

    def to_images(self, x):
        """Undo from_images: RGB as integer-valued floats."""
        return ycocg_to_rgb(x) if self.ycocg else x

    def transform(self, images, depth=None):
        """Images -> top, [details of the finest level, ..., of the coarsest]; each detail is (ur, dl, dr).

        depth: the number of levels, by default down to 2x2 or less. Inverse: inverse.
        """
        return self.pyramid(self.from_images(images), depth)

    def inverse(self, top, details):
        """Top and details -> images as integer-valued floats, exactly those that transform was given."""
        return self.to_images(self.pyramid.inverse(top, details))

    def log_prob(self, images, levels=None):
        """Log-likelihood of images in nats: (B,). levels: as depth in transform."""
        top, details, _ = self._log_probs(images, levels)
        return top.sum(1) + details.sum(1)

    def forward(self, images, by_band=False):
        """log_prob; with by_band also what each band has of it, summed over images: (1 + 3 levels,), float64.

        First the top, then ur, dl and dr of the finest level, of the next one, ...
        """
        top, details, bands = self._log_probs(images)
        total = top.sum(1) + details.sum(1)
        if not by_band:
            return total
        sums = total.new_zeros(1 + 3 * depth(*images.shape[-2:]), dtype=torch.float64)
        sums[0] = top.sum(dtype=torch.float64)
        for (level, band, _), part in zip(bands, details.split([count for _, _, count in bands], 1)):
            sums[1 + 3 * level + band] += part.sum(dtype=torch.float64)
        return total, sums

    def _log_probs(self, images, levels=None):
        """Log-likelihoods of the values of the top, (B, n), and of those of the details, (B, m).

        And whose the latter are, part by part: (level, band as in a Part, number of values).
        """
        x = self.from_images(images)
        analysis, parts = self.pyramid.analyse(x, levels), []
        for level, x, detail in analysis:
            parts += ((level, *part) for part in parts_in_turn(self.detail, x, level, detail))
        top = self.top(len(x), x.shape[-2:]).log_prob(x).flatten(1)
        if not parts:
            return top, top[:, :0], []
        numbers, places, distributions, values = zip(*parts)
        values = [flattened(part) for part in values]
        bands = [(level, place.band, part.shape[1]) for level, place, part in zip(numbers, places, values)]
        return top, concatenated(distributions).log_prob(torch.cat(values, -1)), bands

    @torch.no_grad()
    def sample(self, count, height, width, base_scale=0.0, generator=None, top=None, levels=None):
        """Draw images: the top from its mixture, then the details of each level given what is there.

        base_scale is added to every logscale of the details; None takes their means.
        top: real tops (B, 3, h, w) to go on from, `levels` levels below images of height x width.
        Returns (B, 3, height, width), clipped to 0..255.
        """
        sizes = level_sizes(height, width, depth(height, width) if levels is None else levels)
        x = self.top(count, sizes[-1]).sample(0.0, generator) if top is None else top
        x = finest(self.synthesise(x, sizes, drawing(base_scale, generator)))
        return self.to_images(x).clamp(0, 255)

    def synthesise(self, coarse, sizes, values_of, last=0):
        """Yield (level, band) as pyramid.synthesise does, from coarse on, with details given the prior.

        sizes: (height, width) of the image and of each of its coarse bands, the last that of `coarse`.
        values_of: distribution -> values of a part of the details, (B, c, h, w), all parts in turn.
        """

        def details_of(band, level):
            detail = empty_details(band, sizes[level])
            for _, distribution, values in parts_in_turn(self.detail, band, level, detail, known=False):
                values.copy_(values_of(distribution))
            return detail

        return self.pyramid.synthesise(coarse, len(sizes) - 1, details_of, last)


def build(options):
    """The model of a dict of options: those of ARCHITECTURE (its values where absent), and `size`.

    size, the side of the training images, matters to -heavy (as many levels as they have) and -diffDetail.
    Raises ValueError for values that make no model.
    """
    check_values(options, ARCHITECTURE)
    o = {name: option.default for name, option in ARCHITECTURE.items()} | options
    for name in BAND_PRIOR_OPTIONS:
        if o["prior"] != "bands" and o[name] != ARCHITECTURE[name].default:
            raise ValueError(f"-{name} is of -prior bands: give that too")
    if o["simplePrior"] and o["prior"] == "bands":
        raise ValueError("-simplePrior and -prior bands: need one of them at most")
    simple = o["simplePrior"] or o["prior"] == "simple"
    for name in ("ownWidth", "ownBlocks"):
        if o[name] and not o["ownLevels"]:
            raise ValueError(f"-{name} is of the networks of -ownLevels: give that too")
    if o["diffDetail"] and not simple:
        raise ValueError("-diffDetail is a form of the simple prior: give -simplePrior too")
    if o["lifting"] != "none" and not o["repeat"]:
        raise ValueError("-repeat 0: lifting needs at least one predict and update")
    if o["lifting"] == "luma" and not o["HUE"]:
        raise ValueError("-lifting luma: there is luma with -HUE alone")
    side = o.get("size")
    if (o["heavy"] or o["diffDetail"]) and not side:
        raise ValueError("-heavy and -diffDetail need training images of one size")

    def level():
        if o["lifting"] == "none":
            return CouplingLevel(o["repeat"], o["hchnl"], o["nhidden"])
        return lifting_level(o["lifting"], o["repeat"], o["hchnl"], o["nhidden"])

    pyramid = Pyramid(level() for _ in range(max(depth(side, side), 1) if o["heavy"] else 1))
    start = centre(pyramid.level(0).flat)
    if o["diffDetail"]:
        detail = PositionPrior((side, side), depth(side, side), start)
    elif simple:
        detail = SimplePrior(start)
    elif o["prior"] == "bands":
        shape = {name: o[name] for name in ("components", "differences")}
        own = o["ownWidth"] or o["width"], o["ownBlocks"] or o["blocks"]
        sizes = [*o["ownLevels"] * [own], (o["width"], o["blocks"])]
        details = pyramid.level(0).details
        priors = [BandPrior(*size, **shape, details=details) for size in sizes]
        detail = LevelPriors(priors) if o["ownLevels"] else priors[0]
    else:
        detail = ConditionalPrior(o["hchnl"], o["nhidden"], start)
    return NeuralWavelet(pyramid, TopPrior(o["nMixing"], o["clamp"]), detail, o["HUE"])
