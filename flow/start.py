"""A training that begins with the weights of another model: smaller, or without the transform."""

import re
from operator import gt

import torch

from source.bands import OUTPUT_GAIN
from source.networks import SLOW, with_means
from utils.arithmetic.integers import MIDDLE

CHANNELS = 3
# A component that becomes two: each half as likely, one narrower, one wider by so many octaves.
APART = 0.3
# What a sample of each band, as the parent sees it, is, nearly, in those that the model sees: its own, and of
# other bands the mean of here and the next, "h" across, "v" down. 0: the coarse band; 1, 2, 3: ur, dl, dr.
PIXELS_OF_LIFTING = {0: ""}, {1: "", 0: "h"}, {2: "", 0: "v"}, {3: "", 1: "v", 2: "h", 0: "hv"}
PIXELS_OF_DIFFERENCES = {0: ""}, {1: "", 0: "h"}, {2: "", 0: "v"}, {3: "", 0: "hv"}
DIFFERENCES_OF_LIFTING = {0: ""}, {1: ""}, {2: ""}, {3: "", 1: "v", 2: "h"}
THE_SAME = {0: ""}, {1: ""}, {2: ""}, {3: ""}
# Whether lifting is new, whether parent and model have -differences: this, but this of what -lifting luma
# leaves alone, and what samples that the model sees are less.
MADE_OF = {
    (True, False, False): (PIXELS_OF_LIFTING, PIXELS_OF_DIFFERENCES, MIDDLE),
    (True, False, True): (PIXELS_OF_LIFTING, PIXELS_OF_DIFFERENCES, 0),
    (True, True, True): (DIFFERENCES_OF_LIFTING, THE_SAME, 0),
    (False, False, True): (PIXELS_OF_DIFFERENCES, None, 0),
}
# Of residual blocks, of which a model may have more: the layers in them, by name.
BLOCK = re.compile(r"(trunk|blocks)\.\d+\.(wide|(?P<last>last))\.")
# Three taps -> those of the same filter behind that mean; what falls outside is added to the last.
NEXT = torch.tensor([[1 / 2, 1 / 2, 0], [0, 1 / 2, 1 / 2], [0, 0, 1]], dtype=torch.float64)


