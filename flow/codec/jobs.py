"""Many files, one after the other: which become which, what failed, a table in the end."""

import sys
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from tqdm import tqdm

from utils.files import replacing
from utils.options import memory_message


class Row(NamedTuple):
    """What the table says of a file: its bytes, the values in them, its bytes as PNG; 0: unknown."""

    size: int
    values: int = 0
    png: int = 0


def plan(names, find, out, suffix):
    """Files and folders -> list of (source, target); what a folder holds keeps its place below it.

    find: folder -> the files in it that are meant. Raises ValueError if two would become one.
    """
    sources = {}
    for name in map(Path, names):
        inside = find(name) if name.is_dir() else [name]
        if not inside:
            raise ValueError(f"{name}: no such files in this folder")
        for source in inside:
            target = Path(out) / source.relative_to(name if name.is_dir() else name.parent).with_suffix(
                suffix
            )
            if target in sources:
                raise ValueError(f"{sources[target]} and {source} would both become {target}")
            sources[target] = source
    return [(source, target) for target, source in sources.items()]


def run(pairs, work, force=False):
    """Make each target from its source, print a table, and return how many failed.

    work(source, path) writes to a path and returns a Row. A target is written whole or not at all; one that
    is there is overwritten by force only. What fails is reported on stderr, in one line; the rest is done.
    """
    rows, failed = [], 0
    for source, target in tqdm(pairs, disable=len(pairs) < 2, leave=False):
        start = perf_counter()
        try:
            if target.exists() and not force:
                raise ValueError(f"{target} exists: -force overwrites it")
            with replacing(target) as temporary:
                row = work(source, temporary)
            rows.append((str(target), *row, perf_counter() - start))
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            message = " ".join(str(error).split()) or "out of memory"
            if isinstance(error, RuntimeError):
                message = memory_message(error)
                if not message:
                    raise
            tqdm.write(message if str(source) in message else f"{source}: {message}", sys.stderr)
            failed += 1
    if rows:
        _print(rows)
    return failed


def _print(rows):
    if len(rows) > 1:
        rows.append((f"{len(rows)} files", *map(sum, list(zip(*rows))[1:])))
    width = max(len(row[0]) for row in rows)
    print(f"{'':{width}} {'.nwf bytes':>13} {'bits/dim':>9} {'of PNG':>7} {'seconds':>8}")
    for name, size, values, png, seconds in rows:
        bits = f"{8 * size / values:.4f}" if values else "-"
        share = f"{size / png:.1%}" if png else "-"
        print(f"{name:{width}} {size:13,} {bits:>9} {share:>7} {seconds:8.2f}")
