"""Data sets of small images: uint8 tensors (N, 3, S, S), ready to be moved to the device as they are."""

import hashlib
import http.client
import math
import pickle
import pickletools
import re
import shutil
import tarfile
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from utils.data.images import PHOTOS, halve, image_files, read_rgb

TEST_PHOTOS = {"lake-sherburne", "oakland-zoo-otters", "roman-colosseum"}
CIFAR_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR_FOLDER = "cifar-10-batches-py"


def load(target, part, data="data", size=32, workers=0, progress=True, scales=1):
    """Load one part of a data set as uint8 tensors (N, 3, S, S), one tensor for each image size in it.

    target: a name in TARGETS, or a folder of image files, or several of them joined by "+". A folder with
        subfolders train and test (or val) has its parts there; any other is split by file: every tenth,
        sorted by path, is for testing.
    part: "train" or "test".
    data: the folder under which the published data sets lie; CIFAR is downloaded there if it is absent.
    size: the side of the patches into which photographs and folders are cut; published sets have their own.
    workers: the number of threads that decode the files of a folder.
    progress: whether to show a bar for what takes long.
    scales: how often the images of a folder are cut: at full size, half, a quarter, as far as a patch fits.
    Returns a tuple: three tensors for "joint" (CIFAR, ImageNet32, ImageNet64), one for any other name; of
    targets joined by "+", images of one size are in one tensor.
    Raises ValueError, in one line, if the data are absent, damaged or too small.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part {part!r}: need train or test")
    if size < 1:
        raise ValueError(f"size {size}: need at least 1")
    if scales < 1:
        raise ValueError(f"scales {scales}: need at least 1")
    names = split_target(target)
    readers = [read for name in names for read in _readers(name)]
    sets = [read(part, Path(data), size, workers, progress, scales) for read in readers]
    return tuple(sets) if len(names) == 1 else _joined(sets)


def split_target(target):
    """List the names and folders that a target joins by "+"; the name of one folder may hold a "+" too."""
    return [name for name, _ in weighted_names(target)]


def weighted_names(target):
    """List the names that a target joins, and the weight of each: N of NAME*N, or 1.

    Raises ValueError for a weight that is not a positive number.
    """
    target, names = str(target), []
    for name in [target] if target and Path(target).is_dir() else target.split("+"):
        weight = 1.0
        if "*" in name and not Path(name).is_dir():
            name, text = name.rsplit("*", 1)
            try:
                weight = float(text)
            except ValueError:
                weight = 0.0
            if not 0 < weight < math.inf:
                raise ValueError(f"target {name}*{text}: need a positive number for a weight")
        names.append((name, weight))
    return names


def pictures_of(name, data="data", size=32, workers=0, progress=True, scales=1):
    """The pictures that a name in TARGETS or a folder has for training, uncut, one collection for each set.

    Each is a list of uint8 tensors (3, H, W), every side at least `size`, or one tensor (N, 3, S, S).
    Arguments and errors as in load.
    """
    if name == "photos":
        return [_large(_photos("train", size), PHOTOS, size)]
    if name not in TARGETS:
        _readers(name)
        pictures = _pictures(Path(name), "train", size, workers, progress, scales)
        return [_large(pictures, name, size)]
    sets = [read("train", Path(data), size, workers, progress, scales) for read in TARGETS[name]]
    for images in sets:
        if images.shape[-1] < size:
            raise ValueError(f"{name}: images of {images.shape[-1]} pixels a side hold no crops of {size}")
    return sets


def _large(pictures, place, size):
    """List those of some pictures that hold a crop of size x size; ValueError if none does."""
    pictures = [picture for picture in pictures if min(picture.shape[1:]) >= size]
    if not pictures:
        raise ValueError(f"{place}: no image holds {size}x{size} pixels")
    return pictures


def choose_sides(target, size=None):
    """Choose the side of the patches into which a target's photographs and folders are cut.

    size: the side asked for; None: that of the published sets among them, or 32 if there is not just one.
    Returns (patch, side): the size that `load` needs, and the side of all images, None if they differ.
    Raises ValueError if a size is asked for, but published sets alone have another.
    """
    names = split_target(target)
    own = {side for name in names for side in SIDES.get(name, ())}
    cut = any(name not in SIDES for name in names)
    if size and not cut and own != {size}:
        raise ValueError(f"-size {size}: the images of {target} have their own size")
    patch = size or (min(own) if len(own) == 1 else 32)
    return patch, patch if own <= {patch} else None


def _readers(name):
    """Return the readers of a name in TARGETS or of a folder."""
    if name in TARGETS:
        return TARGETS[name]
    if name and Path(name).is_dir():
        return (partial(_read_folder, Path(name)),)
    raise ValueError(f"target {name!r}: neither one of {', '.join(TARGETS)} nor a folder")


def _joined(sets):
    """Join the tensors of one size."""
    same = {}
    for images in sets:
        same.setdefault(images.shape[1:], []).append(images)
    return tuple(torch.cat(images) if len(images) > 1 else images[0] for images in same.values())


def draw(count, target, data="data", size=32, seed=0):
    """Draw some test images of a data set, the first of it if it has several: uint8 (count, 3, S, S).

    Raises ValueError if it has fewer; else as load.
    """
    images = load(target, "test", data, size)[0]
    if len(images) < count:
        raise ValueError(f"{target}: has {len(images)} test images, not {count}")
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]]


def _read_photos(part, data, size, workers, progress, scales):
    """Read patches of the project's own photographs, at full size, half, a quarter, and so on."""
    # The photographs are few: where they train, patches overlap by a quarter.
    return _cut(_photos(part, size), PHOTOS, size, size - size // 4 if part == "train" else size)


def _photos(part, size):
    """Yield one part of the project's own photographs, at all scales."""
    for path in image_files(PHOTOS):
        if (path.stem in TEST_PHOTOS) == (part == "test"):
            yield from _scales(read_rgb(path), size)


def _read_folder(folder, part, data, size, workers, progress, scales):
    """Read patches, side by side, of the image files in a folder, at so many scales."""
    return _cut(_pictures(folder, part, size, workers, progress, scales), folder, size, size)


def _pictures(folder, part, size, workers, progress, scales):
    """Yield the pictures of one part of a folder, at so many scales."""
    files = _files_of_part(folder, part)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        images = pool.map(read_rgb, files)
        hidden = None if progress else True
        for image in tqdm(images, folder.name, len(files), delay=1, leave=False, disable=hidden):
            yield from _scales(image, size, scales)


def _files_of_part(folder, part):
    """List the image files of one part of a folder: by subfolder, or else every tenth is for testing."""
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    if tests and (folder / "train").is_dir():
        folder = tests[0] if part == "test" else folder / "train"
        files = image_files(folder)
        if not files:
            raise ValueError(f"{folder}: no image files")
        return files
    files = image_files(folder)
    if len(files) < 2:
        raise ValueError(f"{folder}: {len(files)} image files; need 2 or more to split into train and test")
    return [path for i, path in enumerate(files) if (i % 10 == 0) == (part == "test")]


def _scales(image, size, most=math.inf):
    """Yield an image (3, H, W), its half, its quarter, and so on, `most` in all, as long as a patch fits."""
    yield image
    while most > 1 and min(image.shape[1:]) >= 2 * size:
        image, most = halve(image), most - 1
        yield image


def _cut(images, folder, size, stride):
    """Cut images (3, H, W) into patches (N, 3, size, size), one every `stride` pixels; skip small images."""
    patches, largest = [], (0, 0)
    for image in images:
        largest = max(largest, tuple(image.shape[1:]), key=min)
        if min(image.shape[1:]) >= size:
            windows = image.unfold(1, size, stride).unfold(2, size, stride)
            patches.append(windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size))
    if not patches:
        height, width = largest
        raise ValueError(f"{folder}: no image holds {size}x{size} pixels; the largest is {width}x{height}")
    return torch.cat(patches)


