"""Files that are either whole or absent, and tensors with JSON beside them: never a pickle."""

import csv
import io
import itertools
import json
import os
import platform
import re
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

UNFINISHED = ".unfinished"
HOST = platform.node().partition(".")[0][:16]
# Process and machine that write such a file; files of other machines are given up after so many seconds.
_WRITER = re.compile(rf"\..*\.([^.]*)\.(\d+)\.\d+{UNFINISHED}(\.[^.]*)?")
_PATIENCE = 3600
# Threads write files whose names begin alike.
_count = itertools.count()


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


def save_tensors(path, tensors, state):
    """Write a dict of tensors and a JSON-able state into one .safetensors file, as a whole."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"state": json.dumps(state), "checksum": _checksum(tensors)}
    with replacing(path) as temporary:
        # not by safetensors itself, whose files nobody but their owner can read
        temporary.write_bytes(save(tensors, metadata))


def load_tensors(path):
    """Read what save_tensors wrote: (tensors on the CPU, state). Raises ValueError if it is damaged."""
    with _reading(path) as (file, state):
        tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if file.metadata().get("checksum", checksum := _checksum(tensors)) != checksum:  # old files have none
            raise ValueError("its tensors are not those that were written")
        return tensors, state


def _checksum(tensors):
    """The CRC-32 of a dict of tensors on the CPU, in hex."""
    crc = 0
    for name, t in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {t.dtype} {tuple(t.shape)}".encode(), crc)
        crc = zlib.crc32(t.reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def load_state(path):
    """Read the state alone of what save_tensors wrote. Raises ValueError if the file's head is damaged."""
    with _reading(path) as (_, state):
        return state


@contextmanager
def _reading(path):
    """Within: a .safetensors file and its state; what is wrong with them is a ValueError that names it."""
    if Path(path).is_dir():
        raise ValueError(f"{path}: a folder, not weights")
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            if not isinstance(state, dict):
                raise TypeError("its state is not a table")
            yield file, state
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not weights of this project, or damaged ({error})") from None
