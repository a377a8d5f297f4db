"""The codec as a library: Codec, pictures <-> bytes under the model of a folder."""

from functools import cached_property
from itertools import groupby

import numpy as np
import torch

from flow.codec.container import pack, unpack
from flow.codec.deep import Deep
from flow.codec.options import EFFORT
from flow.codec.pictures import as_picture, colours
from flow.codec.planes import DEFAULT_EFFORT
from flow.codec.stream import DEFAULT, encode, has_luma_alone
from flow.folder import find_folder, open_frozen, open_model
from utils.arithmetic.crew import crew
from utils.arithmetic.products import trials

# Images whose likelihood is computed together have so many pixels at most.
BATCH_PIXELS = 1 << 18


class Codec:
    """Pictures <-> bytes of .nwf files, without loss. The model is loaded once, here.

    folder: a model folder; None: the model in the box.
    device: where to compute. threads: how many one call may use; None: as torch is set.
    weights: best_test, best_train or latest; None: the first of them that is there.
    settings: how probabilities become integers; files keep them, and any Codec of the model reads them.
    Attributes: model, the NeuralWavelet in fixed point; identity, the hash of its integers that files name.

    A picture is a PIL image of mode 1, L, LA, P, RGB or RGBA, whose ICC profile, EXIF, XMP, gamma,
    transparency, DPI and texts are kept, or a uint8 array: (H, W) or (H, W, 1) is L, (H, W, 2) LA, (H, W, 3)
    RGB, (H, W, 4) RGBA. Of 16 bits a sample it is a uint16 array, or a PIL image of mode I;16.
    Several threads may use one Codec at once.
    Raises ValueError for what is no model, and its methods for what is no picture or no whole file.
    """

    def __init__(self, folder=None, device="cpu", threads=None, weights=None, settings=DEFAULT):
        if threads is not None and threads < 1:
            raise ValueError(f"{threads} threads: need at least 1, or None")
        self.threads, self.settings = threads or torch.get_num_threads(), settings
        self._opened = find_folder(folder), weights, device
        self.model, _, self.identity = open_frozen(*self._opened)
        for wide in (False, True):  # threads that meet in the trials would spoil their times
            trials(self.model.device, wide)

    def compress(self, picture, effort=DEFAULT_EFFORT, progress=None, undo=True):
        """A picture -> the bytes of the smallest .nwf file that holds it. Inverse: decompress.

        effort: 1 .. 9: how much to adapt to the picture; above 6, up to about a minute a megapixel.
        progress: called with how many of three values for each pixel are done since, by any thread.
        undo: look for the luma and chroma that a picture was made of, as a decoded JPEG file was.
        """
        if not EFFORT.least <= effort <= EFFORT.most:
            raise ValueError(f"effort {effort}: need {EFFORT.bounds}")
        picture = as_picture(picture)
        with crew(self.threads):
            how = dict(effort=effort, progress=progress, learned=lambda: self._learned, undo=undo)
            return pack(picture, self.model, self.identity, self.settings, **how)

    @cached_property
    def _learned(self):
        """The model in real numbers."""
        return open_model(*self._opened)[0]

    def decompress(self, data, levels=0, partial=False, progress=None):
        """The bytes of a .nwf file -> its picture, a PIL image; np.asarray makes it an array.

        Of 16 bits a sample, unless in grey, it is a Deep of flow.codec.deep, as Pillow has none.
        levels: leave out so many of the finest levels: the coarse band below them as a picture, for which
        the first part is enough, of 8 bits a sample. It has the picture's colours where the low pass keeps
        them.
        partial: decode a file that was cut, with the prior's means in place of what it lacks.
        progress: called with how many of three values for each pixel were read since.
        Raises ValueError for what is no whole file; with partial, Corrupt, whose picture is what is sound.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise ValueError(f"{type(data).__name__} to decompress: need the bytes of a .nwf file")
        with crew(self.threads):
            return unpack(bytes(data), self.model, self.identity, levels, partial, progress)

    @torch.no_grad()
    def bits(self, images):
        """The bits that each image takes by its likelihood: float64 array (N,), of a file without its head.

        images: N pictures, grey or in colour, without alpha; an array (N, H, W, 3) is N of them.
        """
        total = []
        pictures = [_opaque(as_picture(image)) for image in images]
        with crew(self.threads):
            for ((width, height), mode), alike in groupby(pictures, lambda p: (p.size, p.mode)):
                batches = torch.from_numpy(np.stack(list(map(colours, alike)))).permute(0, 3, 1, 2)
                for batch in batches.split(max(BATCH_PIXELS // (height * width), 1)):
                    total += self._bits(batch.to(self.model.device), mode == "L")
        return np.array(total)

    def _bits(self, batch, grey):
        if grey and has_luma_alone(self.model, batch):
            settings = self.settings._replace(luma=True)
            return [encoder.bits for encoder in encode(self.model, batch, settings)]
        return (-self.model.log_prob(batch) / np.log(2)).tolist()


def _opaque(picture):
    if isinstance(picture, Deep):
        raise ValueError("an image of 16 bits a sample: only of 8 have a likelihood")
    if picture.mode not in ("L", "RGB"):
        raise ValueError(f"an image of mode {picture.mode}: only L and RGB have a likelihood")
    return picture
