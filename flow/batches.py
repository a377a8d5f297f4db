"""What the steps of a training see: the batches of an epoch, fixed patches or fresh crops, on the device."""

import numpy as np
import torch

from utils.data.crops import Augment, Pictures

# Steps whose crops are drawn before they are needed.
CROPS_AHEAD = 4


def epoch_batches(sizes, batch, seed, epoch):
    """The batches of an epoch: a list of (data set, indices), the same for the same seed and epoch.

    sizes: the number of images of each data set; a batch has images of one of them.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    orders = [torch.randperm(n, generator=generator) for n in sizes]
    batches = [(which, part) for which, order in enumerate(orders) for part in order.split(batch)]
    if len(sizes) == 1:
        return batches
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def mirrored(sizes, seed, epoch):
    """The images to mirror in an epoch: bool (N,) of each data set, the same for the same seed and epoch.

    sizes: the number of images of each data set.
    """
    # another generator than that of epoch_batches, whose numbers have made the order
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) ^ 0xF11B)
    return [torch.rand(n, generator=generator) < 0.5 for n in sizes]


def to_device(images, device):
    """Move a uint8 data set to the device, unless it would take more than half of a GPU's free memory."""
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return images.pin_memory()
    return images.to(device)


def select(images, index, device):
    """The images of an index as a batch on the device."""
    return images[index.to(images.device)].to(device, non_blocking=True)


def mirror(images, which):
    """Mirror, left to right, those of (B, 3, H, W) that `which`, bool (B,), tells."""
    return torch.where(which.to(images.device)[:, None, None, None], images.flip(-1), images)


def windows(images, by, places):
    """Cut (B, 3, H, W) down by so many rows and columns, `places` (B, 2) of them before each window."""
    height, width = (side - by for side in images.shape[-2:])
    pairs = zip(images, places.tolist())
    return torch.stack([x[:, top : top + height, left : left + width] for x, (top, left) in pairs])


def add_noise(images, most, generator):
    """Add Gaussian noise to a third of (B, 3, H, W) uint8; its deviation is drawn from 0 .. `most` tones.

    Small photographs, and those from JPEG files, lack the grain of a camera's pixels.
    """
    some = torch.rand(len(images), generator=generator) < 1 / 3
    deviation = (most * torch.rand(len(images), generator=generator) * some)[:, None, None, None]
    noise = (deviation * torch.randn(images.shape, generator=generator)).to(images.device)
    return (images + noise).round_().clamp_(0, 255).to(torch.uint8)


def with_noise(images, options, epoch, step, workers):
    """A process's share of a step's images with the noise that the options ask for."""
    if not options["noise"]:
        return images
    seed = np.random.SeedSequence((options["seed"], epoch, step, workers.rank)).generate_state(1)[0]
    return add_noise(images, options["noise"], torch.Generator().manual_seed(int(seed)))


def batches_of(images, options, epoch, workers):
    """The batches of an epoch of Pictures, or of a list of uint8 tensors: Crops or Patches."""
    kind = Crops if isinstance(images, Pictures) else Patches
    return kind(images, options, epoch, workers)


class Crops:
    """Crops of Pictures, drawn anew for each step; the same for the same options, epoch and step.

    Those of the steps to come are drawn while one is computed. Arguments and methods as of Patches.
    """

    def __init__(self, pictures, options, epoch, workers):
        self.pictures, self.options, self.epoch, self.workers = pictures, options, epoch, workers
        self.augment = Augment(*(options[name] for name in Augment._fields))
        self.drawn = {}

    def __len__(self):
        return -(-self.options["crops"] // self.options["batch"])

    def images(self, steps=None):
        """The number of images in the first so many batches; None: in all."""
        return self.options["batch"] * (len(self) if steps is None else steps)

    def share(self, step, device):
        """The images of a batch that are this process's, on the device, and the number of all of them."""
        for later in range(step, min(step + CROPS_AHEAD, len(self))):
            if later not in self.drawn:
                self.drawn[later] = self.pictures.pool.submit(self._draw, later)
        return self.drawn.pop(step).result().to(device), self.options["batch"]

    def _draw(self, step):
        mine = range(self.workers.rank, self.options["batch"], self.workers.count)
        images = []
        for i in mine:
            # a generator for each image: other numbers of processes see the same
            rng = np.random.default_rng((self.options["seed"], self.epoch, step, i))
            images.append(self.pictures.draw(rng, self.augment))
        return with_noise(torch.stack(images), self.options, self.epoch, step, self.workers)


class Patches:
    """The batches of an epoch, and this process's share of each; the same for the same options and epoch.

    sets: uint8 tensors (N, 3, S, S), one for each size; options: those of TRAINING; workers: Workers.
    """

    def __init__(self, sets, options, epoch, workers):
        self.sets, self.options, self.epoch, self.workers = sets, options, epoch, workers
        sizes, seed = [len(images) for images in sets], options["seed"]
        batches = epoch_batches(sizes, options["batch"], seed, epoch)
        self.batches = [batch for batch in batches if len(batch[1]) >= workers.count]
        self.flips = mirrored(sizes, seed, epoch) if options["flip"] else None

    def __len__(self):
        return len(self.batches)

    def images(self, steps=None):
        """The number of images in the first so many batches; None: in all."""
        return sum(len(index) for _, index in self.batches[:steps])

    def share(self, step, device):
        """The images of a batch that are this process's, on the device, and the number of all of them."""
        which, index = self.batches[step]
        mine = index[self.workers.rank :: self.workers.count]
        images = select(self.sets[which], mine, device)
        if self.flips:
            images = mirror(images, self.flips[which][mine])
        if (by := self.options["shift"]) and (self.epoch + step) % 2:
            rng = np.random.default_rng((self.options["seed"], self.epoch, step))
            places = rng.integers(0, by, (len(index), 2), endpoint=True)
            images = windows(images, by, places[self.workers.rank :: self.workers.count])
        return with_noise(images, self.options, self.epoch, step, self.workers), len(index)
