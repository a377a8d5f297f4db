"""Many files at once: which become which, whose share they are, what failed, and a table of them."""

import ctypes
import os
import sys
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import NamedTuple

import torch
import torch.distributed as dist
from tqdm import tqdm

from utils.files import replacing
from utils.options import memory_message


class Job(NamedTuple):
    """A file to be made from another."""

    source: Path
    target: Path


class Sizes(NamedTuple):
    """What is known of a coded picture: its bytes, the values in it, its bytes as PNG; 0: unknown."""

    coded: int
    values: int = 0
    png: int = 0


def plan(names, find, out, suffix):
    """Files and folders -> list of Jobs; what a folder holds keeps its place below it.

    find: folder -> the files in it that are meant. Raises ValueError if two would become one.
    """
    sources = {}
    for name in map(Path, names):
        inside = find(name) if name.is_dir() else [name]
        if not inside:
            raise ValueError(f"{name}: no such files in this folder")
        base = name if name.is_dir() else name.parent
        for source in inside:
            target = Path(out) / source.relative_to(base).with_suffix(suffix)
            if target in sources:
                raise ValueError(f"{sources[target]} and {source} would both become {target}")
            sources[target] = source
    return [Job(source, target) for target, source in sources.items()]


def share(jobs):
    """The jobs of this process, where torchrun or the like started several: every n-th."""
    return jobs[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]


def run(jobs, work, force=False, at_once=1):
    """Make each target from its source, so many at once, print a row for each, and return how many failed.

    work(source, path) writes to a path and returns Sizes. A target is written whole or not at all; one that
    is there is overwritten by force only. What fails is reported on stderr, in one line; the rest is done.
    Rows and reports come in the order of the jobs.
    """

    def make(job):
        start = perf_counter()
        if job.target.exists() and not force:
            raise ValueError(f"{job.target} exists: -force overwrites it")
        with replacing(job.target) as temporary:
            sizes = work(job.source, temporary)
        return sizes, perf_counter() - start

    table, failed, start = _Table([str(job.target) for job in jobs]), 0, perf_counter()
    with _in_threads(make, jobs, at_once) as futures:
        bar = tqdm(futures, disable=len(jobs) < 2 or None, leave=False)
        for job, future in zip(jobs, bar):
            try:
                table.add(str(job.target), *future.result())
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                message = " ".join(str(error).split()) or "out of memory"
                if isinstance(error, RuntimeError):
                    message = memory_message(error)
                    if not message:
                        raise
                _say(message if str(job.source) in message else f"{job.source}: {message}", sys.stderr)
                failed += 1
    table.finish(perf_counter() - start)
    return failed


def of_all(failed):
    """The sum over the processes of torchrun. It ends all as soon as one ends badly: here they wait."""
    if not dist.is_torchelastic_launched():
        return failed
    dist.init_process_group("gloo", timeout=timedelta(days=365))
    total = torch.tensor(failed)
    dist.all_reduce(total)
    dist.destroy_process_group()
    return int(total)


@contextmanager
def _in_threads(function, items, count):
    """Within: so many threads compute function(item) of all items; gives the Futures, in their order.

    Where the block ends by an exception, the threads end too, wherever they are.
    """
    futures = [Future() for _ in items]
    todo = iter(list(zip(items, futures)))  # which threads can share, as its steps are atomic

    def serve():
        with suppress(SystemExit):
            for item, future in todo:
                try:
                    future.set_result(function(item))
                except Exception as error:
                    future.set_exception(error)

    threads = [Thread(target=serve) for _ in range(min(count, len(items)))]
    try:
        for thread in threads:
            thread.start()
        yield futures
    except BaseException:
        for _ in todo:
            pass
        for thread in threads:
            # raised between two steps of the thread's Python
            ident = ctypes.c_ulong(thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
        raise
    finally:
        for thread in threads:
            if thread.ident:
                thread.join()


class _Table:
    """Prints a row for each file as soon as it is known, and their sum, if there are several."""

    def __init__(self, names):
        self.width, self.rows = max(map(len, names), default=0), []

    def add(self, name, sizes, seconds):
        if not self.rows:
            _say(f"{'':{self.width}} {'.nwf bytes':>13} {'bits/dim':>9} {'of PNG':>7} {'seconds':>8}")
        self.rows.append(sizes)
        self._print(name, sizes, seconds)

    def finish(self, seconds):
        if len(self.rows) > 1:
            self._print(f"{len(self.rows)} files", Sizes(*map(sum, zip(*self.rows))), seconds)

    def _print(self, name, sizes, seconds):
        bits = f"{8 * sizes.coded / sizes.values:.4f}" if sizes.values else "-"
        of_png = f"{sizes.coded / sizes.png:.1%}" if sizes.png else "-"
        _say(f"{name:{self.width}} {sizes.coded:13,} {bits:>9} {of_png:>7} {seconds:8.2f}")


def _say(line, file=None):
    """Print a line above the bar, at once where it goes to a file too."""
    tqdm.write(line, file)
    (file or sys.stdout).flush()
