"""A folder of .nwf files as a data set: every mode, at every level, from parts of files, by workers."""

import numpy as np
import pytest
import torch

from flow import Codec
from flow.codec.dataset import NwfFolder, read_part
from tests.test_container import photo


@pytest.fixture(scope="module")
def codec():
    return Codec(threads=1)


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "below").mkdir()
    for n, mode in enumerate(("RGB", "L", "P", "RGBA")):
        (folder / ("below" if n else "") / f"{n}.nwf").write_bytes(codec.compress(photo(160, 120, mode)))
    deep = np.asarray(photo(160, 120)).astype(np.uint16) * 257
    (folder / "deep.nwf").write_bytes(codec.compress(deep))
    (folder / "grey.nwf").write_bytes(codec.compress(deep[..., 1]))
    (folder / ".hidden.nwf").write_bytes(b"")
    return folder


def test_items_are_the_pictures(codec, folder):
    data = NwfFolder(folder, codec=codec)
    assert [path.name for path in data.files] == ["0.nwf", "1.nwf", "2.nwf", "3.nwf", "deep.nwf", "grey.nwf"]
    expected = [photo(160, 120, mode).convert("RGB") for mode in ("RGB", "L", "P", "RGBA", "RGB")]
    expected.append(expected[0].getchannel(1).convert("RGB"))
    assert len(data) == len(expected)
    for image, picture in zip(data, expected):
        assert image.dtype == torch.uint8 and image.is_contiguous()
        assert torch.equal(image, torch.from_numpy(np.array(picture)).permute(2, 0, 1))


@pytest.mark.parametrize("level", [1, 3])
def test_levels_take_the_first_part(codec, folder, level):
    path = folder / "0.nwf"
    picture, count = read_part(codec, path, level)
    assert picture == codec.decompress(path.read_bytes(), levels=level)
    assert count <= path.stat().st_size >> level - 1 and count < path.stat().st_size
    for image in NwfFolder(folder, level, codec):
        assert image.shape == (3, 120 >> level, 160 >> level)


def test_workers_and_transforms(codec, folder):
    data = NwfFolder(folder, 2, codec, lambda image: image.float().mean())
    loaded = torch.cat(list(torch.utils.data.DataLoader(data, 2, num_workers=2)))
    assert torch.equal(loaded, torch.stack(list(map(data.__getitem__, range(len(data))))))


def test_what_is_wrong_is_named(codec, tmp_path):
    with pytest.raises(ValueError, match="no .nwf files"):
        NwfFolder(tmp_path, codec=codec)
    (tmp_path / "cut.nwf").write_bytes(codec.compress(photo(64, 64))[:-9])
    with pytest.raises(ValueError, match=r"cut\.nwf: .*cut"):
        _ = NwfFolder(tmp_path, codec=codec)[0]
    with pytest.raises(ValueError, match=r"cut\.nwf: 9 levels"):
        _ = NwfFolder(tmp_path, 9, codec)[0]
