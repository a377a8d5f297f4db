"""Crops drawn anew, and imitations of other origins."""

import numpy as np
import pytest
import torch

from flow.batches import Crops, Patches, batches_of
from flow.options import TRAINING
from utils.data import origins
from utils.data.crops import Augment, Pictures
from utils.data.datasets import weighted_names
from utils.workers import Workers

PLAIN = Augment()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures whose pixels tell where they are: red the column, green the row, blue the picture."""
    from PIL import Image

    place = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[:90, :120].astype(np.uint8)
    for k in range(4):
        Image.fromarray(np.stack([columns, rows, np.full_like(rows, 60 * k)], -1)).save(place / f"{k}.png")
    return place


def options(**chosen):
    return {name: option.default for name, option in TRAINING.items()} | {"crops": 40, "batch": 8} | chosen


def test_crops_come_from_anywhere_and_are_whole(folder):
    pictures, places = Pictures(str(folder), size=16), set()
    for i in range(300):
        crop = pictures.draw(np.random.default_rng(i), PLAIN)
        assert crop.shape == (3, 16, 16) and crop.dtype == torch.uint8
        left, top, name = crop[:, 0, 0].tolist()
        assert (crop[0, 0] == torch.arange(left, left + 16)).all()
        assert (crop[1, :, 0] == torch.arange(top, top + 16)).all()
        places.add((left, top, name))
    # the first of ten files, sorted, is for testing
    assert {name for _, _, name in places} == {60, 120, 180}
    columns, rows = ([p[k] for p in places] for k in range(2))
    assert min(columns) < 5 and max(columns) > 98 and min(rows) < 5 and max(rows) > 68
    assert len({c % 8 for c in columns}) == 8


def test_mirrored_turned_and_grey(folder):
    pictures = Pictures(str(folder), size=16)
    seen = set()
    for i in range(60):
        x = pictures.draw(np.random.default_rng(i), Augment(flip=True, transpose=True)).int()
        seen.add(((x[0, 1, 1] - x[0, 0, 0]).item(), (x[0, 1, 0] - x[0, 0, 0]).item()))
        grey = pictures.draw(np.random.default_rng(i), Augment(grey=1.0))
        assert (grey[0] == grey[1]).all() and (grey[1] == grey[2]).all()
    # the column of the picture counts along the diagonal, up or, mirrored, down; turned, along columns too
    assert seen == {(1, 0), (-1, 0), (1, 1), (-1, -1)}


def test_weights_and_their_errors(folder):
    assert weighted_names("photos+ImageNet64*2.5") == [("photos", 1.0), ("ImageNet64", 2.5)]
    for bad in ("photos*0", "photos*x", "photos*inf", "photos*nan", "photos*-1"):
        with pytest.raises(ValueError, match="positive"):
            weighted_names(bad)
    pictures = Pictures(f"{folder}*3+photos", size=16)
    mine = [
        (x[2] == x[2, 0, 0]).all().item() and (x[0, 0, 1] - x[0, 0, 0]).item() == 1
        for x in (pictures.draw(np.random.default_rng(i), PLAIN) for i in range(400))
    ]
    assert 0.68 < np.mean(mine) < 0.82
    with pytest.raises(ValueError, match="no image holds 91x91"):
        Pictures(str(folder), size=91)


def test_batches_are_the_same_again_and_for_any_number_of_processes(folder):
    pictures, chosen = Pictures(str(folder), size=16, workers=2), options(origins=0.5, flip=True)
    batches = batches_of(pictures, chosen, 3, Workers())
    assert isinstance(batches, Crops) and len(batches) == 5 and batches.images(2) == 16
    x, total = batches.share(2, torch.device("cpu"))
    assert total == 8 and x.shape == (8, 3, 16, 16)
    again, others = Crops(pictures, chosen, 3, Workers()), Crops(pictures, chosen, 4, Workers())
    assert (again.share(2, "cpu")[0] == x).all()
    assert (others.share(2, "cpu")[0] != x).any() and (again.share(3, "cpu")[0] != x).any()
    halves = []
    for rank in range(2):
        workers = Workers()
        workers.rank, workers.count = rank, 2
        halves.append(Crops(pictures, chosen, 3, workers).share(2, "cpu")[0])
    assert (torch.stack(halves, 1).flatten(0, 1) == x).all()
    assert isinstance(batches_of([x], options(), 0, Workers()), Patches)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (8, 8), (33, 40)])
def test_origins_keep_shape_and_change_little(shape):
    image = np.random.default_rng(0).integers(60, 200, (*shape, 3)).astype(np.uint8)
    image[:] = image.mean((0, 1)).astype(np.uint8)  # even: only lattices may move it
    for seed in range(20):
        for imitation in (origins.halved_chroma, origins.jpeg, origins.imitate):
            other = imitation(image, np.random.default_rng(seed))
            assert other.shape == image.shape and other.dtype == np.uint8
            assert np.abs(other.astype(int) - image).max() <= 6


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("taps", [origins.LINEAR, origins.CUBIC])
def test_half_resolution_keeps_ramps(phase, taps):
    ramp = np.tile(np.arange(24.0, dtype=np.float32) * 4, (3, 1))
    for axis, plane in ((1, ramp), (0, ramp.T.copy())):
        back = origins._halve_and_back(plane, axis, phase, taps, False, 1.0)
        inner = (slice(None), slice(4, -4)) if axis else slice(4, -4)
        assert np.allclose(back[inner], plane[inner])
    detail = np.tile(np.array([0.0, 40.0], np.float32), (3, 12))
    assert np.ptp(origins._halve_and_back(detail, 1, phase, taps, False, 1.0)) == 0