class _Published(NamedTuple):
    """A data set that is published in shards, pickled or .npz, of images as rows of 3 * size * size bytes."""

    name: str
    size: int
    stems: dict  # the names of each part's shards, without number and suffix
    least: int  # the number of training shards below which the set is not whole


_CIFAR = _Published("CIFAR", 32, {"train": "data_batch", "test": "test_batch"}, 5)
_IMAGENET32 = _Published("ImageNet32", 32, {"train": "train_data_batch", "test": "val_data"}, 1)
_IMAGENET64 = _Published("ImageNet64", 64, {"train": "train_data_batch", "test": "val_data"}, 1)


def _read_published(source, part, data, size, workers, progress, scales):
    """Read all the shards of one part of a published data set."""
    shape = (3, source.size, source.size)
    images = np.empty((0, *shape), np.uint8)
    shards = _list_shards(source, part, data)
    for path in tqdm(
        shards, f"{source.name} {part}", delay=1, leave=False, disable=None if progress else True
    ):
        rows = _read_shard(path, source.size)
        start = len(images)
        # In place: ImageNet64 takes 15.7 GB, of which a second copy may not fit.
        images.resize((start + len(rows), *shape), refcheck=False)
        images[start:] = rows.reshape(-1, *shape)
    return torch.from_numpy(images)


