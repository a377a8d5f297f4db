"""Work spread over threads of Python's own, one core each.

Libraries' own teams of threads wait for each other by spinning: beside any other process, two of them may come to
share a core, and each of thousands of small operations then takes milliseconds. A thread that waits for a future
sleeps.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch

_here = threading.local()


@contextmanager
def crew():
    """Within: torch's operations take one core in this thread; `submit` uses as many as torch did before."""
    if getattr(_here, "count", None):
        yield
        return
    _here.count = count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _here.count = None


def size():
    """How many threads `submit` uses, called from here."""
    return getattr(_here, "count", None) or 1


def submit(function, *arguments):
    """A Future of function(*arguments): computed by the crew, or at once where that is one thread."""
    if size() > 1:
        return _pool(size()).submit(function, *arguments)
    future = Future()
    future.set_result(function(*arguments))
    return future


@cache
def _pool(count):
    # not the setting of the thread that starts them: libraries ask each thread for its own
    return ThreadPoolExecutor(count, "crew", torch.set_num_threads, (1,))
