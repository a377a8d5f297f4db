"""Many files at once: which become which, whose share they are, what failed, and a table of them."""

import ctypes
import os
import sys
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from time import perf_counter
from typing import NamedTuple

import torch
from tqdm import tqdm

from utils.files import remove_unfinished, replacing
from utils.options import EXPECTED, line_of
from utils.workers import PATIENCE, Workers

STREAM = Path("-")  # standard input, or standard output


class Job(NamedTuple):
    """A file to be made from another; found: in a folder, not named itself."""

    source: Path
    target: Path
    found: bool = False

    @property
    def name(self):
        """What its source is called."""
        return "standard input" if self.source == STREAM else str(self.source)


class Sizes(NamedTuple):
    """What is known of a picture: its bytes coded, values, bytes of its source, bytes as PNG; 0: unknown."""

    coded: int
    values: int = 0
    source: int = 0
    png: int = 0


class Made(NamedTuple):
    """What became of a job: bytes to write, their Sizes, a note on them; wrong: for all that, it failed."""

    data: bytes
    sizes: Sizes
    note: str = ""
    wrong: bool = False


def plan(names, find, out, suffix, suffixes):
    """Files and folders -> list of Jobs; what a folder holds keeps its place below it.

    find: folder -> the files in it that are meant. out: a folder, "-", or, if it has one of the suffixes, the
    file that the only source becomes. suffix: of the names in a folder.
    Raises ValueError if two would become one.
    """
    out, sources = Path(out), {}
    single = out == STREAM or (out.suffix.lower() in suffixes and not out.is_dir())
    if not single and out.exists() and not out.is_dir():
        raise ValueError(f"-out {out}: a file, not a folder")
    for name in map(Path, names):
        folder = name.is_dir()
        inside = find(name) if folder else [name]
        if not inside:
            raise ValueError(f"{name}: no such files in this folder")
        if name == STREAM and not single:
            raise ValueError(
                f"{out} is a folder: what comes from standard input needs the name of a file, or -"
            )
        base = name if folder else name.parent
        for source in inside:
            target = out if single else out / source.relative_to(base).with_suffix(suffix)
            if target in sources:
                raise ValueError(f"{sources[target].source} and {source} would both become {target}")
            if target != STREAM and target.resolve() == source.resolve():
                raise ValueError(f"{source} would become itself: give another -out")
            sources[target] = Job(source, target, folder)
    return list(sources.values())


def share(jobs):
    """The jobs of this process, where torchrun or the like started several: every n-th."""
    return jobs[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]


def run(jobs, work, force=False, at_once=1):
    """Make each target from its source, so many at once, print a row for each, and return how many failed.

    work: source -> Made. A target is written whole or not at all; one that is there is overwritten by force
    only: without, it is done already, if its source was found in a folder, or else fails. What a killed run
    left half-written beside the targets is removed.
    What fails is reported on stderr, in one line, and again at the end; the rest is done.
    Rows and reports come in the order of the jobs; the rows on stderr where a target is standard output.
    """

    def make(job):
        start = perf_counter()
        if job.target != STREAM and not force and job.target.exists():
            if not job.found:
                raise ValueError(f"{job.target} exists: -force overwrites it")
            if job.target.stat().st_mtime < job.source.stat().st_mtime:
                raise ValueError(f"{job.target} is older than {job.source}: -force makes it anew")
            return None, 0.0
        made = work(job.source)
        _write(job.target, made.data)
        return made._replace(data=b""), perf_counter() - start

    for folder in {job.target.parent for job in jobs if job.target != STREAM}:
        remove_unfinished(folder, shared=True)
    rows = sys.stderr if any(job.target == STREAM for job in jobs) else sys.stdout
    table, failed, done, start = _Table(jobs, rows), [], 0, perf_counter()
    with _in_threads(make, jobs, at_once) as futures:
        bar = tqdm(futures, disable=len(jobs) < 2 or None, leave=False)
        for job, future in zip(jobs, bar):
            try:
                made, seconds = future.result()
            except EXPECTED as error:
                line = line_of(job.name, error)
                if job.target == STREAM and isinstance(error, OSError) and error.filename is None:
                    raise
                _say(line, sys.stderr)
                failed.append(job)
                continue
            if made is None:
                done += 1
                continue
            table.add(str(job.target), made.sizes, seconds)
            if made.note:
                _say(f"{job.name}: {made.note}", sys.stderr)
            failed += [job] * made.wrong
    table.finish(perf_counter() - start)
    if done:
        _say(f"{done} files were there already: -force makes them anew", rows)
    if failed and len(jobs) > 1:
        names = ", ".join(job.name for job in failed)
        _say(f"{len(failed)} of {len(jobs)} files failed: {names}", sys.stderr)
    return len(failed)


def _write(target, data):
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        with replacing(target) as temporary:
            temporary.write_bytes(data)


@contextmanager
def progress_of(total, shown=True):
    """Within: a bar on a terminal; yields the function that adds to it, which threads may share."""
    lock = Lock()
    with tqdm(
        total=total, unit="", unit_scale=True, delay=1, leave=False, disable=None if shown else True
    ) as bar:

        def add(count):
            with lock:
                bar.update(count)

        yield add


def of_all(failed):
    """The sum over the processes of torchrun. It ends all as soon as one ends badly: here they wait."""
    workers = Workers()
    with workers.joined(torch.device("cpu"), PATIENCE):
        return int(workers.sum(failed))


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

    def __init__(self, jobs, file):
        self.width, self.rows = max((len(str(job.target)) for job in jobs), default=0), []
        self.file = file

    def add(self, name, sizes, seconds):
        if not self.rows:
            columns = f"{'.nwf bytes':>13} {'bits/dim':>9} {'source bytes':>13} {'of PNG':>7} {'seconds':>8}"
            _say(f"{'':{self.width}} {columns}", self.file)
        self.rows.append(sizes)
        self._print(name, sizes, seconds)

    def finish(self, seconds):
        if len(self.rows) > 1:
            self._print(f"{len(self.rows)} files", Sizes(*map(sum, zip(*self.rows))), seconds)

    def _print(self, name, sizes, seconds):
        bits = f"{8 * sizes.coded / sizes.values:.4f}" if sizes.values else "-"
        of_png = f"{sizes.coded / sizes.png:.1%}" if sizes.png else "-"
        source = f"{sizes.source:,}" if sizes.source else "-"
        larger = "  larger than its source" if 0 < sizes.source < sizes.coded else ""
        cells = f"{sizes.coded:13,} {bits:>9} {source:>13} {of_png:>7} {seconds:8.2f}{larger}"
        _say(f"{name:{self.width}} {cells}", self.file)


def _say(line, file):
    """Print a line above the bar, at once where it goes to a file too."""
    tqdm.write(line, file)
    file.flush()