def _read_cifar(part, data, size, workers, progress, scales):
    """Read CIFAR-10, downloaded first where nothing of it is found."""
    if not any(_find_shards(_CIFAR, stem, data) for stem in _CIFAR.stems.values()):
        _download_cifar(data, progress)
    return _read_published(_CIFAR, part, data, size, workers, progress, scales)


def _list_shards(source, part, data):
    """List the shards of one part in the order of their numbers; ValueError if there are gaps."""
    stem = source.stems[part]
    found = _find_shards(source, stem, data)
    least = source.least if part == "train" else 1
    missing = next((n for n in range(1, max([least, *found]) + 1) if n not in found), None)
    if missing:
        name = f"{stem}_{missing}" if part == "train" else stem
        raise ValueError(
            f"{source.name}: no {name}; put {source.stems['train']}_1 and so on and {source.stems['test']}, "
            f"as published (pickled or .npz), into {data / source.name}"
        )
    return [found[n] for n in sorted(found)]


def _find_shards(source, stem, data):
    """Find the shards whose names begin with a stem: a dict from number (1 where there is none) to path.

    They lie anywhere in the folders under `data` that begin with the data set's name, in any case, so that
    the published archives may be unpacked as they are (ImageNet32, Imagenet32_train_npz, ...).
    """
    pattern = re.compile(rf"{stem}(?:_(\d+))?(?:\.npz)?")
    found = {}
    for folder in data.glob("*/"):
        if folder.name.lower().startswith(source.name.lower()):
            for path in folder.rglob("*"):
                if match := pattern.fullmatch(path.name):
                    number = int(match[1] or 1)
                    if number in found:
                        raise ValueError(f"{source.name}: keep one of {found[number]} and {path}")
                    found[number] = path
    return found


def _read_shard(path, size):
    """Read the images of one shard: (N, 3 * size * size) uint8.

    Raises ValueError if the file is damaged, holds anything else, or asks for code to be run.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".npz":
                rows = np.load(file, allow_pickle=False)["data"]
            else:
                _check_memo(file, path.stat().st_size)
                rows = _array_of(_Unpickler(file, encoding="bytes").load())
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3 * size * size:
            raise ValueError(f"data are {rows.dtype} {rows.shape}, not uint8 (N, {3 * size * size})")
    except Exception as error:  # a damaged file can break its parser anywhere
        raise ValueError(f"{path}: not a whole shard of images ({_reason(error)})") from error
    return rows


def _check_memo(file, size):
    """Raise ValueError if a pickle of so many bytes numbers an object beyond them; rewinds the file.

    The unpickler makes room for all numbers up to the largest, whatever the file holds.
    """
    for operation, number, _ in pickletools.genops(file):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and number > size:
            raise ValueError(f"a memo of {number} objects in {size} bytes")
    file.seek(0)


class _Call:
    """A call that a pickle asks for: written down, never made.

    numpy's own functions are not safe here: they believe what a file says of object arrays and their memory.
    """

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Reads the parts of pickled arrays, and runs nothing that the pickle could choose."""

    STAND_INS = {
        "numpy.core.multiarray._reconstruct": _Call,
        "numpy.core.multiarray.scalar": _Call,
        "numpy._core.multiarray._reconstruct": _Call,
        "numpy._core.multiarray.scalar": _Call,
        "numpy.ndarray": _Call,
        "numpy.dtype": _Call,
        "_codecs.encode": str.encode,  # Python 3 writes bytes so in the old protocols
    }

    def find_class(self, module, name):
        """Return the stand-in for a name that pickled arrays mention; refuse any other name."""
        try:
            return self.STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}") from None