def inherit(model, parent):
    """Fill a model with the weights of another, `parent`: what it computes is then the parent's, or nearly.

    The model may have more levels of its own (-ownLevels), each of which begins as what served it before, or
    fewer: what serves the others then begins as what served the finest of these. It may have up to twice as
    many -components, of which those with the lowest numbers are halved. A band-wise prior may be wider
    (-width, -ownWidth): what was there does not read the further channels at first; and deeper (-blocks,
    -ownBlocks): further blocks add nothing at first. And it may come behind -lifting where the parent's comes
    behind none (-repeat 0), or have -differences where the parent has not: it reads pixels out of what it
    sees, nearly.
    Raises ValueError if other options of the architecture are different.
    """
    if model.ycocg != parent.ycocg:
        raise ValueError("-start: that model does not fit: one of the two has -HUE")
    given, taken = dict(parent.named_parameters()), set()
    bands = [name.removesuffix("base.weight") for name in given if name.endswith(".base.weight")]
    given |= {name: with_means(given[name], count, SLOW) for name, count in _slow(parent).items()}
    details = model.pyramid.level(0).details
    lifted = bool(bands) and details != "pixels" and not list(parent.pyramid.parameters())
    sight = lifted, _sees_differences(parent), _sees_differences(model)
    if sight in MADE_OF and (lifted or details == "pixels"):
        of_first, of_others, middle = MADE_OF[sight]
        others = of_others if details == "luma" else of_first
        given = _of_details(given, bands, [of_first, *(CHANNELS - 1) * [others]], middle)
    elif lifted or sight[1] != sight[2]:
        raise ValueError("-start: that model does not fit: one of the two has -differences")
    if lifted:
        given |= dict(model.pyramid.named_parameters(prefix="pyramid"))
    sets = len(getattr(parent.detail, "levels", []))
    slow = {_in_parent(name, sets): count for name, count in _slow(model).items()}
    given |= {n: with_means(given[n], count, 1 / SLOW) for n, count in slow.items() if n in given}
    with torch.no_grad():
        for name, p in model.named_parameters():
            there = _in_parent(name, sets)
            weight = given.get(there)
            taken.add(there)
            if weight is None and (further := BLOCK.search(name)):
                weight = torch.zeros_like(p) if further["last"] else p
            if weight is not None and ".out." in name:
                weight = _with_components(weight, len(p) // 3)
            if weight is not None and bands and name.startswith("detail."):
                weight = _widened(weight, p, len(weight) if ".out." in name else None)
            if weight is None or weight.shape != p.shape:
                raise ValueError(f"-start: that model does not fit: {name}")
            p.copy_(weight)
    wanted = len(getattr(model.detail, "levels", [None]))
    if left := {name for name in given.keys() - taken if _set_of(name) < wanted}:
        raise ValueError(f"-start: that model does not fit: it has {min(left)}")


def _slow(model):
    """The weights of which means of kernels learn slowly, by name, and for how many channels."""
    return {f"{name}.weight": part.slow for name, part in model.named_modules() if getattr(part, "slow", 0)}


def _sees_differences(model):
    return any(getattr(part, "differences", False) for part in model.detail.modules())


def _of_details(given, bands, made_of, middle):
    """The parameters of a band-wise prior of pixels, by name, for one of details; `bands` begin names.

    made_of, of each channel, and middle: see MADE_OF.
    """
    given, pixel = dict(given), torch.zeros(3, 3, dtype=torch.float64)
    pixel[1, 1] = 1
    for name in bands:
        band = 1 + int(name.split(".")[-2])
        known = list(range(band))
        base, enter = (
            [f"{name}{layer}.{kind}" for kind in ("weight", "bias")] for layer in ("base", "enter")
        )
        weight, bias = _folded(given[base[0]], given[base[1]], known, made_of, middle)
        for c, of in enumerate(made_of):
            for other, along in of[band].items():
                if other:
                    bias[c] -= middle
                if other != band:
                    weight[c, other * CHANNELS + c] -= _moved(pixel, along)
        given |= zip(base, (weight, bias))
        given |= zip(enter, _folded(given[enter[0]], given[enter[1]], [*known, band], made_of, middle))
    return given


def _folded(weight, bias, bands, made_of, middle):
    """A convolution of pixels, (O, bands x C, 3, 3), for coefficients; bands: which its C planes each are.

    made_of, middle: see _of_details.
    """
    parts, bias = weight.detach().double().unflatten(1, (-1, CHANNELS)), bias.detach().double().clone()
    result = torch.zeros_like(parts)
    for i, band in enumerate(bands):
        for c, of in enumerate(made_of):
            for other, along in of[band].items():
                result[:, i if other == band else bands.index(other), c] += _moved(parts[:, i, c], along)
                if other:
                    bias += middle * parts[:, i, c].sum((1, 2))
    return result.flatten(1, 2), bias


def _moved(taps, along):
    """Taps (.., 3, 3) that are to read the mean of here and the next."""
    taps = taps @ NEXT if "h" in along else taps
    return NEXT.T @ taps if "v" in along else taps


def _set_of(name):
    """Which of the sets of -ownLevels a parameter belongs to; 0 also where there is one alone."""
    return int(name.split(".")[2]) if name.startswith("detail.levels.") else 0


def _in_parent(name, sets):
    """The name of what served a level before it had weights of its own, or shared them with others.

    sets: how many the parent has, numbered; 0: one without a number.
    """
    if not name.startswith("detail."):
        return name
    level, own = _set_of(name), name.startswith("detail.levels.")
    rest = name.split(".", 3)[3] if own else name.removeprefix("detail.")
    return f"detail.levels.{min(level, sets - 1)}.{rest}" if sets else f"detail.{rest}"


def _with_components(weight, count):
    """Outputs, (3 K, ..) logits, means and octaves of K components -> the same of `count` components."""
    fields = weight.unflatten(0, (3, -1))
    more = min(count - fields.shape[1], fields.shape[1])
    if more <= 0:
        return weight
    grown = torch.cat([fields, fields[:, :more]], 1)
    if weight.ndim == 1:
        for halves, octaves in ((slice(more), -APART), (slice(-more, None), APART)):
            grown[0, halves] -= 1 / OUTPUT_GAIN
            grown[2, halves] += octaves / OUTPUT_GAIN
    return grown.flatten(0, 1)


def _widened(weight, p, rows=None):
    """A weight as the first channels of a parameter, which do not read the others; these stay as they are."""
    if any(map(gt, weight.shape, p.shape)):
        return weight
    result = p[:rows].clone()
    result[: len(weight)] = 0
    result[tuple(map(slice, weight.shape))] = weight.to(result)
    return result
