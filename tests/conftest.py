"""What the tests share: one thread, no deadlines, wild weights, a photograph."""

import signal

import pytest
import torch
from hypothesis import settings

from utils.data.datasets import PHOTOS
from utils.data.images import read_rgb

# Ctrl-C is under test, but a shell that runs the tests in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tensors here are small: more threads only get in each other's way.
torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def make_wild(module, std, seed=0):
    """Draw every parameter from a normal distribution and return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(std=std, generator=generator)
    return module


def noise(*shape, seed=0):
    """Draw integers 0..255 as floats."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.fixture(scope="session")
def photo():
    """The middle of a photograph, (1, 3, 512, 512) floats."""
    x = read_rgb(PHOTOS / "casa-mila.png")
    top, left = (x.shape[1] - 512) // 2, (x.shape[2] - 512) // 2
    return x[None, :, top : top + 512, left : left + 512].float()


@pytest.fixture
def by_flow(monkeypatch):
    """Files are made by the flow, however poor its model."""
    monkeypatch.setattr("flow.codec.container.pack_planes", lambda picture: {})


@pytest.fixture
def without_webp(monkeypatch):
    """Pictures are not stored as WebP: for models that are small, and no match for it."""
    monkeypatch.setattr("flow.codec.planes.pack_webp", lambda picture, search=None: None)
