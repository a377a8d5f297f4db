"""A plug-in of Pillow's: after `import flow.pillow`, Image.open reads .nwf files and Image.save writes them.

    image = Image.open("picture.nwf")         mode, size and metadata; pixels when they are asked for
    image.thumbnail((256, 256))               from the file's first part, by image.draft(None, (512, 512))
    image.save("other.nwf", effort=7)

The model of a file is found by its identity, among those in the box and those given to `use`.
"""

from contextlib import suppress
from functools import cache

from PIL import Image, ImageFile

from flow.codec.api import Codec
from flow.codec.container import FLOW, MAGIC, read_head, unpack
from flow.codec.deep import Deep
from flow.codec.pictures import TAGS, unpack_metadata
from flow.codec.planes import DEFAULT_EFFORT
from flow.folder import find_folder, stored_identity

FORMAT = "NWF"
BOX = "model", "cifar", "paper", "wavelet"
_folders = []


def use(folder):
    """Write with the model of a folder from now on, and read with it too."""
    folder = find_folder(folder)
    _codec(folder)
    _folders.insert(0, folder)


@cache
def _codec(folder):
    return Codec(folder)


def _maker(model):
    """The folder whose integers have an identity that begins so; None if there is none."""
    for name in (*_folders, *BOX):
        with suppress(ValueError, OSError):  # faults of others are none of this file
            folder = find_folder(box=name) if name in BOX else name
            if stored_identity(folder).startswith(model):
                return folder
    return None


class NwfImageFile(ImageFile.ImageFile):
    """An opened .nwf file."""

    format, format_description = FORMAT, "Neural Wavelet Flow"

    def _open(self):
        self._data, self._levels = self.fp.read(), 0
        try:
            self._head = read_head(self._data)
            info = unpack_metadata(self._head.metadata, self._head.mode)
        except ValueError as error:
            raise SyntaxError(str(error)) from None
        self._size = self._head.size
        self._mode = "I;16" if self._head.deep and self._head.mode == "L" else self._head.mode
        self.info = {name: value for name, value in info.items() if name != "palette"}

    def draft(self, mode, size):
        """Choose the smallest picture of a file by the flow that is at least so large; mode is ignored."""
        if self._data is None or self._head.method != FLOW or size is None:
            return None
        (width, height), levels = self._head.size, 0
        while max(width, height) > 2 and width + 1 >> 1 >= size[0] and height + 1 >> 1 >= size[1]:
            width, height, levels = width + 1 >> 1, height + 1 >> 1, levels + 1
        self._levels, self._size = levels, (width, height)
        if levels:
            self._mode = self._head.mode  # 16 bits become 8
        whole, scale = self._head.size, 1 << levels
        return self.mode, (0, 0, whole[0] / scale, whole[1] / scale)

    def load(self):
        """Decode, once."""
        if self._data is not None:
            try:
                picture = self._unpack()
            except ValueError as error:
                raise OSError(str(error)) from error
            if isinstance(picture, Deep):
                raise OSError("16 bits a sample in colour, which Pillow lacks: flow.Codec has them")
            self._data = None
            self.im, self.palette, self.info = picture.im, picture.palette, picture.info
            self._mode, self._size = picture.mode, picture.size
        return super().load()

    def _unpack(self):
        folder = _maker(self._head.model) if self._head.method == FLOW else None
        if folder is None:
            return unpack(self._data, levels=self._levels)
        return _codec(folder).decompress(self._data, self._levels)


def _save(image, file, name):
    picture, options = image.copy(), image.encoderinfo
    picture.info |= {tag: options[tag] for tag in TAGS if tag in options}
    try:
        codec = _codec(_folders[0] if _folders else find_folder())
        file.write(codec.compress(picture, options.get("effort", DEFAULT_EFFORT)))
    except ValueError as error:
        raise OSError(str(error)) from error


Image.register_open(FORMAT, NwfImageFile, lambda prefix: prefix.startswith(MAGIC[:3]))
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".nwf")
Image.register_mime(FORMAT, "image/x-nwf")
