"""A folder of .nwf files as a data set of torch's, at a size of one's choice."""

import torch

from flow.codec.api import Codec
from flow.codec.pictures import colours, of_8_bits
from utils.data.images import image_files
from utils.options import naming


class NwfFolder(torch.utils.data.Dataset):
    """The pictures of the .nwf files under a folder, by path: uint8 tensors (3, h, w).

    level: how many of the finest levels to leave out; 2: a quarter as wide, from the first part of each file.
    codec: of the model that made them; None: that of the model in the box, on one thread, for a worker each.
    transform: tensor -> what an item is.
    Raises ValueError if there are no such files.
    """

    def __init__(self, folder, level=0, codec=None, transform=None):
        self.files = nwf_files(folder)
        if not self.files:
            raise ValueError(f"{folder}: no .nwf files in this folder")
        self.level, self.transform = level, transform
        self.codec = codec or Codec(threads=1)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        """Item `index`. Raises ValueError, with its name, for a file that is damaged or of fewer levels."""
        path = self.files[index]
        with naming(path):
            picture, _ = read_part(self.codec, path, self.level)
        image = torch.from_numpy(colours(of_8_bits(picture))).permute(2, 0, 1).contiguous()
        return self.transform(image) if self.transform else image


def nwf_files(folder):
    """The .nwf files under a folder, as image_files has them."""
    return image_files(folder, {".nwf"})


def read_part(codec, path, level=0):
    """A picture, `level` times halved, and how many bytes of its file were read: ever more until they do."""
    with path.open("rb") as file:
        size = path.stat().st_size
        data = file.read(max(size >> level, 256))
        while len(data) < size:
            try:
                return codec.decompress(data, level), len(data)
            except ValueError:  # cut, most likely; if not, the whole file will tell
                data += file.read(len(data))
        return codec.decompress(data, level), size