def _array_of(content):
    """Return the uint8 array under "data" in what `_Unpickler` read."""
    array = content.get(b"data", content.get("data")) if isinstance(content, dict) else None
    if not isinstance(array, _Call):
        raise ValueError("no array under 'data'")
    _, shape, dtype, fortran, values = array.state
    if dtype.arguments[0] not in ("u1", b"u1"):
        raise ValueError(f"data are {dtype.arguments[0]!r}, not uint8")
    return np.frombuffer(values, np.uint8).reshape(shape, order="F" if fortran else "C")


def _download_cifar(data, progress):
    """Download CIFAR-10 into a folder, checked, so that it is there whole or not at all."""
    final, absent = data / CIFAR_FOLDER, not data.exists()
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=data, prefix=".download-") as scratch:
            archive, unpacked = Path(scratch, "archive.tar.gz"), Path(scratch, CIFAR_FOLDER)
            _download(CIFAR_ADDRESS, CIFAR_MD5, archive, progress)
            _unpack_cifar(archive, unpacked)
            try:
                unpacked.rename(final)
            except OSError:
                if not final.is_dir():  # otherwise another process was quicker
                    raise
    except (OSError, http.client.HTTPException, tarfile.TarError) as error:
        if absent:
            with suppress(OSError):  # what it may hold by now stays
                data.rmdir()
        raise ValueError(
            f"CIFAR: download failed ({_reason(error)}); put {CIFAR_FOLDER} from {CIFAR_ADDRESS} into {data}"
        ) from error


def _download(address, md5, path, progress):
    """Download a file and compare its MD5 sum."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(address, timeout=30) as reply, path.open("wb") as file:
        total = int(reply.headers.get("Content-Length", 0))
        with tqdm(
            desc="CIFAR", total=total, unit="B", unit_scale=True, disable=None if progress else True
        ) as bar:
            while chunk := reply.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
    if digest.hexdigest() != md5:
        raise OSError(f"MD5 {digest.hexdigest()}, not {md5}")


def _unpack_cifar(archive, folder):
    """Unpack CIFAR-10's batches, and nothing else, from its archive."""
    folder.mkdir()
    wanted = re.compile(rf"{CIFAR_FOLDER}/(data_batch_[1-5]|test_batch)")
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and (match := wanted.fullmatch(member.name)):
                with (folder / match[1]).open("wb") as file:
                    shutil.copyfileobj(tar.extractfile(member), file)


def _reason(error):
    """Return the first line of an error's text, or else its kind."""
    return next(iter(str(error).splitlines()), type(error).__name__)


# Each target's readers, one for each tensor: (part, data, size, workers, progress, scales) -> (N, 3, S, S).
TARGETS = {
    "photos": (_read_photos,),
    "CIFAR": (_read_cifar,),
    "ImageNet32": (partial(_read_published, _IMAGENET32),),
    "ImageNet64": (partial(_read_published, _IMAGENET64),),
}
TARGETS["joint"] = TARGETS["CIFAR"] + TARGETS["ImageNet32"] + TARGETS["ImageNet64"]
# The sides of the images of the published sets.
SIDES = {source.name: (source.size,) for source in (_CIFAR, _IMAGENET32, _IMAGENET64)} | {"joint": (32, 64)}
