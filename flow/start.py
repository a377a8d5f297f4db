"""A training that begins with the weights of another model, which may be smaller."""

import torch

from source.bands import OUTPUT_GAIN

# A component that becomes two: each half as likely, one narrower, one wider by so many octaves.
APART = 0.3


def inherit(model, parent):
    """Fill a model with the weights of another, `parent`: what it computes is then the parent's, or nearly.

    The model may have more levels of its own (-ownLevels), each of which begins as what served it before, and
    up to twice as many -components, of which those with the lowest numbers are halved.
    Raises ValueError if other options are different.
    """
    given = dict(parent.named_parameters())
    with torch.no_grad():
        for name, p in model.named_parameters():
            weight = given.get(_in_parent(name, given))
            if weight is not None and ".out." in name:
                weight = _with_components(weight, len(p) // 3)
            if weight is None or weight.shape != p.shape:
                raise ValueError(f"-start: that model does not fit: {name}")
            p.copy_(weight)


def _in_parent(name, given):
    """The name of what served a level before it had weights of its own."""
    if name in given or not name.startswith("detail.levels."):
        return name
    _, _, level, rest = name.split(".", 3)
    while f"detail.levels.{level}.{rest}" not in given and int(level) > 0:
        level = str(int(level) - 1)
    name = f"detail.levels.{level}.{rest}"
    return name if name in given else f"detail.{rest}"


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
