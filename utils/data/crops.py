"""Pictures of any size, and crops of them drawn anew for every step of a training."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from utils.data.datasets import pictures_of, weighted_names
from utils.data.origins import imitate

# JPEG's blocks begin anywhere in a crop: it is cut out of so much more, where the picture has it.
MARGIN = 16


class Source(NamedTuple):
    """Pictures of one set, uint8 (3, H, W), and how likely they are: the cumulative share of each."""

    pictures: list | torch.Tensor
    share: np.ndarray


class Pictures:
    """The pictures of a target, from which crops are drawn.

    target: as in utils.data.datasets.load; "NAME*3" is drawn from three times as often as "NAME".
    size: the side of crops; smaller pictures are left out. Others as in load.
    Raises ValueError as load does.
    """

    def __init__(self, target, data="data", size=32, workers=0, progress=True, scales=1):
        self.size, self.sources, weights = size, [], []
        for name, weight in weighted_names(target):
            for pictures in pictures_of(name, data, size, workers, progress, scales):
                # every place in every picture is as likely as any other
                places = np.array([(p.shape[1] - size + 1) * (p.shape[2] - size + 1) for p in pictures])
                self.sources.append(Source(pictures, np.cumsum(places) / places.sum()))
                weights.append(weight)
        self.share = np.cumsum(weights) / sum(weights)
        self.pool = ThreadPoolExecutor(max(workers, 1), "crops")

    def __len__(self):
        """The number of pictures."""
        return sum(len(source.pictures) for source in self.sources)

    def draw(self, rng, augment):
        """A crop: uint8 (3, size, size). rng: numpy's; augment: an Augment."""
        source = self.sources[_chosen(self.share, rng)]
        picture = source.pictures[_chosen(source.share, rng)]
        size = [min(side, self.size + MARGIN) for side in picture.shape[1:]]
        top, left = (rng.integers(whole - side + 1) for whole, side in zip(picture.shape[1:], size))
        crop = picture[:, top : top + size[0], left : left + size[1]]
        crop = crop.permute(1, 2, 0).numpy()
        if rng.random() < augment.grey:
            luma = np.asarray(Image.fromarray(np.ascontiguousarray(crop)).convert("L"))
            crop = np.repeat(luma[..., None], 3, -1)
        if rng.random() < augment.origins:
            crop = imitate(np.ascontiguousarray(crop), rng)
        top, left = (rng.integers(side - self.size + 1) for side in size)
        crop = crop[top : top + self.size, left : left + self.size]
        if augment.flip and rng.random() < 0.5:
            crop = crop[:, ::-1]
        if augment.transpose and rng.random() < 0.5:
            crop = crop.swapaxes(0, 1)
        return torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)


class Augment(NamedTuple):
    """What happens to crops: the share that is grey, of other origins; mirrored, turned over half of them."""

    grey: float = 0.0
    origins: float = 0.0
    flip: bool = False
    transpose: bool = False


def _chosen(cumulative, rng):
    """Draw an index, given the cumulative sums of the probabilities."""
    return min(int(np.searchsorted(cumulative, rng.random(), "right")), len(cumulative) - 1)
