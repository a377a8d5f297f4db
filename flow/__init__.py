"""A learned wavelet: exactly invertible, lossless compression and generation of images of any size.

    from flow import Codec

    codec = Codec()                                    the model in the box; Codec("opt/NAME") for another
    data = codec.compress(picture)                     a PIL image or a uint8 array -> bytes of a .nwf file
    picture = codec.decompress(data)                   bytes -> the same picture, as a PIL image
    small = codec.decompress(data[:20000], levels=2)   a quarter as wide, from the first bytes
    codec.model.transform(images)                      (B, 3, H, W) -> top and details; inverse undoes it

Where to find what (imports go one way, flow -> source -> utils):

    flow.codec     pictures and images <-> bytes: Codec, the .nwf file, streams, many files at once
    flow.folder    model folders: open_model (real numbers, for training and figures), open_frozen (integers)
    flow.model     build: options -> NeuralWavelet, with transform, inverse, log_prob, sample and freeze
    flow.pyramid   the wavelet pyramid; its levels are in flow.coupling and flow.lifting
    flow.training  the training loop
    flow.pillow    to import, so that Pillow opens and saves .nwf files
    flow.options   the options of a model and of its training
    flow.analysis  filters and bases of a model; flow.zoom: progressive loading and super-resolution
    flow.figures   what the scripts that draw do
    source         priors, distributions, integer tables, rANS
    utils          exact arithmetic, image files, data sets, options, plots

The names below are imported when they are first used.
"""

from importlib import import_module

from utils import __version__ as __version__

_HOMES = {
    "Codec": "flow.codec.api",
    "build": "flow.model",
    "find_folder": "flow.folder",
    "open_frozen": "flow.folder",
    "open_model": "flow.folder",
}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__():
    return sorted({*globals(), *_HOMES})
