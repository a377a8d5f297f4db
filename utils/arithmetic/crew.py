"""Work spread over threads of Python's own, one core each.

Libraries' own teams of threads wait for each other by spinning: beside any other process, two of them may
come to share a core, and each of thousands of small operations then takes milliseconds. A thread that waits
here does what nobody has begun yet, or else sleeps.
"""

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import product

import torch

# The side of tiles, in pixels: less, where otherwise a thread had none.
TILE, LEAST_SIDE, FEW_PIXELS = 128, 32, 32 * 32

_here = threading.local()


@contextmanager
def crew(count=None):
    """Within: torch's operations take one core in this thread; `submit` uses so many.

    count: by default as many as torch did before. A crew within another is that one.
    """
    if getattr(_here, "count", None):
        yield
        return
    before, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    _here.count, _here.tasks = count or before, deque()
    torch.set_num_threads(1)
    try:
        # sums of integers are not to be rounded to bfloat16, whatever the caller computes in; and what one
        # thread makes another may change, which tensors of inference_mode, a thread's own, do not allow
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients),
        ):
            yield
    finally:
        torch.set_num_threads(before)
        _here.count = _here.tasks = None


def in_crew(iterator):
    """Yield from an iterator, which computes within a crew, while whoever takes its items does not."""
    while True:
        with crew():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def size():
    """How many threads `submit` uses, called from here."""
    return getattr(_here, "count", None) or 1


class _Task(Future):
    """A Future of function(*arguments), which is computed by whoever begins it first."""

    def __init__(self, function, arguments):
        super().__init__()
        self._work, self._begun = (function, arguments), threading.Lock()

    def begin(self):
        """Compute it, if nobody has begun; within, this thread is one of the crew, and has none."""
        if not self._begun.acquire(blocking=False) or not self.set_running_or_notify_cancel():
            return
        (function, arguments), self._work = self._work, None
        before = getattr(_here, "count", None), getattr(_here, "tasks", None)
        _here.count = _here.tasks = None
        try:
            result = function(*arguments)
        except BaseException as error:
            self.set_exception(error)
            if not isinstance(error, Exception):  # Ctrl-C is for who waits, not for this
                raise
        else:
            self.set_result(result)
        finally:
            _here.count, _here.tasks = before

    def result(self, timeout=None):
        """As of a Future; whoever waits begins this, or what else there is of its own, if it takes longer."""
        self.begin()
        others = getattr(_here, "tasks", None)
        while others and not self.done():
            others.popleft().begin()
        return super().result(timeout)


def submit(function, *arguments, pixels=FEW_PIXELS):
    """A Future of function(*arguments): computed by the crew, or at once where that is one thread.

    pixels: how many are worked on; for a few, another thread is not worth waking.
    """
    if size() > 1 and pixels >= FEW_PIXELS:
        while _here.tasks and _here.tasks[0].done():
            _here.tasks.popleft()
        task = _Task(function, arguments)
        _here.tasks.append(task)
        _pool(size() - 1).submit(task.begin)
        return task
    future = Future()
    future.set_result(function(*arguments))
    return future


@cache
def _pool(count):
    # not the setting of the thread that starts them: libraries ask each thread for its own
    return ThreadPoolExecutor(count, "crew", torch.set_num_threads, (1,))


def _forget():
    _pool.cache_clear()
    _here.count = _here.tasks = None


# A forked process has the pool, but none of its threads.
os.register_at_fork(after_in_child=_forget)


class in_tiles:
    """function(*maps), tile by tile, begun at once, a tile to a thread: bounds memory, stays in the caches.

    maps: (B, H, W, C). function: maps -> a tuple of maps, each value of which depends on those no more than
    `halo` pixels away; at the edges of a map a tile has that edge. rows: (from, to), those wanted; None: all.
    margins: whether it is told, last, how many pixels above, below, to the left and right are there for the
    others alone.
    `result` waits and returns the maps: (B, to - from, W, C) each; or what `then` makes of them all, in the
    thread that is the last to end.
    """

    def __init__(self, function, halo, *maps, rows=None, side=TILE, margins=False, then=None):
        height, width = maps[0].shape[1:3]
        self._top, self._bottom = rows or (0, height)
        self._function, self._halo, self._maps, self._width = function, halo, maps, width
        self._lock, self._whole, self._then, self._margins = threading.Lock(), None, then, margins
        while side > LEAST_SIDE and -(-(self._bottom - self._top) // side) * -(-width // side) < size():
            side //= 2
        self._single = self._bottom - self._top <= side and width <= side
        corners = list(product(range(self._top, self._bottom, side), range(0, width, side)))
        self._left = len(corners)
        self._tiles = [
            submit(
                *(self._compute, top, left, min(top + side, self._bottom), min(left + side, width)),
                pixels=len(maps[0]) * min(side, self._bottom - top) * min(side, width - left),
            )
            for top, left in corners
        ]

    def _compute(self, top, left, bottom, right):
        halo = self._halo
        above, before = max(top - halo, 0), max(left - halo, 0)
        window = slice(None), slice(above, bottom + halo), slice(before, right + halo)
        inside = slice(None), slice(top - above, bottom - above), slice(left - before, right - before)
        maps = [m[window].contiguous() for m in self._maps]
        if self._margins:
            below, after = maps[0].shape[1] - inside[1].stop, maps[0].shape[2] - inside[2].stop
            maps.append((top - above, below, left - before, after))
        parts = [part[inside] for part in self._function(*maps)]
        if self._single:
            self._whole = [part.contiguous() for part in parts]
            self._end()
            return
        with self._lock:
            if self._whole is None:
                size = self._bottom - self._top, self._width
                self._whole = [part.new_empty((len(part), *size, part.shape[-1])) for part in parts]
        for whole, part in zip(self._whole, parts):
            whole[:, top - self._top : bottom - self._top, left:right] = part
        self._end()

    def _end(self):
        with self._lock:
            self._left -= 1
            last = not self._left
        if last and self._then:
            self._whole = self._then(*self._whole)

    def result(self):
        """See the class."""
        try:
            for tile in self._tiles:
                tile.result()
        finally:
            for tile in self._tiles:  # of no use where one failed, or Ctrl-C came
                tile.cancel()
        return self._whole
