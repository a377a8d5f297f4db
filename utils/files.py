"""Files that are either whole or absent, and tensors with JSON beside them: never a pickle."""

import csv
import io
import itertools
import json
import lzma
import os
import platform
import re
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

UNFINISHED = ".unfinished"
HOST = platform.node().partition(".")[0][:16]
# Process and machine that write such a file; files of other machines are given up after so many seconds.
_WRITER = re.compile(rf"\..*\.([^.]*)\.(\d+)\.\d+{UNFINISHED}(\.[^.]*)?")
_PATIENCE = 3600
# Threads write files whose names begin alike.
_count = itertools.count()
# What the state of a saving has besides: its checksum, and its tensors'.
_CHECKSUM = "crc32"
# How a saving's file ends that is packed, and the bytes that it may come to, for each of its own or in all.
PACKED, _TIMES, _LEAST = ".xz", 64, 1 << 26
# Weights in 8 bits, up to +-LARGEST, count units, one for each output, which are beside them by this name.
# Units have 16 significant bits, so that their multiples are exact, and the same when they are rounded again.
UNIT, LARGEST, _LEAST_UNIT, _LOW_BITS = ".unit", 127, 2.0**-100, 0xFF
# So many bytes are read at once.
_PIECE = 1 << 20
# No head of a saving is larger: safetensors' own limit.
_HEAD_MOST = 100_000_000
_DAMAGED = (
    *(SafetensorError, lzma.LZMAError, EOFError, MemoryError),
    *(KeyError, TypeError, ValueError, RecursionError),
)


@contextmanager
def replacing(path):
    """A temporary path beside `path`: replaces it if the block ends well, else is removed.

    Raises OSError that names `path` where the temporary file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # cut, as a name that is just short enough leaves no room for more; what writes it may go by the suffix
    name = f".{path.stem[:32]}.{HOST}.{os.getpid()}.{next(_count)}{UNFINISHED}{path.suffix[:16]}"
    temporary = path.with_name(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder, shared=False):
    """Remove the temporary files that killed processes left in a folder.

    shared: other processes may write to it, whose files stay; else it is this process's.
    """
    for path in Path(folder).glob(f".*{UNFINISHED}*"):
        if not shared or _is_left(path):
            with suppress(OSError):
                path.unlink()


def _is_left(path):
    """Whether the process that wrote a temporary file has ended; this one has just begun."""
    writer = _WRITER.fullmatch(path.name)
    if not writer:
        return False
    host, number = writer[1], int(writer[2])
    try:
        if host != HOST:
            return time.time() - path.stat().st_mtime > _PATIENCE
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's, or no file any more
        return False
    return number == os.getpid()


def write_text(path, text):
    """Write a text file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_table(path, columns, rows):
    """Write rows, dicts with the given columns as keys, as a whole CSV file."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def save_tensors(path, tensors, state, in_bytes=()):
    """Write a dict of tensors and a JSON-able state, with a checksum, into one whole .safetensors file.

    One whose name ends with PACKED as well is packed, which takes a second for each two megabytes.
    in_bytes: names of weights, (out, ...), which are rounded to 8 bits, each output's by its largest.
    """
    for name in in_bytes:
        tensors = tensors | _to_bytes(name, tensors[name])
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    state = state | {_CHECKSUM: _checksum(tensors, state)}
    data = save(tensors, metadata={"state": json.dumps(state)})
    with replacing(path) as temporary:
        # not by safetensors itself, whose files nobody but their owner can read
        temporary.write_bytes(lzma.compress(data, preset=9) if _is_packed(path) else data)


def load_tensors(path):
    """Read what save_tensors wrote: (tensors on the CPU, state). Raises ValueError if it is damaged.

    Weights in 8 bits are floats again, those that their integers stand for.
    """
    with _reading(path) as (head, rest, state, checksum):
        most = max(_TIMES * Path(path).stat().st_size, _LEAST)
        # piece by piece, as to read so many at most takes room for so many
        parts, left = [head], most
        while part := rest.read(_PIECE):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise ValueError(f"it unpacks to more than {most} bytes")
        tensors = load(b"".join(parts))
        if checksum not in (None, _checksum(tensors, state)):
            raise ValueError("its checksum is another")
        return _from_bytes(tensors), state


def _to_bytes(name, weight):
    """A weight in 8 bits and its unit, (out, 1, ...) float32, by their names."""
    weight = weight.detach().float()
    most = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    unit = (most / LARGEST).clamp(min=_LEAST_UNIT)
    unit = ((unit.view(torch.int32) + _LOW_BITS) & ~_LOW_BITS).view(torch.float32)
    return {name: (weight / unit).round().to(torch.int8), name + UNIT: unit}


def _from_bytes(tensors):
    """Undo _to_bytes where there are units."""
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(UNIT)}
    for name in tensors.keys() - weights.keys():
        unit, of = tensors[name], name.removesuffix(UNIT)
        shape = (len(weights[of]), *[1] * (weights[of].dim() - 1))
        if (unit.dtype, weights[of].dtype) != (torch.float32, torch.int8) or unit.shape != shape:
            raise ValueError(f"{name} is no unit of its weights")
        weights[of] = weights[of] * unit
    return weights


def load_state(path):
    """Read the state alone of what save_tensors wrote. Raises ValueError if the file's head is damaged."""
    with _reading(path) as (_, _, state, _):
        return state


def has_checksum(path):
    """Whether a saving has one: those of earlier versions have none. Raises ValueError as load_state."""
    with _reading(path) as (_, _, _, checksum):
        return checksum is not None


def contents(tensors):
    """Yield bytes that tell a dict of tensors, by name: of each its name, type and shape, then its values."""
    for name, tensor in sorted(tensors.items()):
        values = tensor.contiguous().cpu().numpy()
        yield f"{name} {values.dtype} {values.shape}".encode()
        yield values.astype(values.dtype.newbyteorder("<")).tobytes()


def _checksum(tensors, state):
    """The CRC-32 of a saving, the same on every machine."""
    checksum = zlib.crc32(json.dumps(state).encode())
    for part in contents(tensors):
        checksum = zlib.crc32(part, checksum)
    return checksum


def _is_packed(path):
    return Path(path).suffix == PACKED


@contextmanager
def _reading(path):
    """Within: of a .safetensors file the head, the file where that ends, the state, and the checksum or None.

    What is wrong with them is a ValueError that names the file.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder, not weights")
    try:
        with lzma.open(path) if _is_packed(path) else Path(path).open("rb") as file:
            size = file.read(8)
            count = int.from_bytes(size, "little")
            text = file.read(count) if count <= _HEAD_MOST else b""
            state = json.loads(json.loads(text)["__metadata__"]["state"])
            if not isinstance(state, dict):
                raise TypeError("its state is not a table")
            checksum = state.pop(_CHECKSUM, None)
            yield size + text, file, state, checksum
    except _DAMAGED as error:
        raise ValueError(f"{path}: not weights of this project, or damaged ({error})") from None
