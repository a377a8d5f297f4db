"""What the steps of a training see: the batches of an epoch, mirrored or with noise, on the device."""

import numpy as np
import torch


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


def add_noise(images, most, generator):
    """Add Gaussian noise to a third of (B, 3, H, W) uint8; its deviation is drawn from 0 .. `most` tones.

    Small photographs, and those from JPEG files, lack the grain of a camera's pixels.
    """
    some = torch.rand(len(images), generator=generator) < 1 / 3
    deviation = (most * torch.rand(len(images), generator=generator) * some)[:, None, None, None]
    noise = (deviation * torch.randn(images.shape, generator=generator)).to(images.device)
    return (images + noise).round_().clamp_(0, 255).to(torch.uint8)


class Batches:
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
        if self.options["noise"]:
            draw = np.random.SeedSequence((self.options["seed"], self.epoch, step, self.workers.rank))
            generator = torch.Generator().manual_seed(int(draw.generate_state(1)[0]))
            images = add_noise(images, self.options["noise"], generator)
        return images, len(index)
