"""The flow and its prior as the original did them: interleaved latents, permuted copies, plain convolutions.

Written from the paper's method alone and sharing nothing with flow/ and source/: the reference that their
numbers are checked against, and the baseline of benchmark_training.py.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

TINY = 1e-25


class RoundStraightThrough(torch.autograd.Function):
    """Round to the nearest integer, with the identity as gradient."""

    @staticmethod
    def forward(ctx, x):
        """Return x rounded."""
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        """Hand the gradient through."""
        return gradient


def to_network_range(v):
    """Bring integers 0..255 to [-1/2, 1/2): c(v) = (v - 128) / 256."""
    return (v - 128) / 256


def make_network(inputs, outputs, hchnl, nhidden):
    """Build conv3x3, ReLU, nhidden x [conv1x1, ReLU], conv3x3; the last layer is zero."""
    layers = [nn.Conv2d(inputs, hchnl, 3, padding=1, padding_mode="replicate"), nn.ReLU()]
    for _ in range(nhidden):
        layers += [nn.Conv2d(hchnl, hchnl, 1), nn.ReLU()]
    layers.append(nn.Conv2d(hchnl, outputs, 3, padding=1, padding_mode="replicate"))
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


def image_to_groups(x):
    """Gather 2x2 patches in the order ul, ur, dl, dr: (B, C, H, W) -> (B, C, H/2 * W/2, 4).

    Inverse: groups_to_image, where H = W.
    """
    b, c, h, w = x.shape
    patches = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 2, 4, 3, 5).contiguous()
    return patches.view(b, c, h * w // 4, 4)


def groups_to_image(groups):
    """Lay 2x2 patches back into square images: (B, C, N, 4) -> (B, C, 2 sqrt N, 2 sqrt N).

    Inverse: image_to_groups.
    """
    b, c, n, _ = groups.shape
    half = math.isqrt(n)
    patches = groups.view(b, c, half, half, 2, 2).permute(0, 1, 2, 4, 3, 5).contiguous()
    return patches.view(b, c, 2 * half, 2 * half)


def naive_log_pmf(z, mean, logscale):
    """Return the log-probability of integers z under the discretised logistic, as the original wrote it.

    mean and logscale are in the networks' range; nats. Where the sigmoids cancel, the answer is log TINY.
    """
    scale = logscale.exp()
    above = torch.sigmoid((to_network_range(z + 0.5) - mean) / scale)
    below = torch.sigmoid((to_network_range(z - 0.5) - mean) / scale)
    return torch.log(above - below + TINY)


def stable_log_pmf(z, mean, logscale):
    """Return what naive_log_pmf means, in float64 and without cancellation.

    With a < b the ends of the bin, sigma(b) - sigma(a) = sigma(b) sigma(-a) (1 - exp(a - b)).
    """
    z, mean, scale = z.double(), mean.double(), logscale.double().exp()
    above = (to_network_range(z + 0.5) - mean) / scale
    below = (to_network_range(z - 0.5) - mean) / scale
    return F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-1 / (256 * scale)))


class Original(nn.Module):
    """z = f(x): square images to interleaved latents of the same shape, 2^level pixels apart on each level.

    size: side of the images, a power of two; repeat, hchnl, nhidden, nmixing: the published options.
    log_pmf: the discretised logistic, naive_log_pmf or stable_log_pmf.
    """

    def __init__(self, size, repeat, hchnl, nhidden, nmixing, log_pmf=naive_log_pmf):
        """Build an identity transform and a prior of unit scale."""
        super().__init__()
        if size < 2 or size & (size - 1):
            raise ValueError(f"size {size}: need a power of two, at least 2")
        self.depth = size.bit_length() - 2
        self.log_pmf = log_pmf
        self.couplings = nn.ModuleList(make_network(9, 3, hchnl, nhidden) for _ in range(4 * repeat))
        self.mean = make_network(3, 9, hchnl, nhidden)
        self.logscale = make_network(3, 9, hchnl, nhidden)
        self.top_mean = nn.Parameter(torch.randn(nmixing, 3, 2, 2) / 8)
        self.top_logscale = nn.Parameter(torch.zeros(nmixing, 3, 2, 2))
        self.top_logits = nn.Parameter(torch.zeros(nmixing, 3, 2, 2))

    def forward(self, x):
        """Return the latents (B, 3, size, size) of images of that shape. Inverse: inverse."""
        return self.analyse(x)[0]

    def inverse(self, latent):
        """Return the images of latents. Inverse: forward."""
        x = latent.clone()
        for level in reversed(range(self.depth)):
            step = 2**level
            x[..., ::step, ::step] = self.couple(x[..., ::step, ::step].contiguous(), inverse=True)
        return x

    def log_prob(self, x):
        """Return the log-likelihood of integer-valued images (B, 3, size, size), in nats an image: (B,)."""
        latent, parameters = self.analyse(x)
        total = 0
        for level, (mean, logscale) in enumerate(parameters):
            groups = image_to_groups(latent[..., :: 2**level, :: 2**level].contiguous())
            # the prior's nine channels are ur, dl, dr, three colours each
            details = groups[..., 1:].permute(0, 3, 1, 2).contiguous().view(mean.shape)
            total = total + self.log_pmf(details, mean, logscale).flatten(1).sum(1)
        top = latent[..., :: 2**self.depth, :: 2**self.depth].contiguous().unsqueeze(1)
        components = self.log_pmf(top, self.top_mean, self.top_logscale)
        mixture = torch.logsumexp(torch.log_softmax(self.top_logits, 0) + components, 1)
        return total + mixture.flatten(1).sum(1)

    def analyse(self, x):
        """Return latents, and the prior's (mean, logscale) of each level's details, finest first."""
        latent = x.to(self.top_mean.dtype).clone()
        parameters = []
        for level in range(self.depth):
            step = 2**level
            coupled = self.couple(latent[..., ::step, ::step].contiguous())
            latent[..., ::step, ::step] = coupled
            ul = to_network_range(coupled[..., ::2, ::2].contiguous())
            parameters.append((self.mean(ul), self.logscale(ul)))
        return latent, parameters

    def couple(self, x, inverse=False):
        """Run one level's couplings, or undo them, on a coarse image (B, 3, h, h)."""
        b, c, h, _ = x.shape
        groups = image_to_groups(x)
        bands = [groups[..., k].contiguous().view(b, c, h // 2, h // 2) for k in range(4)]
        order = range(len(self.couplings))
        for i in reversed(order) if inverse else order:
            k = i % 4
            others = torch.cat([bands[j] for j in range(4) if j != k], 1)
            shift = RoundStraightThrough.apply(256 * self.couplings[i](to_network_range(others)))
            bands[k] = bands[k] - shift if inverse else bands[k] + shift
        return groups_to_image(torch.stack([band.view(b, c, -1) for band in bands], -1))
